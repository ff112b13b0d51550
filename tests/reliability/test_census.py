"""State census: what a run is after it went on from a checkpoint is what it was when that was written, everywhere.

Tiny stages of many kinds are trained, and at a checkpoint everything that can be reached from the run is noted; a new
run that goes on from it must be the same at every place. An attribute that training changes and that no checkpoint
keeps is found by this without being named anywhere. DERIVED lists what may differ, with the reason.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import unified.loop
from tests.reliability.census import census, changed
from tests.tools import stage, train_settings
from unified import checkpoint
from unified.models import base_artifact
from unified.packing import Tensors, pack, read_packed
from unified.running import Run
from unified.set_up import set_up
from unified.settings import parse
from unified.stage import ModelSettings

MODEL = {
    "new": {
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 40,
    },
    "tokenizer": "random_walks",
}  # fmt: skip
WALKS = {"name": "random_walks", "rows": 40, "held_out_rows": 12}
OTHER = {**WALKS, "graph_seed": 1}
PROMPTS = {"name": "random_walks", "view": "prompts"}
ONLINE = {"data": PROMPTS, "reward": {"name": "length", "target": 3, "width": 4},
          "source": {"name": "rollouts", "group_size": 4, "max_tokens": 6}}  # fmt: skip
MEASURED = {"reward": ONLINE["reward"], "num_prompts": 4, "max_tokens": 6}

#: a stage of every kind that keeps state of its own
STAGES: dict[str, dict[str, Any]] = {
    "adaptive KL, entropy control, several steps on a batch, a renewed reference": {
        **ONLINE, "algorithm": {"name": "grpo", "kl_weight": 0.1, "kl_target": 0.01, "entropy_target": 1.0},
        "batch_size": 3, "collect_size": 6, "inner_epochs": 2, "ref_sync_steps": 4, "refill": 1,
        "evaluation": MEASURED, "eval_steps": 2, "metric_for_best_model": "eval/reward",
    },
    "a critic, with imitation of rows of its own beside it": {
        **ONLINE, "batch_size": 3, "inner_epochs": 2, "ref_sync_steps": 3,
        "terms": [{"algorithm": "ppo"}, {"algorithm": "sft", "data": WALKS, "per_step": 2, "weight": 0.5}],
    },
    "a running mean of rewards": {"algorithm": "bco", "data": {**WALKS, "view": "judged"}, "batch_size": 4},
    "log-probs that are kept of fixed rows, best weights by a loss": {
        "algorithm": "dpo", "data": {**WALKS, "view": "pairs"}, "batch_size": 10, "collect_size": 20,
        "evaluation": {"num_prompts": 6}, "eval_steps": 1, "metric_for_best_model": "eval/loss",
        "greater_is_better": False, "optim": "RMSprop",
    },
    "the teacher's likeliest tokens, kept": {
        "algorithm": {"name": "distill_forward", "support": "teacher", "top_k": 3}, "teacher": "teacher",
        "data": WALKS, "batch_size": 8, "collect_size": 16, "dropout": 0.1,
    },
    "rows that stay in their file, some too long": {
        "algorithm": "sft", "data": {"name": "files", "path": "rows.jsonl", "streaming": True}, "too_long": "drop",
        "max_length": 12, "batch_size": 4, "lr_scheduler_type": "cosine", "warmup_steps": 2,
    },
    "a mixture": {
        "algorithm": "sft", "batch_size": 4, "optim": "sgd",
        "data": {"name": "mixture", "sources": [{"data": WALKS, "weight": 2.0}, {"data": OTHER, "name": "other"}]},
    },
    "self-play": {
        "algorithm": "dpo", "data": WALKS, "source": {"name": "self_play", "max_tokens": 6}, "reward": "self_play",
        "batch_size": 3, "collect_size": 6,
    },
    "a reward model": {"algorithm": "reward_model", "data": {**WALKS, "view": "ranked"}, "batch_size": 4},
}  # fmt: skip

#: places that may differ after a checkpoint, and why nothing follows from them
DERIVED = {
    r"run\.stage\.(notify|progress|folder|home|artifact|say)": "surroundings of this process",
    r"run\.streams\[\d+\]\._order": "the order of a pass: follows from seed and position, drawn again when it is asked",
    r"run\.optimizer\._opt_called": "torch warns by it where a schedule steps before any optimiser step",
    r"run\.rollouts\.": "what an engine elsewhere holds: a run that goes on pushes anew",
    r"run\.collected\.seconds": "what a clock says",
    r"run\.collected\.table\.groups\[\d+\]\.(columns|messages|reasons)": "nobody looks at them after the judgement",
    r"run\.collected\.table\.groups\[\d+\]\.answers\[\d+\]\.sampling_logp": "stands in the batch from `tabulate` on",
    r"run\.collected\.table\.(costs|shares)": "follows from the rows when it is asked",
}


class Cut(Exception):  # noqa: N818 - nothing went wrong
    """Raised by a test at a checkpoint."""


def artifacts() -> dict[str, Any]:
    settings, problems = parse(ModelSettings, MODEL, owner="model")
    assert not problems
    assert isinstance(settings, ModelSettings)
    return {name: base_artifact(settings, Path(), seed) for seed, name in enumerate(("base", "teacher"))}


def settings_of(written: dict[str, Any]) -> Any:
    return train_settings(**{"learning_rate": 1e-2, "max_steps": 9, "save_steps": 1} | written)


def rows_file(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    walks = ["abc", "bcadcfghijklmno", "ca", "da", "eba", "fghijklmnopqrs"] * 6
    rows = [{"prompt": walk[0], "completion": " ".join(walk[1:])} for walk in walks]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def cut_at(folder: Path, written: dict[str, Any], number: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Train up to a checkpoint of this number; the census at that moment."""
    rows_file(folder)
    runs: list[Run] = []
    real = set_up
    monkeypatch.setattr(unified.loop, "set_up", lambda *a: runs.append(real(*a)) or runs[-1])
    context = stage(folder, artifacts())
    found: list[dict[str, str]] = []

    def notify(event: str, **_: Any) -> None:
        if event == "checkpoint_saved":
            found.append(census(runs[0]))
            if len(found) == number:
                raise Cut

    context.notify = notify
    with pytest.raises(Cut):
        unified.loop.train(context, settings_of(written))
    return found[-1]


def fresh(folder: Path, written: dict[str, Any]) -> Run:
    return set_up(stage(folder, artifacts()), settings_of(written))


def unexplained(places: list[str]) -> list[str]:
    return [place for place in places if not any(re.match(pattern, place) for pattern in DERIVED)]


@pytest.mark.parametrize("number", [3, 6])
@pytest.mark.parametrize("kind", STAGES)
def test_a_run_that_goes_on_is_what_it_was_at_every_place(
    kind: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    was = cut_at(tmp_path, STAGES[kind], number, monkeypatch)
    run = fresh(tmp_path, STAGES[kind])
    begun = census(run)
    moved = changed(begun, was)
    for expected in ("run.step", "run.optimizer", "run.model", "run.streams[0].position"):
        assert any(place.startswith(expected) for place in moved), f"{expected} did not change: nothing was looked at"
    assert checkpoint.resume(run)
    assert unexplained(changed(census(run), was)) == []


#: (kind of stage, number of its checkpoint) at which together every part of the state has moved
MOVED = (
    ("adaptive KL, entropy control, several steps on a batch, a renewed reference", 6),
    ("log-probs that are kept of fixed rows, best weights by a loss", 5),
    ("the teacher's likeliest tokens, kept", 5),
    ("rows that stay in their file, some too long", 6),
)
#: parts that move only where something goes wrong
QUIET = {"guard"}


def test_the_census_misses_every_part_of_the_state_that_is_not_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noticed: set[str] = set()
    for number, (kind, at) in enumerate(MOVED):
        folder = tmp_path / str(number)
        was = cut_at(folder, STAGES[kind], at, monkeypatch)
        begun = fresh(folder, STAGES[kind])
        _, groups, _ = begun.wrapper.state()
        rest = {name: {"step": torch.zeros(())} for name, _ in begun.wrapper._parameters()}
        first = {**checkpoint.state_of(begun), **checkpoint.state_of_process(begun)}
        first["optimizer"] = {"groups": groups, "rest": rest}
        kept = folder / "checkpoint" / checkpoint.steps_in(folder / "checkpoint")[0]
        last = {**read_packed(kept, "state"), **read_packed(kept, "process-0")}
        assert first.keys() == last.keys()
        for part in first:
            if part not in noticed and packed(first[part]) != packed(last[part]):
                run = fresh(folder, STAGES[kind])
                with monkeypatch.context() as patch:
                    patch.setattr(checkpoint, "read_packed", forgetting(part, first[part]))
                    patch.setattr(checkpoint, "_cut_off", lambda *_: None)
                    assert checkpoint.resume(run)
                assert unexplained(changed(census(run), was)), f"nothing was missed without '{part}'"
                noticed.add(part)
    assert noticed == first.keys() - QUIET


@pytest.mark.parametrize(
    ("forgotten", "instead"),
    [("_load_weights", lambda *_: None), ("_read_state", lambda _, __, start, stop: torch.zeros(stop - start))],
)
def test_the_census_misses_weights_and_moments_that_are_not_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgotten: str, instead: Any
) -> None:
    kind, at = MOVED[0]
    was = cut_at(tmp_path, STAGES[kind], at, monkeypatch)
    run = fresh(tmp_path, STAGES[kind])
    monkeypatch.setattr(checkpoint, forgotten, instead)
    assert checkpoint.resume(run)
    assert unexplained(changed(census(run), was))


def packed(value: Any) -> tuple[str, dict[str, str]]:
    tensors = Tensors()
    tree = pack(value, tensors, "x")
    return json.dumps(tree), {name: repr(tensor.tolist()) for name, tensor in tensors.items()}


def forgetting(part: str, value: Any) -> Any:
    def read(*arguments: Any) -> Any:
        found = read_packed(*arguments)
        return {**found, part: value} if part in found else found

    return read
