"""A program: the same short trainings with weights shared out among the processes, by FSDP2 or DeepSpeed ZeRO.

torchrun --nproc_per_node 2 -m tests.processes.sharded FOLDER CUT_FOLDER        (FOLDER -: only the latter)

The launcher's environment says how (ACCELERATE_USE_FSDP, ACCELERATE_USE_DEEPSPEED). CUT_FOLDER holds what a launch of
another kind or number of processes has left behind: the runs cut off there go on here.
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
from torch import Tensor
from torch.distributed.tensor import DTensor

import unified.step
from tests.gradients import leave
from tests.processes.cases import CASES, CUT, CUT_AFTER, CUT_OFF, ONLINE, ROWS, artifacts
from tests.tools import stage, train_settings
from unified import Algorithm, Batch, Catalogue, Dataset, Example, hookimpl, using
from unified.interrupt import StopSignal
from unified.loop import train_stage
from unified.running import Run

#: the row whose coefficient is no number: of two processes the second meets it in the first of three micro-batches of
#: step 4
BAD = 5


def breaks(batch: Batch) -> Tensor:
    """Every token up by one, but NaN in the row BAD."""
    return torch.where(batch.expand(batch.columns["number"] == BAD), torch.nan, torch.ones_like(batch.logp))


def numbered(split: str, seed: int) -> list[Example]:
    """14 rows of 3 to 9 tokens with their numbers."""
    words = ["abcdefghi"[: 3 + 5 * n % 7] for n in range(14)]
    return [Example(word, [word[::-1]], [1.0], {"number": float(n)}) for n, word in enumerate(words)]


class Mine:
    """A stranger's plugin."""

    @hookimpl
    def unified_algorithms(self) -> list[Algorithm]:
        """One that fails on one row."""
        return [Algorithm("breaks", coefficient=breaks, reads=frozenset({"logp"}), aggregation="token")]

    @hookimpl
    def unified_datasets(self) -> list[Dataset]:
        """Its rows."""
        return [Dataset("numbered", open=numbered)]


#: a policy that writes anything: its first letter is the opinion
OPINION = {
    "name": "rubric", "template": "{answer}", "pattern": "([a-z])", "max_tokens": 5, "high": 25,
    "points": {letter: n for n, letter in enumerate("abcdefghijklmnopqrstuvwxyz")},
}  # fmt: skip
FIVE = ("sft", "reward_model", "dpo", "ppo", "grpo")
TIED = "a tied embedding"
SHARDED: dict[str, dict[str, Any]] = {
    **{name: CASES[name] for name in (*FIVE, TIED, "evaluated, the best kept", "statistics of the step")},
    "adapter": {**CASES["dpo"], "reference": "input", "adapter": {"r": 4}},
    "adapter, merged": {**CASES["sft"], "adapter": {"r": 4, "save": "merged"}},
    "critic on the policy's trunk, recomputed": {
        **CASES["ppo"], "critic": {"trunk": "shared"}, "gradient_checkpointing": True,
    },
    "bf16": {**CASES["sft"], "bf16": True},
    # the rows of the second term come first in a step: their backward passes do not reach the critic
    "a critic that some passes do not reach": {
        **{k: v for k, v in ONLINE.items() if k != "source"}, "critic": "critic", "optim": "SGD", "max_steps": 3,
        "source": {"name": "rollouts", **ONLINE["source"]},
        "terms": [
            {"algorithm": "ppo"},
            {"algorithm": "sft", "weight": 0.3, "data": {"name": "random_walks", "rows": 7}, "per_step": 3},
        ],
    },
    "a step left out": {
        **ROWS, "algorithm": "breaks", "data": "numbered", "batch_size": 7, "tokens_per_micro_batch": 20,
        "nonfinite": "skip",
    },
    "the reference renewed": {**CASES["dpo"], "reference": "input", "ref_sync_steps": 2, "ref_mixup_alpha": 0.6},
    "a teacher": {**ONLINE, "algorithm": "gkd", "reward": None, "teacher": "other", "max_steps": 2},
    "judged by a reward model": {**CASES["grpo"], "reward": {"name": "model", "model": "critic"}, "max_steps": 2},
    "judged by itself": {
        **CASES["grpo"], "reward": {**OPINION, "model": "self"}, "max_missing": 1.0, "max_steps": 2,
    },
    "judged by another policy": {
        **CASES["grpo"], "reward": {**OPINION, "model": "other"}, "max_missing": 1.0, "max_steps": 2,
    },
}  # fmt: skip
#: kinds of launch that run some of them; FSDP2 runs all
ONLY = {
    "zero3-1": (*FIVE, TIED, "adapter", "a step left out"),
    "zero3-2": tuple(name for name in SHARDED if name not in ("adapter, merged", "judged by another policy")),
    "zero2-2": (
        *FIVE,
        TIED,
        "adapter",
        "a critic that some passes do not reach",
        "a step left out",
        "the reference renewed",
    ),
}


def cases_of(kind: str) -> dict[str, dict[str, Any]]:
    """What a kind of launch runs."""
    return {name: written for name, written in SHARDED.items() if name in ONLY.get(kind, SHARDED)}


def whole_gradient(run: Run) -> Tensor:
    """The gradient as one vector, in every process."""
    return torch.cat([_whole(p).flatten().double() for _, p in sorted(run.roles.named_parameters()) if p.requires_grad])


def _whole(parameter: Any) -> Tensor:
    if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
        from deepspeed.utils import safe_get_full_grad

        return safe_get_full_grad(parameter)  # type: ignore[no-any-return]
    if parameter.grad is None:
        return torch.zeros_like(parameter)
    return parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad  # type: ignore[no-any-return]


def run_case(folder: Path, written: dict[str, Any], *, stop_after: int = 0) -> None:
    """Train and write the model as a stage does, and the gradient of the first step; or stop after a step."""
    models = artifacts(torch.float32)
    if written.get("algorithm") == "reward_model":
        models["base"] = models["scalar"]
    found: dict[str, Tensor] = {}
    update = unified.step.update

    def watched(run: Run) -> bool:
        if not found:
            found["gradient"] = whole_gradient(run)
        done = update(run)
        if run.step + 1 == stop_after and run.processes.rank == run.processes.count - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return done

    with patch("unified.step.update", watched):
        try:
            summary = train_stage(stage(folder, models), train_settings(**written)).summary
        except StopSignal:
            return
    if int(os.environ.get("RANK", "0")) == 0:
        save_file(found, folder / "found.safetensors")
        (folder / "summary.json").write_text(json.dumps(summary))


def main(folder: str, other: str) -> None:
    """The cases of the kind that `folder` is named after; then what was cut off in `other` goes on there."""
    for name, written in cases_of(Path(folder).name).items() if folder != "-" else ():
        run_case(Path(folder) / name, written)
    for name, written in CUT.items() if folder != "-" else ():
        run_case(Path(folder) / CUT_OFF / name, written, stop_after=CUT_AFTER)
    for name, written in CUT.items():
        run_case(Path(other) / CUT_OFF / name, written)
    leave()


if __name__ == "__main__":
    with using(Catalogue({"mine": Mine()}, installed=True)):
        main(*sys.argv[1:])
