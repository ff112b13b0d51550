"""Ratio rules: how far the policy may move from the one that sampled before a token stops counting.

A rule of kind "ratio" may name: logp [batch, time] (policy now), advantage [batch, time], loss_mask [batch, time] bool,
group [batch] int, the fields in its `reads`, and where these include old_logp: log_ratio = logp - old_logp (0 outside
the loss mask) and ratio = exp(log_ratio), both [batch, time]. Its value is the objective of each token, to be
maximised; its coefficient the derivative of that by logp.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unified import Field, Rule, Settings, hookimpl


class ClipSettings(Settings):
    """What may be set for the clipped ratio."""

    low: float = Field(0.2, ge=0, description="the ratio is clipped below 1 - low")
    high: float = Field(0.2, ge=0, description="the ratio is clipped above 1 + high")


class DualClipSettings(ClipSettings):
    """What may be set for the ratio that is also capped on negative advantages."""

    cap: float = Field(3.0, gt=1, description="largest ratio on a negative advantage; at least 1 + high")


def clip(ratio: Tensor, advantage: Tensor, *, low: float, high: float) -> Tensor:
    """The clipped objective: min(ratio A, clip(ratio, 1 - low, 1 + high) A).

    ratio, advantage: [batch, time], unitless. Returns [batch, time].
    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7; low and high apart: Yu et al. 2025, arXiv:2503.14476, eq. 10.
    """
    return torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def clip_coefficient(ratio: Tensor, advantage: Tensor, *, low: float, high: float) -> Tensor:
    """Derivative of `clip` by logp: ratio A inside the region, 0 where going on would leave it further."""
    outside = torch.where(advantage > 0, ratio > 1 + high, ratio < 1 - low)  # [batch, time]
    return torch.where(outside | (advantage == 0), 0.0, advantage * ratio)


def dual_clip(ratio: Tensor, advantage: Tensor, *, low: float, high: float, cap: float) -> Tensor:
    """The clipped objective, bounded below on negative advantages: max(clip(...), cap A) where A < 0.

    ratio, advantage: [batch, time], unitless. Returns [batch, time].
    Source: Ye et al. 2020, arXiv:1912.09729, "dual-clip PPO".
    """
    clipped = clip(ratio, advantage, low=low, high=high)
    return torch.where(advantage < 0, torch.maximum(clipped, cap * advantage), clipped)


def dual_clip_coefficient(ratio: Tensor, advantage: Tensor, *, low: float, high: float, cap: float) -> Tensor:
    """Derivative of `dual_clip` by logp: that of `clip`, and 0 where A < 0 and the ratio is above the cap."""
    capped = (advantage < 0) & (ratio > cap)
    return torch.where(capped, 0.0, clip_coefficient(ratio, advantage, low=low, high=high))


def none(logp: Tensor, advantage: Tensor) -> Tensor:
    """No ratio: A log p, the plain policy gradient, right only for answers of the policy as it is now.

    logp: [batch, time] nats; advantage: [batch, time]. Returns [batch, time].
    Source: Williams 1992, REINFORCE.
    """
    return advantage * logp


def none_coefficient(advantage: Tensor) -> Tensor:
    """Derivative of `none` by logp: the advantage itself, [batch, time]."""
    return advantage


@hookimpl
def unified_rules() -> list[Rule]:
    """Offer `ratio: clip`, `dual_clip` and `none`."""
    both = frozenset({"logp", "old_logp"})
    return [
        Rule("clip", ClipSettings, of="ratio", value=clip, coefficient=clip_coefficient, reads=both),
        Rule("dual_clip", DualClipSettings, of="ratio", value=dual_clip, coefficient=dual_clip_coefficient, reads=both),
        Rule("none", of="ratio", value=none, coefficient=none_coefficient),
    ]
