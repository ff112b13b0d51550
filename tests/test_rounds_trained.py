"""Rounds with a real model: two rounds of gathering and tuning on the walks, killed in the second one and run again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from unified import run_recipe
from unified.console import RunConsole
from unified.manifest import read_manifest, stage_folder
from unified.recipe import load_recipe

RECIPE = """
name: rounds
threads: 1
model:
  new: {model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2}
  tokenizer: random_walks
stages:
  start: {algorithm: sft, data: {name: random_walks, rows: 100}, max_steps: 3, learning_rate: 1e-2}
  loop:
    repeat: 2
    stages:
      gather:
        kind: sample
        model: {first: stage:start, then: stage:tune}
        data: {name: random_walks, view: prompts}
        source: {group_size: 4, max_tokens: 6}
        unfinished: keep
        held_out: 0
      tune:
        algorithm: sft
        model: {first: stage:start, then: stage:tune}
        data: stage:gather
        max_steps: {by_round: [2, 4]}
        learning_rate: {by_round: [1e-2, 5e-3]}
        save_steps: 1
"""
KILLED = """
import os, signal, sys
from pathlib import Path
from unified import hookimpl, run_recipe, using
from unified.recipe import load_recipe
from unified.registry import Catalogue

class Killer:
    @hookimpl
    def checkpoint_saved(self, stage, step):
        if (stage, step) == ("loop.2.tune", 2):
            os.kill(os.getpid(), signal.SIGKILL)

with using(Catalogue({"killer": Killer()})):
    run_recipe(load_recipe(Path("r.yaml")), Path("killed"))
"""


def weights(folder: Path, stage: str) -> bytes:
    return (stage_folder(folder, stage) / "model" / "model.safetensors").read_bytes()


def steps(folder: Path, stage: str) -> list[int]:
    lines = (stage_folder(folder, stage) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_a_run_killed_in_round_2_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(RECIPE)
    quiet = RunConsole(silent=True)
    whole = run_recipe(load_recipe(Path("r.yaml")), Path("whole"), console=quiet)
    assert [o.manifest.name for o in whole] == [
        "start", "loop.1.gather", "loop.1.tune", "loop.2.gather", "loop.2.tune"
    ]  # fmt: skip
    assert (steps(Path("whole"), "loop.1.tune"), steps(Path("whole"), "loop.2.tune")) == ([1, 2], [1, 2, 3, 4])

    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run([sys.executable, "-c", KILLED], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == -9, done.stderr
    assert read_manifest(Path("killed/loop/2/gather")) is not None
    assert read_manifest(Path("killed/loop/2/tune")) is None
    again = run_recipe(load_recipe(Path("r.yaml")), Path("killed"), console=quiet)
    assert [o.manifest.name for o in again if o.fresh] == ["loop.2.tune"]
    assert steps(Path("killed"), "loop.2.tune") == [1, 2, 3, 4]  # two before the kill, two after it
    assert weights(Path("killed"), "loop.2.tune") == weights(Path("whole"), "loop.2.tune")
    assert weights(Path("whole"), "loop.1.tune") != weights(Path("whole"), "loop.2.tune")
