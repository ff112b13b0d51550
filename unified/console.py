"""What a person sees of a run: a progress bar (or plain lines), and one table at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from unified.runner import Outcome

#: (what it is called here, names of the metric that may hold it in the order of preference, how it is written)
SHOWN = (
    ("reward", ("reward",), "{:.3f}"),
    ("kl", ("kl", "policy_kl"), "{:.4f}"),
    ("loss", ("loss",), "{:.4f}"),
    ("length", ("completions/mean_length", "length"), "{:.1f}"),
    ("tokens/s", ("tokens_per_second",), "{:.0f}"),
)
#: seconds between lines where there is no terminal
INTERVAL_S = 5.0


class RunConsole:
    """Shows a run. `silent`: nothing but the final table; a terminal gets a progress bar, anything else plain lines."""

    def __init__(self, console: Console | None = None, *, silent: bool = False) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.silent = silent
        self.clock: Callable[[], float] = time.monotonic
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._said_at = float("-inf")
        self._began = 0.0
        self._first_step: int | None = None

    def __enter__(self) -> RunConsole:
        if self.console.is_terminal and not self.silent:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False), BarColumn(bar_width=20), MofNCompleteColumn(),
                TextColumn("{task.fields[shown]}", markup=False), TimeRemainingColumn(),
                console=self.console, transient=True,
            )  # fmt: skip
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def say(self, text: str) -> None:
        """One line."""
        if not self.silent:
            self.console.print(Text(text))

    def skipped(self, stage: str, why: str) -> None:
        """A stage is not run because its result is there."""
        self.say(f"{stage}: {why}")

    def stage_begins(self, stage: str, number: int, of: int, words: str, *, resumes: bool) -> None:
        """A stage starts, or goes on where it was cut off."""
        self.say(f"[{number}/{of}] {words}{' (goes on where it was cut off)' if resumes else ''}")
        self._stage, self._began, self._first_step = stage, self.clock(), None
        self._said_at = float("-inf")  # the first step is shown when it is done
        if self._bar is not None:
            self._task = self._bar.add_task(stage, total=None, shown="")

    def progress(self, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        """A step is done: `step` of `steps`, with its metrics."""
        if self.silent:
            return
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, total=steps, shown=shown(metrics))
            return
        now = self.clock()
        if self._first_step is None:  # time left is judged from what ran now, not from what an earlier run did
            self._first_step, self._began = step, now
        if now - self._said_at < INTERVAL_S and step < steps:
            return
        self._said_at = now
        done = step - self._first_step
        left = f"  {duration((now - self._began) / done * (steps - step))} left" if done > 0 and step < steps else ""
        self.console.print(Text(f"{self._stage} {step}/{steps}  {shown(metrics)}{left}"))

    def stage_ends(self, stage: str, seconds: float) -> None:
        """A stage is done."""
        if self._bar is not None and self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
        self.say(f"{stage}: done in {duration(seconds)}")

    def table(self, outcomes: Sequence[Outcome], output: Path) -> None:
        """Per stage: what was measured on held-out rows, KL to its reference, time; then where the result lies."""
        table = Table("stage", "kind", "held-out", "KL to reference", "time")
        for outcome in outcomes:
            manifest = outcome.manifest
            when = duration(manifest.seconds) + ("" if outcome.fresh else " (earlier)")
            table.add_row(
                *(
                    Text(t)
                    for t in (manifest.name, _kind(manifest.settings, manifest.kind), held_out(manifest.summary))
                ),
                _kl(manifest.summary),
                when,
            )
        self.console.print(table)
        for outcome in outcomes:
            told = outcome.manifest.summary.get("warnings") or {}
            if told:
                said = ", ".join(f"{kind} {times}" for kind, times in told.items())
                where = "their texts are in `unified status`"
                self.console.print(Text(f"{outcome.manifest.name}: warnings: {said}; {where} {output}"))
        models = [o for o in outcomes if o.manifest.model]
        if models:
            last = models[-1]
            model = last.folder / str(last.manifest.model)
            self.console.print(
                Text(f"The last model is in {model}; metrics, samples and manifests lie beside each model.")
            )
            self.console.print(
                Text(f"Next: train it further with  unified train ALGORITHM --model {model} --data DATA")
            )
            if last.manifest.model_kind == "policy":
                self.console.print(Text(f"  or ask it with  unified chat {model}"))
            self.console.print(Text(f"  or give it away with  unified export {model} FOLDER"))
        else:
            self.console.print(Text(f"The results are in {output}."))


def shown(metrics: Mapping[str, float]) -> str:
    """The metrics that a progress line holds, as far as they are there; the loss only where there is no reward."""
    out = []
    for label, names, form in SHOWN:
        if label == "loss" and "reward" in metrics:
            continue
        value = next((metrics[n] for n in names if isinstance(metrics.get(n), (int, float))), None)
        if value is not None:
            out.append(f"{label} {form.format(value)}")
    return "  ".join(out)


def held_out(summary: Mapping[str, Any]) -> str:
    """What was measured on held-out rows: reward before accuracy before loss, each only if it is there.

    With the step whose weights were kept, where that was not the last one.
    """
    measured = {k.removeprefix("eval/"): v for k, v in summary.items() if k.startswith("eval/") and _is_number(v)}
    accuracy = [k for k in measured if k.rpartition("/")[2].startswith("accurac")]
    best = summary.get("best_step")  # what is measured is of the weights that were kept, not of the last step
    kept = f" (step {best})" if best is not None and best != summary.get("steps") else ""
    for label, names in (("reward", ["reward"]), ("accuracy", accuracy), ("loss", ["loss"])):
        for name in names:
            if name in measured:
                return f"{label} {measured[name]:.3f}{kept}"
    return next((f"{k} {v:.3f}{kept}" for k, v in measured.items()), "-")


def duration(seconds: float) -> str:
    """Seconds as a person writes them: 4.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _kind(settings: Mapping[str, Any], kind: str) -> str:
    """The algorithms of a stage, or its kind where it has none."""
    one = settings.get("algorithm")
    if isinstance(one, Mapping):
        return str(one.get("name", kind))
    terms = settings.get("terms")
    names = [t["algorithm"]["name"] for t in terms if isinstance(t, Mapping) and "algorithm" in t] if terms else []
    return " + ".join(names) or kind


def _kl(summary: Mapping[str, Any]) -> str:
    """Nats per answer on held-out rows; else those of the last training batch, which are per token, and say so."""
    for name, unit in (("eval/kl", ""), ("last/kl", " a token")):
        if _is_number(summary.get(name)):
            return f"{summary[name]:.4f}{unit}"
    return "-"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
