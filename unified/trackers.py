"""Experiment trackers through accelerate: they get what metrics.jsonl gets, under the names that dashboards know.

A tracker never stops a run: one that fails is named once, and not asked again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from unified.errors import Problem, cut_short, unknown_name
from unified.secret import MASK, masked, secrets_in
from unified.stage import StageContext, TrainSettings
from unified.tree import Place, located

#: a tracker of accelerate -> the module that it needs, and what to install
TRACKERS = {
    "aim": ("aim", "aim"),
    "clearml": ("clearml", "clearml"),
    "comet_ml": ("comet_ml", "comet-ml"),
    "dvclive": ("dvclive", "dvclive"),
    "mlflow": ("mlflow", "mlflow"),
    "swanlab": ("swanlab", "swanlab"),
    "tensorboard": ("tensorboard", "tensorboard"),
    "trackio": ("trackio", "trackio"),
    "wandb": ("wandb", "wandb"),
}
#: the keyword by which a tracker's own start is told the name of the run, beside that of the project
_NAMED_BY = {"mlflow": "run_name", "swanlab": "experiment_name", "trackio": "name", "wandb": "name"}
#: metrics that the trainers of the field call otherwise (here: TRL's) -> their name
NAMES = {
    "seconds": "step_time",
    "clip_ratio": "clip_ratio/region_mean",
    "policy_kl": "policy/approxkl_avg",
    "value_clip_ratio": "val/clipfrac_avg",
    "score": "mean_reward",
}


def tracker_problems(settings: TrainSettings) -> list[Problem]:
    """Trackers that nobody knows, or that are not installed."""
    problems = []
    for i, name in enumerate(settings.report_to):
        if name not in TRACKERS:
            problems.append(unknown_name("tracker", name, TRACKERS, at=("report_to", i)))
        elif find_spec(TRACKERS[name][0]) is None:
            hint = f"pip install {TRACKERS[name][1]}"
            problems.append(Problem(f"tracker '{name}' is not installed", ("report_to", i), (hint,)))
    return problems


def tracked_name(name: str) -> str:
    """What a metric is called there: held-out ones eval/NAME, others train/NAME, as transformers does."""
    if name.startswith("eval/"):
        return name
    if name.startswith("reward/"):
        return f"train/rewards/{name.removeprefix('reward/')}/mean"
    return f"train/{NAMES.get(name, name)}"


def sent_settings(settings: TrainSettings) -> dict[str, Any]:
    """Settings as `a.b: value`, without secrets; lists and mappings that are empty are left out."""
    node = located(settings.model_dump(mode="json"), Place("settings"))
    hidden = {text for _, text, _ in secrets_in(node)}
    out: dict[str, Any] = {}

    def put(at: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, item in value.items():
                put(f"{at}.{key}" if at else str(key), item)
        elif isinstance(value, list):
            if value:
                out[at] = clean(json.dumps(value, ensure_ascii=False))
        elif value is not None:
            out[at] = clean(value) if isinstance(value, str) else value

    def clean(text: str) -> str:
        for secret in hidden:
            text = text.replace(secret, MASK)
        return masked(text)

    put("", node.plain())
    return out


@contextmanager
def tracked(stage: StageContext, settings: TrainSettings) -> Iterator[StageContext]:
    """The surroundings of a stage, whose metrics go to the trackers that its settings name, of the main process."""
    if not settings.report_to:
        yield stage
        return
    from accelerate import PartialState

    if not PartialState().is_main_process:
        yield stage
        return
    trackers = _Trackers(stage)
    for name in settings.report_to:
        trackers.start(name, settings, _logging_dir(stage))
    try:
        yield replace(stage, log=trackers.log)
    finally:
        trackers.finish()


@dataclass
class _Trackers:
    """The trackers that have not failed. tokens: all that the stage has learnt from; None before the first line."""

    stage: StageContext
    tokens: float | None = None
    open: dict[str, Any] = field(default_factory=dict)

    def start(self, name: str, settings: TrainSettings, folder: Path) -> None:
        """Open one, and tell it the settings."""
        run = settings.run_name or self.stage.name
        with self._surviving(name):
            from accelerate.tracking import LOGGER_TYPE_TO_CLASS

            cls: Any = LOGGER_TYPE_TO_CLASS[name]
            if cls.requires_logging_directory:
                folder.mkdir(parents=True, exist_ok=True)
                made = cls(run, str(folder))
            else:
                made = cls(settings.project, **({_NAMED_BY[name]: run} if name in _NAMED_BY else {}))
            if hasattr(made, "start"):
                made.start()
            self.open[name] = made
            made.store_init_configuration(
                {"stage": self.stage.name, "seed": self.stage.seed, **sent_settings(settings)}
            )

    def log(self, row: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl."""
        values = {
            tracked_name(name): value
            for name, value in row.items()
            if name not in ("step", "tokens") and isinstance(value, (int, float))
        }
        if "tokens" in row:
            before = _tokens_in(self.stage.folder) - row["tokens"] if self.tokens is None else self.tokens
            self.tokens = before + row["tokens"]
            values["train/num_tokens"] = self.tokens
        for name in list(self.open):
            with self._surviving(name):
                self.open[name].log(values, step=int(row["step"]))

    def finish(self) -> None:
        """Close them, so that what they hold back is written."""
        for name in list(self.open):
            with self._surviving(name):
                self.open[name].finish()
        self.open.clear()

    @contextmanager
    def _surviving(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is: the run is worth more than its curves
            self.open.pop(name, None)
            what = (str(error).strip() or type(error).__name__).splitlines()[0]
            self.stage.say(
                f"{self.stage.name}: tracker '{name}' failed and gets no more metrics ({type(error).__name__}: "
                f"{masked(cut_short(what))}); the run goes on, and metrics.jsonl has them all"
            )


def _logging_dir(stage: StageContext) -> Path:
    """Where trackers that write files do so: logs/ in the run's folder. A recipe names no place to write to."""
    return (stage.cache.parent if stage.cache is not None else stage.folder.parent) / "logs"


def _tokens_in(folder: Path) -> float:
    """Tokens that the stage has learnt from, those before it was stopped among them."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return sum(json.loads(line).get("tokens") or 0.0 for line in lines)
