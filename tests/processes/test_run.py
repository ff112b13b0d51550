"""`unified run --launch cpu` for real: results, messages, signals, and runs that go on with another number."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tools import relative
from unified.checkpoint import steps_in
from unified.launch import config_file

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
name: two
model: {new: {model_type: llama, hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2,
              max_position_embeddings: 32}, tokenizer: random_walks}
stages:
  start: {algorithm: sft, data: {name: random_walks, rows: 21}, batch_size: 8, num_train_epochs: 1}
  drawn:
    kind: sample
    model: stage:start
    data: {name: random_walks, view: prompts}
    source: {group_size: 2, max_tokens: 6}
    reward: {name: length, target: 3, width: 4}
    limit: 7
  online:
    algorithm: {name: grpo, kl_weight: 0.05}
    model: stage:start
    data: {name: random_walks, view: prompts}
    reward: {name: python, function: "told.py:reward"}
    source: {group_size: 3, max_tokens: 6}
    batch_size: 5
    max_steps: 4
"""
#: at the second batch the second process does what TOLD says, to itself or to the launcher
TOLD = """
import os
calls = [0]
def reward(completions, **columns):
    calls[0] += 1
    if os.environ.get("TOLD") and os.environ.get("RANK") == "1" and calls[0] == 2:
        number = int(os.environ["TOLD"])
        os.kill(os.getpid() if number == 9 else os.getppid(), number)
    return [abs(len(text) - 6) / -6.0 for text in completions]
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "r.yaml").write_text(RECIPE)
    (tmp_path / "told.py").write_text(TOLD)
    return tmp_path


def run(home: Path, *command: str, told: int = 0, module: str = "unified") -> subprocess.CompletedProcess[str]:
    about = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TOLD": str(told or "")}
    environment = {k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "RANK")} | about
    return subprocess.run(
        [sys.executable, "-m", module, *command],
        cwd=home, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def weights(run_folder: Path, stage: str = "online") -> torch.Tensor:
    """Of a stage's model, as one vector."""
    found = load_file(run_folder / stage / "model" / "model.safetensors")
    return torch.cat([value.flatten().double() for _, value in sorted(found.items())])


def test_two_processes_make_what_one_makes_and_go_on_where_one_was_stopped_and_the_reverse(home: Path) -> None:
    alone = run(home, "run", "r.yaml", "--output", "one", "--quiet")
    assert alone.returncode == 0, alone.stderr
    both = run(home, "run", "r.yaml", "--output", "two", "--quiet", "--launch", "cpu")
    assert both.returncode == 0, both.stderr
    assert "Traceback" not in both.stderr
    assert both.stdout.count("grpo") == 1  # one table
    assert (home / "two" / "drawn" / "data").is_dir()
    for file in (home / "one" / "drawn" / "data").iterdir():
        assert (home / "two" / "drawn" / "data" / file.name).read_text() == file.read_text()
    for stage in ("start", "online"):
        assert relative(weights(home / "two", stage), weights(home / "one", stage)) < 1e-5

    stopped = run(home, "run", "r.yaml", "--output", "cut", "--quiet", "--launch", "cpu", told=15)
    assert stopped.returncode == 143
    assert stopped.stderr.count("stopped in stage online; run the same command again to go on") == 1
    assert "Traceback" not in stopped.stderr
    assert "torch" not in stopped.stderr
    assert len(steps_in(home / "cut" / "online" / "checkpoint")) == 1
    again = run(home, "run", "r.yaml", "--output", "cut")
    assert again.returncode == 0, again.stderr
    assert "goes on where it was cut off" in again.stdout
    assert relative(weights(home / "cut"), weights(home / "one")) < 1e-5


def test_a_mistake_is_told_once_and_ends_with_2(home: Path) -> None:
    (home / "r.yaml").write_text(RECIPE.replace("batch_size: 5", "batch_sise: 5"))
    done = run(home, "run", "r.yaml", "--output", "two", "--launch", "cpu")
    assert done.returncode == 2
    assert done.stderr.count("did you mean 'batch_size'?") == 1
    assert "Traceback" not in done.stderr
    assert "ChildFailedError" not in done.stderr
    assert not (home / "two").exists()


def test_a_process_that_is_killed_takes_the_other_along_and_the_run_says_which(home: Path) -> None:
    done = run(home, "run", "r.yaml", "--output", "two", "--quiet", "--launch", "cpu", told=9)
    assert done.returncode == 137
    assert "process 1 was ended by SIGKILL; run the same command again to go on" in done.stderr
    assert "Traceback" not in done.stderr
    assert "gloo" not in done.stderr


def test_accelerate_launch_runs_a_recipe_as_well(home: Path) -> None:
    # on a CPU accelerate's own launcher starts one process, whatever the file says
    (home / "r.yaml").write_text(RECIPE.partition("  drawn:")[0])
    file = str(config_file("cpu"))
    options = ["--config_file", file, "-m", "unified", "run", "r.yaml", "--output", "two", "--quiet"]
    done = run(home, *options, module="accelerate.commands.launch")
    assert done.returncode == 0, done.stderr
    assert (home / "two" / "start" / "manifest.json").is_file()
