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
from torch.distributed.tensor import DTensor

import unified.step
from tests.gradients import leave
from tests.processes.cases import CASES, CUT, CUT_AFTER, CUT_OFF, artifacts
from tests.tools import stage, train_settings
from unified.interrupt import StopSignal
from unified.loop import train_stage
from unified.running import Run

#: policy, scorer, policy with reference, policy and critic with sampling, streams of unequal length, the best restored
SHARDED: dict[str, dict[str, Any]] = {
    **{name: CASES[name] for name in ("sft", "reward_model", "dpo", "ppo", "grpo")},
    **{name: CASES[name] for name in ("two terms with rows of their own", "evaluated, the best kept")},
    "adapter": {**CASES["dpo"], "reference": "input", "adapter": {"r": 4}},
    "adapter, merged": {**CASES["sft"], "adapter": {"r": 4, "save": "merged"}},
    "critic on the policy's trunk": {**CASES["ppo"], "critic": {"trunk": "shared"}},
    "bf16": {**CASES["sft"], "bf16": True},
}


def whole_gradient(run: Run) -> torch.Tensor:
    """The gradient as one vector, in every process."""
    return torch.cat([_whole(p).flatten().double() for _, p in sorted(run.roles.named_parameters()) if p.requires_grad])


def _whole(parameter: Any) -> torch.Tensor:
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
    found: dict[str, torch.Tensor] = {}
    update = unified.step.update

    def watched(run: Run) -> bool:
        found.setdefault("gradient", whole_gradient(run))
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
    """All cases in `folder`; then what was cut off in `other` goes on there."""
    for name, written in SHARDED.items() if folder != "-" else ():
        run_case(Path(folder) / name, written)
    for name, written in CUT.items() if folder != "-" else ():
        run_case(Path(folder) / CUT_OFF / name, written, stop_after=CUT_AFTER)
    for name, written in CUT.items():
        run_case(Path(other) / CUT_OFF / name, written)
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
