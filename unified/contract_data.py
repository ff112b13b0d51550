"""Random batches for the contract suite: every field that there is, as the engine would give it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unified.parts import HEADS, SCORED, STATISTICS
from unified.settings import Settings

#: fields that are there without being declared
ALWAYS = frozenset({"loss_mask", "group", "reward", "probe", "trajectory"})
#: all fields; names that `reads` and `credit_reads` may hold
KNOWN = ALWAYS | {*HEADS, *STATISTICS, *SCORED, "sampling_logp", "advantage", "returns"}


def random_fields(seed: int, answers: int, *, groups: int = 4, time: int = 7) -> dict[str, Tensor]:
    """Every field in float64: `groups` prompts with so many answers and a probe each, answers of any length with holes.

    Rewards lie between 0 and 1: all different at an even seed, 0 and 1 with at least one of both in a prompt at an odd
    one. Numbers outside the loss mask are 0.
    """
    torch.manual_seed(seed)
    rows = groups * (answers + 1)
    mask = torch.rand(rows, time) < 0.8
    mask &= torch.arange(time) < torch.randint(2, time + 1, (rows, 1))
    mask[:, 0] = True

    def noise(scale: float = 1.0) -> Tensor:
        return torch.where(mask, scale * torch.randn(rows, time, dtype=torch.float64), 0.0)

    logp, value = torch.where(mask, -noise().abs() - 0.1, 0.0), noise()
    reward = torch.randperm(rows).double() / rows
    if seed % 2:
        reward = (torch.rand(rows) < 0.5).double()
        reward[:: answers + 1], reward[1 :: answers + 1] = 1.0, 0.0
    own = {"logp": logp, "old_logp": logp + noise(0.3), "ref_logp": logp + noise(0.5), "teacher_logp": logp + noise()}
    return {
        "loss_mask": mask,
        "group": torch.arange(rows) // (answers + 1),
        "trajectory": torch.arange(rows),
        "probe": torch.arange(rows) % (answers + 1) == answers,
        "reward": reward,
        **own,
        "sampling_logp": own["old_logp"] + noise(0.1),
        "entropy": noise().abs(),
        "collision_logp": -noise().abs(),
        "value": value,
        "old_value": value + noise(0.3),
        "score": noise(),
        "logits": -noise().abs(),
        "advantage": noise(),
        "returns": noise(),
        "old_collision_logp": -noise().abs(),
    }


def shortened(fields: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """The fields with one empty answer, one prompt of empty answers, and one of answers of one token; where empty."""
    mask, group = fields["loss_mask"].clone(), fields["group"]
    mask[0] = False
    mask[group == 1] = False
    mask[group == 2, 1:] = False
    off = ~mask
    masked = {k: torch.where(off, torch.zeros_like(v), v) if v.dim() == 2 else v for k, v in fields.items()}
    return {**masked, "loss_mask": mask}, ~mask.any(1)


def columns_for(settings: Settings, rows: int) -> dict[str, Tensor]:
    """Numbers between 0.1 and 1.1 for every column of the data that the settings may name: [rows] each."""
    torch.manual_seed(11)
    names = sorted(_words(settings.model_dump()) - KNOWN)
    return {name: torch.rand(rows, dtype=torch.float64) + 0.1 for name in names}


def _words(value: Any) -> set[str]:
    if isinstance(value, str):
        return {value}
    if isinstance(value, Mapping):
        return set().union(*(_words(v) for v in value.values()), *(_words(k) for k in value))
    return set().union(*(_words(v) for v in value)) if isinstance(value, (list, tuple, set)) else set()
