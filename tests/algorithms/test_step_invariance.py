"""The gradient of one optimiser step of the built-in algorithms does not depend on how it is computed (DESIGN 5.2)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gradients import gradient_of
from tests.tools import random_groups, relative

FIVE = ["sft", "reward_model", "dpo", "ppo", "grpo"]
ROOT = Path(__file__).resolve().parents[2]
WAYS: list[dict[str, Any]] = [
    {"tokens_per_micro_batch": 25},
    {"tokens_per_micro_batch": 1},
    {"layout": "packed"},
    {"layout": "packed", "tokens_per_micro_batch": 40},
    {"layout": "padded-left"},
    {"layout": "prefix-shared"},
    {"layout": "prefix-shared", "tokens_per_micro_batch": 25},
]


@pytest.mark.parametrize("algorithm", FIVE)
@pytest.mark.parametrize("how", WAYS, ids=lambda how: ", ".join(map(str, how.values())))
def test_gradient_is_the_same_however_the_step_is_cut_and_laid_out(algorithm: str, how: dict[str, Any]) -> None:
    groups = random_groups(5, 3, empty=True)
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        whole = gradient_of(algorithm, groups, dtype, tokens_per_micro_batch=100_000)
        assert whole.norm() > 1e-4
        assert relative(gradient_of(algorithm, groups, dtype, **dict(how)), whole) < bound


@pytest.mark.parametrize("algorithm", FIVE)
@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral", "gemma2", "gemma3_text", "qwen3"])
def test_gradient_is_the_same_for_every_architecture_and_order_of_groups(algorithm: str, kind: str) -> None:
    # the norms of these models round to float32, also in float64: equal inputs give equal bits, other orders do not
    groups = random_groups(4, 2)
    whole = gradient_of(algorithm, groups, torch.float64, kind)
    bound = 1e-6 if kind.startswith("gemma") else 1e-10
    assert (
        relative(gradient_of(algorithm, groups, torch.float64, kind, layout="packed", tokens_per_micro_batch=30), whole)
        < bound
    )
    assert relative(gradient_of(algorithm, [groups[i] for i in (2, 0, 3, 1)], torch.float64, kind), whole) < 1e-6


def test_two_processes_give_the_gradient_of_one(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    for dtype, bound in (("float64", 1e-10), ("float32", 1e-5)):
        alone, both = tmp_path / f"1-{dtype}.pt", tmp_path / f"2-{dtype}.pt"
        launch = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc_per_node",
            "2",
            "--master_port",
            "0",
            "--standalone",
        ]
        for command in (
            [sys.executable, "-m", "tests.gradients", str(alone)],
            [*launch, "-m", "tests.gradients", str(both)],
        ):
            done = subprocess.run(
                [*command, dtype, *FIVE], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0, done.stderr[-3000:]
        one, two = torch.load(alone), torch.load(both)
        assert set(one) == set(FIVE)
        for algorithm in FIVE:
            assert relative(two[algorithm], one[algorithm]) < bound, algorithm
