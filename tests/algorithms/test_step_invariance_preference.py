"""One optimiser step of preferences, imitation and scalar models: its gradient does not depend on how it is computed.

As a program, `python -m tests.algorithms.test_step_invariance_preference OUT algorithm...` (or under torchrun) writes
the gradient of each algorithm in float64.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gradients import gradient_of, leave
from tests.tools import random_groups, relative
from unified import PromptGroup
from unified_plugins.sources.mismatched import collect

ROOT = Path(__file__).resolve().parents[2]
#: those whose answers are coupled over the whole step, or that have several parts with normalisers of their own
COUPLED = ["kto", "bco", "aot", "aot_unpaired", "orpo", "rpo", "cpo", "tpo", "raft"]
OTHERS = [
    *("ipo", "dpo_norm", "simpo", "alphapo", "robust_dpo", "nca", "exo", "sppo", "apo_zero", "apo_down", "discopop"),
    *("ld_dpo", "slic", "dpo_pl", "xpo", "nash_md", "apo_zero_unpaired", "dft", "weighted_sft", "rft"),
    *("plackett_luce", "token_reward_model", "pointwise", "prm"),
]
WAYS: list[dict[str, Any]] = [
    {"tokens_per_micro_batch": 25},
    {"tokens_per_micro_batch": 1},
    {"layout": "packed", "tokens_per_micro_batch": 40},
    {"layout": "prefix-shared", "tokens_per_micro_batch": 40},
]


def groups_for(algorithm: str) -> list[PromptGroup]:
    """Five prompts with three answers each, one of them without a loss token, and what the algorithm needs beside."""
    groups = random_groups(5, 3, empty=True)
    for group in groups:
        for k, answer in enumerate(group.answers):
            answer.columns = {"from_reference": float(k == 1)}
            if algorithm == "prm":
                answer.reward = [float(i % 2) for i in range(len(answer.ids))]
    return collect(groups) if algorithm == "kto" else groups


def step_of(algorithm: str, dtype: torch.dtype, **how: Any) -> torch.Tensor:
    """The gradient of one step; where the rows at hand do not fit, another source has its answers set aside."""
    other = {"prm": "rows", "tpo": {"name": "rollouts", "max_tokens": 8}}
    source: dict[str, Any] = {"source": other[algorithm]} if algorithm in other else {}
    return gradient_of(algorithm, groups_for(algorithm), dtype, **source, **how)


@pytest.mark.parametrize("algorithm", [*COUPLED, *OTHERS])
def test_gradient_is_the_same_however_the_step_is_cut_and_laid_out(algorithm: str) -> None:
    whole = step_of(algorithm, torch.float64, tokens_per_micro_batch=100_000)
    assert whole.norm() > 1e-6
    for how in WAYS:
        assert relative(step_of(algorithm, torch.float64, **dict(how)), whole) < 1e-10, how


@pytest.mark.parametrize("algorithm", COUPLED)
def test_gradient_is_the_same_in_single_precision(algorithm: str) -> None:
    whole = step_of(algorithm, torch.float32, tokens_per_micro_batch=100_000)
    for how in WAYS:
        assert relative(step_of(algorithm, torch.float32, **dict(how)), whole) < 1e-5, how


def test_two_processes_give_the_gradient_of_one(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--standalone"]
    found = []
    for name, way in (("one", []), ("two", launch)):
        out = tmp_path / f"{name}.pt"
        command = [sys.executable, *way, "-m", "tests.algorithms.test_step_invariance_preference", str(out), *COUPLED]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(torch.load(out))
    one, two = found
    assert set(one) == set(COUPLED)
    for algorithm in COUPLED:
        assert relative(two[algorithm], one[algorithm]) < 1e-10, algorithm


def main(out: str, *algorithms: str) -> None:
    """Groups are dealt to the processes in turn, so that 5 of them on 2 processes give unequal shares."""
    import torch.distributed as dist

    found = {a: step_of(a, torch.float64, tokens_per_micro_batch=30) for a in algorithms}
    if not dist.is_initialized() or dist.get_rank() == 0:
        torch.save(found, out)
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
