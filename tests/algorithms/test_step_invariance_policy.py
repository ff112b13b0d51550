"""The gradient of one optimiser step of the policy-gradient presets does not depend on how it is computed.

The policies that sampled, by the trainer and by the rollout engine, differ from the policy here, so that ratios are
clipped and weights are not 1.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tools import gradient, random_groups, relative, stage, table_of, tiny_policy, tiny_scalar, train_settings
from unified import PromptGroup
from unified.set_up import set_up
from unified.step import accumulate, count

ROOT = Path(__file__).resolve().parents[2]
ENGINE = [{"name": "importance", "high": 1.3}, {"name": "reject", "level": "mean", "low": 0.5, "high": 1.5}]
CASES: list[tuple[str, dict[str, Any]]] = [
    ("grpo", {"factors": ENGINE}),
    ("dr_grpo", {}),
    ("dapo", {"factors": [{"name": "importance", "mean_one": True}]}),
    ("dapo", {"factors": [{"name": "top_entropy", "share": 0.3}], "entropy_weight": 0.01}),
    ("dapo", {"factors": [{"name": "off_policy", "limit": 0.05}]}),
    ("gspo", {"ratio": {"name": "sequence_clip", "low": 0.1, "high": 0.1}}),
    ("luspo", {"ratio": {"name": "sequence_clip", "low": 0.1, "high": 0.1}}),
    ("cispo", {"ratio": {"name": "clipped_weight", "level": "product"}}),
    ("gmpo", {}),
    ("sapo", {}),
    ("dppo", {"ratio": {"name": "probability_clip", "low": 0.01, "high": 0.01, "pull": 0.1}}),
    ("clip_cov", {"ratio": {"name": "clip_cov", "share": 0.2, "floor": 0.1}}),
    ("kl_cov", {"ratio": {"name": "kl_cov", "share": 0.2}}),
    ("rloo", {}),
    ("reinforce", {}),
    ("reinforce_pp", {}),
    ("reinforce_pp_baseline", {}),
    ("remax", {}),
    ("opo", {}),
    ("grpo", {"advantage": "optimal_token"}),
    ("vapo", {}),
]
WAYS: list[dict[str, Any]] = [
    {"tokens_per_micro_batch": 25},
    {"layout": "packed", "tokens_per_micro_batch": 40},
    {"layout": "padded-left"},
    {"layout": "prefix-shared", "tokens_per_micro_batch": 40},
]


def _groups() -> list[PromptGroup]:
    """Answers with log-probs by the rollout engine, one without a loss token, and one in each prompt as a probe."""
    torch.manual_seed(0)
    groups = random_groups(5, 4, empty=True)
    for group in groups:
        own = [replace(a, sampling_logp=(-3 + 0.3 * torch.randn(len(a.ids))).tolist()) for a in group.answers]
        group.answers = [*own[:-1], replace(own[-1], probe=True)]
    return groups


def _gradient(tmp_path: Path, name: str, settings: dict[str, Any], **how: Any) -> torch.Tensor:
    dtype = torch.float64
    artifacts = {"base": tiny_policy("gpt2", dtype=dtype), "other": tiny_policy("gpt2", seed=1, dtype=dtype)}
    artifacts["critic"] = tiny_scalar("gpt2", seed=2, dtype=dtype)
    layout = how.pop("layout", "padded")
    written = {"algorithm": {"name": name, **settings}, "reference": "other", "critic": "critic", "max_length": 60}
    written |= {
        "data": {"name": "random_walks", "view": "prompts"},
        "reward": "given",
        "source": {"max_tokens": 8},
        **how,
    }
    written["layout"] = "packed" if layout == "packed" else "padded"
    run = set_up(stage(tmp_path, artifacts), train_settings(**written))
    run.layout = layout
    table = table_of(run, _groups(), several_steps=True)
    generator = torch.Generator().manual_seed(1)
    moved = 0.3 * torch.randn(table.batch.loss_mask.shape, generator=generator, dtype=dtype)
    now = {"old_logp": table.batch.old_logp + moved} if table.batch.has("old_logp") else {}
    if "sampling_logp" in run.streams[0].terms[0].reads:
        now["sampling_logp"] = now["old_logp"] + moved.flip(0) * table.batch.loss_mask
    table.batch = table.batch.plus(**now)
    run.optimizer.zero_grad(set_to_none=True)
    accumulate(run, [count(run, table, list(range(len(table.rows))))])
    return gradient(run)


@pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
def test_gradient_is_the_same_however_the_step_is_cut_and_laid_out(
    tmp_path: Path, name: str, settings: dict[str, Any]
) -> None:
    whole = _gradient(tmp_path, name, settings, tokens_per_micro_batch=100_000)
    assert whole.norm() > 1e-6
    for way in WAYS:
        assert relative(_gradient(tmp_path, name, settings, **way), whole) < 1e-10, way


def test_two_processes_give_the_gradient_of_one(tmp_path: Path) -> None:
    names = ["dr_grpo", "gspo", "clip_cov", "kl_cov", "rloo", "reinforce_pp", "reinforce_pp_baseline", "opo", "vapo"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--standalone"]
    for out, launch in (("1.pt", []), ("2.pt", torchrun)):
        command = [sys.executable, *launch, "-m", "tests.gradients", str(tmp_path / out), "float64", *names]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = torch.load(tmp_path / "1.pt"), torch.load(tmp_path / "2.pt")
    assert set(one) == set(names)
    for name in names:
        assert relative(two[name], one[name]) < 1e-10, name
