"""A program: the gradient of one optimiser step for each algorithm, written by the first of any number of processes.

python -m tests.gradients OUT float64 algorithm...                     one process
torchrun --nproc_per_node 2 -m tests.gradients OUT float64 algorithm... two
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.tools import random_groups, stage, step_gradient, tiny_policy, tiny_scalar, train_settings
from unified import PromptGroup, catalogue
from unified.set_up import set_up


def gradient_of(
    algorithm: str, groups: list[PromptGroup], dtype: torch.dtype, kind: str = "gpt2", **how: Any
) -> torch.Tensor:
    """One step of a built-in algorithm on given answers; `how` are further settings, `layout` may be padded-left."""
    scalar = "score" in catalogue().get("algorithm", algorithm).aggregations(
        catalogue().get("algorithm", algorithm).settings()
    )
    artifacts = {
        "base": tiny_scalar(kind, dtype=dtype) if scalar else tiny_policy(kind, dtype=dtype),
        "other": tiny_policy(kind, seed=1, dtype=dtype),
        "critic": tiny_scalar(kind, seed=2, dtype=dtype),
    }
    online = catalogue().get("source", catalogue().get("algorithm", algorithm).source).online
    written: dict[str, Any] = {"algorithm": algorithm, "reference": "other", "critic": "critic", "max_length": 60}
    written["data"] = {"name": "random_walks", "view": "pairs"}
    if online:
        written |= {"source": {"max_tokens": 8}, "reward": "given"}
        written["data"] = {"name": "random_walks", "view": "prompts"}
    layout = how.pop("layout", "padded")
    folder = Path(tempfile.mkdtemp())
    run = set_up(
        stage(folder, artifacts), train_settings(**written, layout="packed" if layout == "packed" else "padded", **how)
    )
    run.layout = layout
    return step_gradient(run, groups, several_steps=True)


def leave() -> None:
    """End a process of several in good order: one that ends while others still talk to it takes them down.

    Without the clean-up of the interpreter, in which a thread of the process group that is not done yet aborts it.
    """
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def main(out: str, dtype: str, *algorithms: str) -> None:
    """Groups are dealt to the processes in turn; 5 of them on 2 processes give unequal shares."""
    groups = random_groups(5, 3, empty=True)
    found = {a: gradient_of(a, groups, getattr(torch, dtype), tokens_per_micro_batch=30) for a in algorithms}
    together = dist.is_initialized()
    if not together or dist.get_rank() == 0:
        torch.save(found, out)
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
