"""Faults put into every kind of part, in the third step of a small run, and what became of each.

    python -m tests.reliability.faults

Each fault is a row of `FAULTS`: it is put into a plugin, the run is made with the command line's own function, what it
says and leaves is looked at, then the plugin is mended and the same command run again: it must end with the weights of
a run that was never broken. The last line is JSON: {"faults": n, "by_kind": {...}, "as_expected": n}.
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from typer.testing import CliRunner

from tests import strangers
from tests.tools import letter_tokenizer
from unified import Algorithm, Dataset, DataSource, Reward, RolloutEngine, Rule, StageResult, hookimpl
from unified.cli import app
from unified.registry import Catalogue, using

TINY = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32}  # fmt: skip
ONLINE: dict[str, Any] = {"algorithm": "whole", "source": {"name": "sampled", "group_size": 3}, "reward": "vowels"}
LOSS: dict[str, Any] = {"algorithm": "by_loss"}
STEP: dict[str, Any] = {"algorithm": "by_step"}
COMMON = {"data": "letters", "batch_size": 4, "max_steps": 4, "save_steps": 1, "learning_rate": 1e-2}

Good = Callable[[], Any]


@dataclass(frozen=True)
class Fault:
    """One fault: into which function of which part, how it breaks what the function gives, and what must follow.

    breaks(good, given): in the place of the function; `good()` is what it would give, `given` its arguments.
    call: the call from which on it is broken, that of step 3 (`loss` is called twice a step: for its gradient and
    for the log). step: False for what is called before the steps.
    code: exit code of the command. says: texts that its message must hold, beside plugin, stage and step.
    """

    part: str
    kind: str
    place: str
    breaks: Callable[[Good, dict[str, Any]], Any]
    code: int
    says: tuple[str, ...]
    recipe: dict[str, Any] = field(default_factory=lambda: dict(ONLINE))
    settings: dict[str, Any] = field(default_factory=dict)
    step: bool = True
    call: int = 3

    @property
    def name(self) -> str:
        """As it stands in the table."""
        return f"{self.part}: {self.kind}"


class Plugin(strangers.Plugin):
    """The stranger's plugin with a fault in it, or without one."""

    def __init__(self, fault: Fault | None = None) -> None:
        self.fault = fault
        self.calls: Counter[str] = Counter()
        self.stuck: set[int] = set()

    def of(self, place: str, function: Callable[..., Any]) -> Any:
        """The function; broken from the call of step 3 on where the fault is put there."""

        @functools.wraps(function)
        def called(**given: Any) -> Any:
            self.calls[place] += 1
            fault = self.fault
            if fault is None or fault.place != place or (self.calls[place] < fault.call and fault.step):
                return function(**given)
            return fault.breaks(lambda: function(**given), given | {"plugin": self})

        called.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
        return called

    @hookimpl
    def unified_algorithms(self) -> list[Algorithm]:
        """One with every function but a loss, one with nothing else, one with statistics."""
        reads = frozenset({"logp", "old_logp"})
        whole = Algorithm(
            "whole", strangers.Strength, coefficient=self.of("coefficient", strangers.clipped),
            credit=self.of("credit", strangers.above_mean), metrics=self.of("metrics", strangers.depth),
            update=self.of("update", strangers.count_updates), initial_state=lambda: {"updates": 0.0}, reads=reads,
            source="sampled", reward="required",
        )  # fmt: skip
        loss = Algorithm("by_loss", loss=self.of("loss", strangers.imitate_loss), reads=frozenset({"logp"}))
        step = Algorithm(
            "by_step", strangers.Strength, coefficient=strangers.centred,
            statistics=self.of("statistics", strangers.mean_log_ratio), reads=frozenset({"logp", "ref_logp"}),
            aggregation="sequence-sum", scope="step",
        )  # fmt: skip
        return [whole, loss, step]

    @hookimpl
    def unified_rules(self) -> list[Rule]:
        """A filter."""
        return [Rule("every", of="filter", value=self.of("filter", lambda groups: groups))]

    @hookimpl
    def unified_datasets(self) -> list[Dataset]:
        """Letters, with their tokenizer."""
        return [
            Dataset(
                "letters", open=self.of("open", strangers.letters), remote=True, tokenizer=lambda: letter_tokenizer()
            )
        ]

    @hookimpl
    def unified_sources(self) -> list[DataSource]:
        """Rows, and samples."""
        sampled = self.of("collect", strangers.sampled)
        return [
            DataSource("rows", collect=strangers.as_they_stand),
            DataSource("sampled", strangers.Samples, collect=sampled, online=True),
        ]

    @hookimpl
    def unified_rewards(self) -> list[Reward]:
        """Share of vowels, and what stands in the data."""
        return [
            Reward("vowels", judge=self.of("judge", strangers.vowels)),
            Reward("given", judge=strangers.in_the_data),
        ]

    @hookimpl
    def unified_engines(self) -> list[RolloutEngine]:
        """In process."""
        return [RolloutEngine("transformers", generate=self.of("generate", strangers.one_by_one))]

    @hookimpl
    def unified_stages(self) -> list[Any]:
        """Training."""
        (kind,) = super().unified_stages()
        return [replace(kind, run=self.of("run", lambda stage, settings: kind.run(stage, settings)))]  # type: ignore[misc]

    @hookimpl
    def step_finished(self, step: int) -> None:
        """An event."""
        self.of("event", lambda step: None)(step=step)


# --- ways to break ---


def raises(good: Good, given: dict[str, Any]) -> Any:
    """An exception that means nothing to the engine."""
    raise KeyError("solution")


def hangs(good: Good, given: dict[str, Any]) -> Any:
    """Never comes back where the first prompt of the third batch is among those it is asked about."""
    plugin, keys = given["plugin"], {g.key for g in given["groups"]}
    plugin.stuck = plugin.stuck or {given["groups"][0].key}
    while plugin.stuck & keys:
        pass
    return good()


def hangs_always(good: Good, given: dict[str, Any]) -> Any:
    """Never comes back, and takes whatever is thrown at it for an ordinary failure."""
    while True:
        try:
            sum(range(1000))
        except Exception:
            continue


def gives(value: Any) -> Callable[[Good, dict[str, Any]], Any]:
    """Something else altogether."""
    return lambda good, given: value


def made(change: Callable[[Any], Any]) -> Callable[[Good, dict[str, Any]], Any]:
    """What it would give, changed."""
    return lambda good, given: change(good())


def first(value: Any) -> Callable[[Any], Any]:
    """The first judgement is another."""
    return lambda lists: [[value, *lists[0][1:]], *lists[1:]]


def at_first(value: float) -> Callable[[Any], Any]:
    """The first number of a tensor, or of every tensor of a mapping, is another."""

    def change(given: Any) -> Any:
        if isinstance(given, dict):
            return {k: change(v) for k, v in given.items()}
        flat = given.double().flatten().clone()
        flat[0] = value
        return flat.view(given.shape)

    return change


def each(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Every value of a mapping is another."""
    return lambda given: {k: change(v) for k, v in given.items()}


def _answers(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The first answer of an engine is another."""
    return lambda lists: [[change(lists[0][0]), *lists[0][1:]], *lists[1:]]


META = torch.device("meta")
NAN, INF = float("nan"), float("inf")
PLACE = ("prompt ", "answer ")
REWARD = ("reward 'vowels' (plugin faulty)",)
ENGINE = ("engine 'transformers' (plugin faulty)",)
SOURCE = ("source 'sampled' (plugin faulty)",)
WHOLE = ("algorithm 'whole' (plugin faulty)",)
BY_LOSS, BY_STEP = ("algorithm 'by_loss' (plugin faulty)",), ("algorithm 'by_step' (plugin faulty)",)
FILTER = ("filter 'every' (plugin faulty)",)
FILTERED = {**ONLINE, "filters": ["every"]}
QUICK = {"reward_timeout": 1.0}
SKIP = {"nonfinite": "skip"}

FAULTS = [
    Fault("reward", "raises", "judge", raises, 1, (*REWARD, "KeyError", "faults.py:")),
    Fault("reward", "hangs on one prompt", "judge", hangs, 0, ("dropped/missing",), settings=QUICK),
    Fault("reward", "hangs on all", "judge", hangs_always, 2, (*REWARD, "took longer than"), settings=QUICK),
    Fault("reward", "wrong shape", "judge", made(lambda lists: lists[1:]), 1, (*REWARD, "judgements for")),
    Fault("reward", "wrong type", "judge", made(first("good")), 1, (*REWARD, "'good'")),
    Fault("reward", "NaN", "judge", made(first(NAN)), 2, (*REWARD, "nan", *PLACE)),
    Fault("reward", "NaN, skipped", "judge", made(first(NAN)), 0, ("nonfinite/reward",), settings=SKIP),
    Fault("credit", "NaN, skipped", "credit", made(at_first(NAN)), 0, ("nonfinite/advantage",), settings=SKIP),
    Fault("coefficient", "NaN, skipped", "coefficient", made(at_first(NAN)), 0,
          ("nonfinite/coefficient", "steps_skipped"), settings=SKIP),
    Fault("reward", "infinity", "judge", made(first(-INF)), 2, (*REWARD, "-inf", *PLACE)),
    Fault("reward", "wrong device", "judge", made(first(torch.zeros((), device=META))), 1, (*REWARD, "meta")),
    Fault("engine", "raises", "generate", raises, 1, (*ENGINE, "KeyError", "faults.py:")),
    Fault("engine", "wrong shape", "generate", made(lambda of: [a[1:] for a in of]), 1, (*ENGINE, "it must give 3")),
    Fault("engine", "wrong type", "generate", made(_answers(lambda a: a.text)), 1, (*ENGINE, "a str", *PLACE)),
    Fault("engine", "unknown token", "generate", made(_answers(lambda a: replace(a, ids=[999] * len(a.ids)))), 1,
          (*ENGINE, "999", *PLACE)),
    Fault("engine", "NaN", "generate", made(_answers(lambda a: replace(a, sampling_logp=[NAN] * len(a.ids)))), 2,
          (*ENGINE, "sampling_logp", "nan", *PLACE, "token 0")),
    Fault("source", "raises", "collect", raises, 1, (*SOURCE, "KeyError")),
    Fault("source", "wrong shape", "collect", gives(None), 1, (*SOURCE, "NoneType")),
    Fault("source", "wrong type", "collect", made(lambda of: [g.text for g in of]), 1, (*SOURCE, "list of str")),
    Fault("filter", "raises", "filter", raises, 1, (*FILTER, "KeyError"), FILTERED),
    Fault("filter", "wrong type", "filter", gives(True), 1, (*FILTER, "bool"), FILTERED),
    Fault("coefficient", "raises", "coefficient", raises, 1, (*WHOLE, "KeyError")),
    Fault("coefficient", "wrong shape", "coefficient", made(lambda x: x[:, :1]), 1, (*WHOLE, "it must be [batch]")),
    Fault("coefficient", "wrong type", "coefficient", made(lambda x: x.tolist()), 1, (*WHOLE, "gave list")),
    Fault("coefficient", "complex", "coefficient", made(lambda x: x.to(torch.complex64)), 1, (*WHOLE, "complex64")),
    Fault("coefficient", "NaN", "coefficient", made(at_first(NAN)), 2, (*WHOLE, "nan", *PLACE, "token 0")),
    Fault("coefficient", "infinity", "coefficient", made(at_first(INF)), 2, (*WHOLE, "inf", *PLACE, "token 0")),
    Fault("coefficient", "wrong device", "coefficient", made(lambda x: x.to(META)), 1, (*WHOLE, "meta", "cpu")),
    Fault("loss", "raises", "loss", raises, 1, (*BY_LOSS, "KeyError"), LOSS, call=5),
    Fault("loss", "wrong shape", "loss", made(lambda x: x.mean()), 1, (*BY_LOSS, "unreduced"), LOSS, call=5),
    Fault("loss", "wrong type", "loss", gives(0.5), 1, (*BY_LOSS, "gave float"), LOSS, call=5),
    Fault("loss", "NaN", "loss", made(lambda x: x * NAN), 2, (*BY_LOSS, "nan", *PLACE), LOSS, call=5),
    Fault("credit", "raises", "credit", raises, 1, (*WHOLE, "KeyError")),
    Fault("credit", "wrong shape", "credit", made(each(lambda v: v[1:])), 1, (*WHOLE, "loss_mask")),
    Fault("credit", "wrong type", "credit", made(each(torch.Tensor.tolist)), 1, (*WHOLE, "as list")),
    Fault("credit", "NaN", "credit", made(at_first(NAN)), 2, (*WHOLE, "advantage", "nan", *PLACE)),
    Fault("credit", "wrong device", "credit", made(each(lambda v: v.to(META))), 1, (*WHOLE, "meta")),
    Fault("statistics", "raises", "statistics", raises, 1, (*BY_STEP, "KeyError"), STEP),
    Fault("statistics", "wrong type", "statistics", gives([1.0]), 1, (*BY_STEP, "gave list"), STEP),
    Fault("statistics", "NaN", "statistics", made(each(lambda v: v * NAN)), 2,
          (*BY_STEP, "mean", "not a number"), STEP),
    Fault("metrics", "raises", "metrics", raises, 1, (*WHOLE, "KeyError")),
    Fault("metrics", "wrong shape", "metrics", gives({"depth": 1.0}), 1, (*WHOLE, "(sum, count)")),
    Fault("update", "raises", "update", raises, 1, (*WHOLE, "KeyError")),
    Fault("update", "wrong type", "update", gives(None), 1, (*WHOLE, "NoneType")),
    Fault("update", "NaN", "update", made(lambda d: {**d, "updates": NAN}), 1, (*WHOLE, "updates = nan")),
    Fault("dataset", "raises", "open", raises, 1, ("dataset 'letters' (plugin faulty)", "KeyError"), step=False),
    Fault("event", "raises", "event", raises, 1, ("plugin 'faulty' raised in step_finished", "KeyError")),
    Fault("stage", "raises", "run", raises, 1, ("plugin faulty raised KeyError",), step=False),
    Fault("stage", "wrong type", "run", gives(StageResult), 1, ("plugin faulty", "StageResult"), step=False),
]  # fmt: skip


# --- running ---


@dataclass(frozen=True)
class Became:
    """What became of a fault: exit code and words of the command; whether it was as expected, or why not."""

    code: int
    said: str
    wrong: tuple[str, ...]


def command(folder: Path, fault: Fault | None, recipe: dict[str, Any], settings: dict[str, Any]) -> tuple[int, str]:
    """Exit code and output of `unified run`, with the fault in the plugin or without one."""
    written = {"name": "faults", "model": {"new": TINY, "tokenizer": "letters"},
               "stages": {"rl": {**COMMON, **recipe, **settings}}}  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(written))
    with using(Catalogue({"faulty": Plugin(fault)}, installed=False)):
        result = CliRunner().invoke(app, ["run", str(folder / "recipe.yaml"), "--output", str(folder / "run")])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of the model that a run has made."""
    from safetensors.torch import load_file

    (path,) = (folder / "run").glob("*rl/model/model.safetensors")
    return load_file(path)


def inject(fault: Fault, folder: Path) -> Became:
    """Run with the fault and look at what it says and leaves."""
    code, said = command(folder, fault, fault.recipe, fault.settings)
    wrong = [] if code == fault.code else [f"exit code {code}, not {fault.code}"]
    (stage,) = (p for p in (folder / "run").glob("*rl") if p.is_dir())
    where = said
    if fault.code == 0:
        where = (stage / "metrics.jsonl").read_text()
        if len(where.splitlines()) != COMMON["max_steps"]:
            wrong.append(f"{len(where.splitlines())} lines of metrics")
    else:
        named = "stage 'rl'" + (", step 3" if fault.step and fault.part != "event" else "")
        wrong += [] if named in said else [f"does not say {named}"]
        wrong += ["the stage is said twice"] if said.count("stage 'rl'") > 1 and fault.part != "event" else []
        wrong += ["shows a traceback"] if "Traceback" in said else []
        if fault.kind == "raises" and "Traceback" not in (stage / "error.log").read_text():
            wrong.append("no traceback in error.log")
    wrong += [f"does not say {text!r}" for text in fault.says if text not in where]
    return Became(code, said, tuple(wrong))


def mended(fault: Fault, folder: Path, straight: dict[str, torch.Tensor]) -> tuple[str, ...]:
    """Run the same again without the fault, and compare with a run that was never broken."""
    code, said = command(folder, None, fault.recipe, fault.settings)
    if code:
        return (f"after the fix: exit code {code}: {said[-300:]}",)
    found = weights(folder)
    wrong = [] if "goes on where it was cut off" in said or not fault.step else ["it started over after the fix"]
    return (
        *wrong,
        *("other weights after the fix" for name in straight if not torch.equal(found[name], straight[name])),
    )


def straight_run(folder: Path, fault: Fault) -> dict[str, torch.Tensor]:
    """The weights of a run that nothing breaks."""
    folder.mkdir(parents=True)
    code, said = command(folder, None, fault.recipe, fault.settings)
    assert code == 0, said
    return weights(folder)


def main() -> int:
    """Print a line for every fault, and the counts."""
    as_expected, straight = 0, {}
    kinds: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number, fault in enumerate(FAULTS):
            key = json.dumps([fault.recipe, fault.settings], sort_keys=True)
            folder = Path(scratch) / str(number)
            if key not in straight:
                straight[key] = straight_run(folder / "straight", fault)
            (folder / "broken").mkdir(parents=True)
            became = inject(fault, folder / "broken")
            wrong = became.wrong + (mended(fault, folder / "broken", straight[key]) if became.code else ())
            as_expected += not wrong
            ended = "left out and counted" if not became.code else "named, stopped, went on after the fix"
            what = "; ".join(wrong) or ended
            kinds.setdefault(fault.kind, Counter())["not as promised" if wrong else ended] += 1
            print(f"{fault.name:34} exit {became.code}  {what}", flush=True)
            if wrong:
                print("    " + became.said.strip().replace("\n", "\n    "))
    print(json.dumps({"faults": len(FAULTS), "by_kind": kinds, "as_expected": as_expected}))
    return int(as_expected < len(FAULTS))


if __name__ == "__main__":
    sys.exit(main())
