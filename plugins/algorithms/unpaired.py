"""The unpaired family: each answer is desirable or not, and is compared with one level for the whole step.

With h the margin rule of an answer and `level` what the algorithm compares with, u = +-(beta h - level), + for answers
whose reward is over `threshold`; the loss of an answer is its side's weight times link(u), and
GC = weight * (+-beta) * (-d link / d u) * d h / d logp. Every answer weighs the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unified import Batch, Chosen, Field, Settings, choice
from unified_plugins.rules import apply


class UnpairedSettings(Settings):
    """What a recipe may set for every member of the family."""

    beta: float = Field(0.1, gt=0, description="scale of the margin; larger stays nearer to the reference")
    margin: Chosen = choice("margin", "reference", description="what is compared")
    link: Chosen = choice("link", "probability", description="the loss of one answer; a rule of the margin alone")
    threshold: float = Field(0.5, description="an answer is desirable where its reward is over this")
    desirable_weight: float = Field(1.0, ge=0, description="factor on desirable answers")
    undesirable_weight: float = Field(1.0, ge=0, description="factor on the others")


def reads(settings: UnpairedSettings) -> frozenset[str]:
    """Those of the margin."""
    return apply.reads(settings.margin)


def push(batch: Batch, settings: UnpairedSettings, level: Tensor | float) -> Tensor:
    """GC of logp, [batch, time]."""
    sign, weight = _sides(batch, settings)
    u = sign * (rewards(batch, settings) - level)
    slope = apply.coefficient(settings.link, lambda x: {"margin": x, "beta": settings.beta}, u, ascend=False)
    inner = apply.coefficient(settings.margin, lambda x: _offered(batch, settings, x), batch.logp, ascend=True)
    return batch.expand(settings.beta * sign * weight * slope) * batch.expand(inner)


def cost(batch: Batch, settings: UnpairedSettings, level: Tensor | float) -> Tensor:
    """The loss of every answer, [batch]; 0 for probes."""
    sign, weight = _sides(batch, settings)
    u = sign * (rewards(batch, settings) - level)
    value: Tensor = apply.value(settings.link, {"margin": u, "beta": settings.beta})
    return torch.where(batch.probe, 0.0, weight * value)


def rewards(batch: Batch, settings: UnpairedSettings) -> Tensor:
    """[batch]: beta h, the implicit reward, in nats."""
    h: Tensor = apply.value(settings.margin, _offered(batch, settings, batch.logp))
    return settings.beta * h


def measured(batch: Batch, settings: UnpairedSettings) -> dict[str, tuple[Tensor, Tensor]]:
    """Means over answers: rewards of all, of the desirable (rewards/chosen) and of the others (rewards/rejected)."""
    reward, good = rewards(batch, settings), batch.total_reward > settings.threshold
    sides = {"rewards": batch.counts, "rewards/chosen": batch.counts & good, "rewards/rejected": batch.counts & ~good}
    return {name: (torch.where(on, reward, 0.0).sum(), on.sum()) for name, on in sides.items()}


def _sides(batch: Batch, settings: UnpairedSettings) -> tuple[Tensor, Tensor]:
    """[batch]: 1 for desirable answers and -1 for the others, and the weight of that side."""
    good = batch.total_reward > settings.threshold
    sign = torch.where(good, 1.0, -1.0).double()
    weight = torch.where(good, settings.desirable_weight, settings.undesirable_weight).double()
    return sign, weight


def _offered(batch: Batch, settings: UnpairedSettings, logp: Tensor) -> dict[str, Any]:
    """What a margin rule may name, with logp in the place of the batch's own."""
    own = {n: getattr(batch, n) for n in apply.reads(settings.margin) if n != "logp"}
    return {**own, "loss_mask": batch.loss_mask, "group": batch.group, "counts": batch.counts, "logp": logp}
