"""Checkpoints: whole or not at all, recognised by their hashes, exact also within a collected batch, without pickle."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.strangers import Plugin
from tests.tools import stage, tiny_policy, train_settings
from unified import PluginError
from unified.checkpoint import INDEX, WEIGHTS, damage, steps_in
from unified.disk import whole_folder
from unified.loop import train
from unified.packing import read_packed, write_packed
from unified.registry import Catalogue, using
from unified.running import Run

SAMPLED = {"algorithm": "clipped", "data": "letters", "reward": "vowels", "source": {"group_size": 3}, "batch_size": 4}
LONG = {**SAMPLED, "collect_size": 12, "inner_epochs": 2, "learning_rate": 1e-2}  # 6 steps on a collected batch


@pytest.fixture(autouse=True)
def only_strangers() -> Iterator[None]:
    """A catalogue without any built-in part."""
    with using(Catalogue({"stranger": Plugin()}, installed=False)):
        yield


class Cut(Exception):  # noqa: N818 - nothing went wrong
    """Raised by a test in the middle of a run."""


def weights(run: Run) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in run.roles.models["policy"].parameters()])


def cut(folder: Path, written: dict[str, Any], *, after: int) -> list[str]:
    """Train until so many checkpoints are saved; which ones lie there then, the newest first."""
    context = stage(folder, {"base": tiny_policy()})
    saved: list[int] = []

    def notify(event: str, **told: Any) -> None:
        if event == "checkpoint_saved":
            saved.append(told["step"])
            if len(saved) == after:
                raise Cut

    context.notify = notify
    with pytest.raises(Cut):
        train(context, train_settings(**written))
    return steps_in(folder / "checkpoint")


def go_on(folder: Path, written: dict[str, Any]) -> tuple[Run, list[str]]:
    said: list[str] = []
    context = stage(folder, {"base": tiny_policy()})
    context.say = said.append
    run, _ = train(context, train_settings(**written))
    return run, said


def told(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if "second" not in k} for line in lines]


@pytest.mark.parametrize("after", [1, 3, 6])
def test_a_run_cut_within_a_collected_batch_ends_with_the_same_weights_metrics_and_samples(
    tmp_path: Path, after: int
) -> None:
    written = {**LONG, "max_steps": 9, "save_steps": 1}
    straight, _ = go_on(tmp_path / "a", written)
    names = cut(tmp_path / "b", written, after=after)
    # 6 steps on a batch: a checkpoint after its last one is between two batches, every other within one
    assert names[0] == (f"step-{after}" if after == 6 else f"step-{after}-within")
    again, said = go_on(tmp_path / "b", written)
    assert torch.equal(weights(again), weights(straight))
    assert told(tmp_path / "a") == told(tmp_path / "b")
    for log in ("samples.jsonl", "coefficients.jsonl"):
        assert (tmp_path / "a" / log).read_bytes() == (tmp_path / "b" / log).read_bytes()
    assert said == []


def test_answers_are_not_sampled_anew_where_a_run_goes_on_within_their_batch(tmp_path: Path) -> None:
    written = {**LONG, "max_steps": 6, "save_steps": 2}
    cut(tmp_path, written, after=2)
    context = stage(tmp_path, {"base": tiny_policy()})
    events: list[str] = []
    context.notify = lambda event, **_: events.append(event)
    train(context, train_settings(**written))
    assert events == ["step_finished"]  # no `groups_judged`: the answers were in the checkpoint


#: where the one process of these tests writes weights and the optimiser's tensors
TENSORS = "tensors-0.safetensors"


def damaged(folder: Path, how: str) -> str:
    """Spoil a checkpoint; what is said of it."""
    weights = folder / TENSORS
    data = weights.read_bytes()
    if how == "truncated":
        weights.write_bytes(data[: len(data) // 2])
    elif how == "a bit":
        weights.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    elif how == "missing":
        (folder / "state.json").unlink()
        return "state.json is not what index.json says"
    elif how == "torn index":
        (folder / INDEX).write_text((folder / INDEX).read_text()[:-20])
        return "index.json cannot be read"
    elif how == "edited index":
        (folder / INDEX).write_text((folder / INDEX).read_text().replace('"step": 8', '"step": 7'))
        return "index.json cannot be read"
    elif how == "no index":
        (folder / INDEX).unlink()
        return "index.json cannot be read"
    return "tensors-0.safetensors is not what index.json says"


@pytest.mark.parametrize("how", ["truncated", "a bit", "missing", "torn index", "edited index", "no index"])
def test_of_a_damaged_checkpoint_the_one_before_is_used_and_said(tmp_path: Path, how: str) -> None:
    written = {**LONG, "max_steps": 12, "save_steps": 4}
    straight, _ = go_on(tmp_path / "a", written)
    assert cut(tmp_path / "b", written, after=2) == ["step-8-within", "step-4-within"]
    what = damaged(tmp_path / "b" / "checkpoint" / "step-8-within", how)
    again, said = go_on(tmp_path / "b", written)
    assert said[0].startswith(f"test: checkpoint step-8-within cannot be used: {what}")
    assert said[1] == "test: going on from step-4-within"
    assert torch.equal(weights(again), weights(straight))
    assert told(tmp_path / "a") == told(tmp_path / "b")


def test_where_no_checkpoint_is_whole_the_stage_starts_over_and_says_so(tmp_path: Path) -> None:
    written = {**LONG, "max_steps": 6, "save_steps": 2}
    straight, _ = go_on(tmp_path / "a", written)
    for name in cut(tmp_path / "b", written, after=2):
        damaged(tmp_path / "b" / "checkpoint" / name, "truncated")
    again, said = go_on(tmp_path / "b", written)
    assert said[-1] == "test: none is whole; the stage starts over"
    assert torch.equal(weights(again), weights(straight))
    assert told(tmp_path / "a") == told(tmp_path / "b")


def test_a_metrics_file_that_is_shorter_than_the_checkpoint_knew_it_makes_the_one_before_be_used(
    tmp_path: Path,
) -> None:
    written = {**SAMPLED, "max_steps": 6, "save_steps": 2, "learning_rate": 1e-2}
    straight, _ = go_on(tmp_path / "a", written)
    assert cut(tmp_path / "b", written, after=2) == ["step-4", "step-2"]
    log = tmp_path / "b" / "metrics.jsonl"
    os.truncate(log, log.stat().st_size - 9)  # a machine that stopped before its disk had all of it
    again, said = go_on(tmp_path / "b", written)
    assert said[0] == "test: checkpoint step-4 cannot be used: metrics.jsonl is shorter than it was"
    assert torch.equal(weights(again), weights(straight))
    assert told(tmp_path / "a") == told(tmp_path / "b")


@pytest.mark.parametrize(("limit", "left"), [(1, [10]), (3, [10, 8, 6])])
def test_only_the_newest_checkpoints_are_kept(tmp_path: Path, limit: int, left: list[int]) -> None:
    written = {**SAMPLED, "max_steps": 12, "save_steps": 2, "save_total_limit": limit}
    assert cut(tmp_path, written, after=5) == [f"step-{step}" for step in left]


BEST = {
    "algorithm": "imitate", "data": "letters", "learning_rate": 0.5, "max_grad_norm": 0, "max_steps": 6,
    "evaluation": {}, "eval_steps": 1, "metric_for_best_model": "eval/loss", "greater_is_better": False,
    "save_steps": 1,
}  # fmt: skip


def test_the_best_weights_lie_apart_and_are_written_once(tmp_path: Path) -> None:
    cut(tmp_path, BEST, after=5)
    folder = tmp_path / "checkpoint"
    losses = {row["step"]: row["eval/loss"] for row in told(tmp_path)}
    step = min(losses, key=lambda s: losses[s])
    assert step < 4, "the rate is meant to be so large that later steps make it worse"
    assert sorted(e.name for e in folder.iterdir()) == [f"best-{step}", "step-4", "step-5"]
    before = (folder / f"best-{step}" / TENSORS).stat()
    assert (folder / "step-4" / TENSORS).stat().st_mtime_ns > before.st_mtime_ns
    run, _ = go_on(tmp_path, BEST)
    best = load_file(folder / f"best-{step}" / TENSORS)
    state = {f"{WEIGHTS}{name}": value.flatten() for name, value in run.roles.state_dict().items()}
    assert len(best) > 10
    assert all(torch.equal(state[name], value) for name, value in best.items())


def test_a_checkpoint_whose_best_weights_are_damaged_is_not_used(tmp_path: Path) -> None:
    straight, _ = go_on(tmp_path / "a", BEST)
    newest = cut(tmp_path / "b", BEST, after=5)[0]
    folder = tmp_path / "b" / "checkpoint"
    (best,) = (e.name for e in folder.glob("best-*"))
    damaged(folder / best, "a bit")
    again, said = go_on(tmp_path / "b", BEST)
    assert f"checkpoint {newest} cannot be used: {best}: tensors-0.safetensors is not what index.json says" in said[0]
    assert torch.equal(weights(again), weights(straight))


def test_a_checkpoint_holds_json_and_safetensors_and_nothing_else(tmp_path: Path) -> None:
    written = {**LONG, "max_steps": 6, "save_steps": 2, "algorithm": "centred", "source": None, "reward": None}
    cut(tmp_path, written, after=1)
    files = [p for p in (tmp_path / "checkpoint").rglob("*") if p.is_file()]
    assert {p.suffix for p in files} == {".json", ".safetensors"}
    for path in files:
        read = load_file(path) if path.suffix == ".safetensors" else json.loads(path.read_text())
        assert read
    assert damage(tmp_path / "checkpoint", "step-2-within", tmp_path) is None


# --- packing ---


def tree(draw: random.Random, depth: int = 0) -> Any:
    """A random value of all that a checkpoint keeps."""
    kinds = ["int", "float", "text", "none", "bool", "tensor"] + (["list", "tuple", "dict", "odd"] if depth < 3 else [])
    kind = draw.choice(kinds)
    if kind == "tensor":
        shape = draw.choice([(), (3,), (0,), (2, 3)])
        made = torch.rand(shape) * 9
        return made.to(
            draw.choice([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
        )
    plain = {"int": draw.randint(-(2**62), 2**62), "float": draw.choice([0.1, math.inf, -0.0, 1e-320]), "text": "§$",
             "none": None, "bool": True}  # fmt: skip
    if kind in plain:
        return plain[kind]
    parts = [tree(draw, depth + 1) for _ in range(draw.randint(0, 4))]
    if kind == "list":
        return parts
    if kind == "tuple":
        return tuple(parts)
    keys: list[Any] = ["$", "a", "b c", "d"] if kind == "dict" else [1, (1, "x"), None, 2.5]
    return dict(zip(keys, parts, strict=False))


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and repr(a) == repr(b)


def test_whatever_is_packed_is_read_again_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    draw = random.Random(0)
    kinds: set[type] = set()
    for _ in range(200):
        value = tree(draw)
        write_packed(tmp_path, "x", value)
        assert same(read_packed(tmp_path, "x"), value)
        kinds.add(type(value))
        for file in tmp_path.iterdir():
            file.unlink()
    assert kinds == {int, float, str, type(None), bool, torch.Tensor, list, tuple, dict}


def test_tied_weights_stand_in_a_file_once(tmp_path: Path) -> None:
    weight = torch.rand(1000)
    size, _ = write_packed(tmp_path, "x", {"a": weight, "b": weight.detach()})["x.safetensors"]
    assert 4000 < size < 4200
    read = read_packed(tmp_path, "x")
    assert torch.equal(read["b"], weight)


@pytest.mark.parametrize("value", [object(), {1, 2}, Path("x"), torch.zeros(2, dtype=torch.complex64)])
def test_what_no_file_can_hold_is_refused_by_its_place(tmp_path: Path, value: Any) -> None:
    with pytest.raises(PluginError, match=r"^state\.terms\[0\]\.mine is "):
        write_packed(tmp_path, "state", {"terms": [{"mine": value}]})


def test_a_folder_is_there_whole_or_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with suppress(Cut), whole_folder(folder) as draft:
        (draft / "a").write_text("half")
        raise Cut
    assert list(tmp_path.iterdir()) == []
    for text in ("one", "two"):
        with whole_folder(folder) as draft:
            (draft / "sub").mkdir()
            (draft / "sub" / "b").write_text(text)
            (draft / "a").write_text(text)
        (folder / "mine").touch()
    assert {p.name: p.read_text() for p in folder.rglob("*") if p.is_file()} == {"a": "two", "b": "two", "mine": ""}
