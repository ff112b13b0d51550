"""A chain gives the same weights whether a stage is handed its model by reference, by path or in memory."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from unified import Artifact, StageContext, catalogue, load_recipe, run_recipe
from unified.check import check_recipe
from unified.console import RunConsole
from unified.models import artifact_at

HEAD = """\
name: same
seed: 5
model:
  new: {model_type: llama, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 1, num_attention_heads: 4,
        max_position_embeddings: 32}
  tokenizer: random_walks
stages:
"""
START = "  start: {algorithm: sft, data: {name: random_walks, rows: 200}, max_steps: 6, learning_rate: 6e-3}\n"
PREFER = (
    "  prefer: {algorithm: dpo, data: {name: random_walks, view: pairs, rows: 100}, max_steps: 4, learning_rate: 1e-3"
)


def recipe(folder: Path, stages: str) -> Any:
    folder.mkdir(exist_ok=True)
    (folder / "r.yaml").write_text(HEAD + stages)
    return load_recipe(folder / "r.yaml")


def run(folder: Path, stages: str) -> None:
    run_recipe(recipe(folder, stages), folder / "out", console=RunConsole(Console(file=io.StringIO()), silent=True))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def by_reference(tmp_path: Path) -> Path:
    run(tmp_path / "a", START + PREFER + ", model: stage:start}\n")
    return tmp_path / "a" / "out"


def in_memory(folder: Path, start: Path) -> Path:
    """The second stage alone, with the first one's model as an object."""
    plan = check_recipe(recipe(folder, PREFER + ", model: base}\n"))
    saved = artifact_at(start)
    handed = Artifact("policy", module=saved.load("policy"), own_tokenizer=saved.tokenizer())
    context = StageContext("prefer", folder, folder, 5, lambda _: handed, lambda *a, **k: None, lambda *a: None)
    catalogue().get("stage", "train").run(context, plan.stages[0].settings)
    return folder


@pytest.mark.parametrize("how", ["path", "memory"])
def test_the_weights_are_the_same_to_the_last_bit_and_so_is_the_reference(
    tmp_path: Path, by_reference: Path, how: str
) -> None:
    start = by_reference / "start" / "model"
    if how == "path":
        run(tmp_path / "b", PREFER + f", model: {start}}}\n")
        other = tmp_path / "b" / "out" / "prefer"
    else:
        other = in_memory(tmp_path / "b", start)
    ours, theirs = weights(by_reference / "prefer"), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert losses(by_reference / "prefer") == losses(other)
    # the reference is what the stage was handed: at first both agree, and every pair's loss is ln 2
    assert losses(other)[0] == pytest.approx(math.log(2), abs=1e-6)
    assert not torch.equal(ours["lm_head.weight"], load_file(start / "model.safetensors")["lm_head.weight"])


def test_another_reference_than_the_input_is_another_result(tmp_path: Path, by_reference: Path) -> None:
    run(tmp_path / "c", START + PREFER + ", model: stage:start, reference: base}\n")
    other = tmp_path / "c" / "out" / "prefer"
    assert losses(other)[0] != pytest.approx(math.log(2), abs=1e-6)
