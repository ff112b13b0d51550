"""A program: short trainings on the CPU by any number of processes; each leaves what it did in a folder of its own.

python -m tests.processes.cases FOLDER SEED_FOLDER      one process
torchrun --nproc_per_node 2 -m tests.processes.cases FOLDER SEED_FOLDER      two

SEED_FOLDER holds what a launch of another number of processes has left behind: the runs cut off there go on here.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import save_file

import unified.step
from tests.gradients import leave
from tests.tools import gradient, stage, tiny_policy, tiny_scalar, train_settings
from unified.interrupt import StopSignal
from unified.loop import train
from unified.models import Artifact
from unified.running import Run

PAIRS = {"name": "random_walks", "view": "pairs", "rows": 11, "held_out_rows": 5}
PROMPTS = {"name": "random_walks", "view": "prompts"}
LENGTH = {"name": "length", "target": 3, "width": 4}
ROWS: dict[str, Any] = {"learning_rate": 1e-3, "batch_size": 4, "num_train_epochs": 2, "tokens_per_micro_batch": 40}
ONLINE: dict[str, Any] = {
    "data": PROMPTS, "reward": LENGTH, "source": {"group_size": 3, "max_tokens": 7}, "learning_rate": 1e-3,
    "batch_size": 5, "max_steps": 4, "tokens_per_micro_batch": 60,
}  # fmt: skip
GRPO = {"name": "grpo", "kl_weight": 0.05}
ADAPTIVE = {**GRPO, "kl_target": 0.01}
#: what every launch does. 5 and 11 rows by 2 processes: no two steps deal out equal shares
CASES: dict[str, dict[str, Any]] = {
    "sft": {**ROWS, "algorithm": "sft", "data": {"name": "random_walks", "rows": 11}},
    "reward_model": {**ROWS, "algorithm": "reward_model", "data": {**PAIRS, "view": "ranked", "answers": 3}},
    "dpo": {**ROWS, "algorithm": "dpo", "data": PAIRS, "reference": "other"},
    "ppo": {**ONLINE, "algorithm": "ppo", "critic": "critic", "inner_epochs": 2},
    "grpo": {**ONLINE, "algorithm": GRPO, "reference": "other"},
    "a tied embedding": {**ROWS, "algorithm": "dpo", "data": PAIRS, "reference": "other", "model": "tied"},
    # of the last batch of a pass one row is left: the second process has no answer at all
    "a rank without answers": {**ROWS, "algorithm": "sft", "data": {"name": "random_walks", "rows": 9}},
    # two collected batches of 8, each two steps, twice: which groups make a step does not depend on who has them
    "adaptive KL, several steps": {
        **ONLINE, "algorithm": ADAPTIVE, "reference": "other", "batch_size": 4, "collect_size": 8, "inner_epochs": 2,
        "max_steps": 8,
    },
    "whitened over all": {**ONLINE, "algorithm": {"name": "reinforce_pp", "kl_target": 0.01}, "reference": "other"},
    "whitened advantage, shared trunk": {**ONLINE, "algorithm": "ppo", "critic": {"trunk": "shared"}, "max_steps": 3},
    "dropped and refilled": {**ONLINE, "algorithm": GRPO, "filters": ["no_spread"], "refill": 2},
    "statistics of the step": {**ROWS, "algorithm": "kto", "data": PAIRS, "reference": "other"},
    "two terms with rows of their own": {
        **ROWS, "data": PAIRS, "reference": "other",
        "terms": [
            {"algorithm": "dpo"},
            {"algorithm": "sft", "weight": 0.3, "data": {"name": "random_walks", "rows": 7}, "per_step": 3},
        ],
    },
    "evaluated, the best kept": {
        **ROWS, "algorithm": "dpo", "data": PAIRS, "reference": "other", "learning_rate": 1e-2, "lens_steps": 2,
        "eval_on_start": True, "eval_steps": 2, "save_steps": 3,
        "evaluation": {"num_prompts": 5, "reward": LENGTH, "samples": 2, "max_tokens": 7, "temperature": 1.0},
        "metric_for_best_model": "eval/loss", "greater_is_better": False,
    },
}  # fmt: skip
#: cut off by some number of processes after the second step, finished by another number
CUT: dict[str, dict[str, Any]] = {
    "rows": {**ROWS, "algorithm": "dpo", "data": PAIRS, "reference": "other"},
    "rollouts": {**ONLINE, "algorithm": ADAPTIVE, "reference": "other"},
    "within a collected batch": CASES["adaptive KL, several steps"],
}
CUT_AFTER = 2
WHOLE, CUT_OFF = "whole", "cut off"


def artifacts(dtype: torch.dtype = torch.float64) -> dict[str, Artifact]:
    """Models at hand, anew each time: training changes them in place."""
    return {
        "base": tiny_policy(dtype=dtype),
        "scalar": tiny_scalar(seed=3, dtype=dtype),
        "tied": tiny_policy(dtype=dtype, tied=True),
        "other": tiny_policy(seed=1, dtype=dtype),
        "critic": tiny_scalar(seed=2, dtype=dtype),
    }


def run_case(folder: Path, written: dict[str, Any], *, dtype: torch.dtype = torch.float64, stop_after: int = 0) -> None:
    """Train, and write weights, the gradient of the first step and the summary; or stop after a step, as SIGTERM does.

    The signal comes to the last of the processes alone.
    """
    models = artifacts(dtype)
    if written.get("algorithm") == "reward_model":
        models["base"] = models["scalar"]
    found: dict[str, torch.Tensor] = {}
    update = unified.step.update

    def watched(run: Run) -> bool:
        found.setdefault("gradient", gradient(run))
        done = update(run)
        if run.step + 1 == stop_after and run.processes.rank == run.processes.count - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return done

    with patch("unified.step.update", watched):
        try:
            run, summary = train(stage(folder, models), train_settings(**written))
        except StopSignal:
            return
    if run.accelerator.is_main_process:
        parts = [value.flatten().double() for _, value in sorted(run.trained_weights().items())]
        found |= {"weights": torch.cat(parts)}
        save_file(found, folder / "found.safetensors")
        (folder / "summary.json").write_text(json.dumps(summary))
    run.accelerator.wait_for_everyone()
    run.accelerator.free_memory()


def run_all(folder: Path) -> None:
    """Every case, in both precisions the five algorithms; and the runs to be cut off."""
    for name, written in CASES.items():
        run_case(folder / name, written)
    for name in list(CASES)[:5]:
        run_case(folder / f"{name} in float32", CASES[name], dtype=torch.float32)
    for name, written in CUT.items():
        run_case(folder / WHOLE / name, written)
        run_case(folder / CUT_OFF / name, written, stop_after=CUT_AFTER)


def go_on(folder: Path) -> None:
    """Finish the runs that were cut off there."""
    for name, written in CUT.items():
        run_case(folder / CUT_OFF / name, written)


def main(folder: str, other: str) -> None:
    """All cases in `folder`; then what was cut off in `other` goes on there."""
    run_all(Path(folder))
    go_on(Path(other))
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
