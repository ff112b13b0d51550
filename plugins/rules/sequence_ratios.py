"""Ratio rules that look at whole answers: one ratio for all tokens, or the geometric mean of clipped ones.

What such a rule may name is listed in `ratios.py`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from unified import Field, Rule, Settings, hookimpl
from unified_plugins.rules.levels import answer_mean, at_level
from unified_plugins.rules.ratios import clip, clip_coefficient


class SequenceClipSettings(Settings):
    """What may be set for the clipped ratio of whole answers."""

    low: float = Field(3e-4, ge=0, description="the answer's ratio is clipped below 1 - low")
    high: float = Field(4e-4, ge=0, description="the answer's ratio is clipped above 1 + high")
    level: Literal["mean", "product"] = Field(
        "mean", description="the answer's ratio: geometric mean of its tokens' ratios, or their product"
    )
    per_token: bool = Field(
        False, description="push each token by its own advantage; without, by the mean over its answer's tokens"
    )


class GeometricClipSettings(Settings):
    """What may be set for the geometric mean of clipped ratios."""

    low: float = Field(0.4, ge=0, description="a token's log-ratio is clipped below -low, in nats")
    high: float = Field(0.4, ge=0, description="a token's log-ratio is clipped above high, in nats")


def sequence_clip(
    log_ratio: Tensor, advantage: Tensor, loss_mask: Tensor, *, low: float, high: float, level: str, per_token: bool
) -> Tensor:
    """The clipped objective of the answer's ratio s: min(s A, clip(s, 1 - low, 1 + high) A).

    With `per_token` the gradient goes through the token alone, s becomes sg(s) policy / sg(policy); the two push the
    same where all tokens of an answer have one advantage.

    log_ratio: [batch, time] nats; advantage: [batch, time]. Returns [batch, time]: the objective at every token, so
    that its mean over tokens is that of the answer; for the product it is shared out, so that its sum is.
    Source: Zheng et al. 2025, arXiv:2507.18071, GSPO, eq. 5 and 7; per_token: its section 4.3, GSPO-token; the bounds:
    its section 5.1. The product is TRL's ratio for RLOO.
    """
    whole = at_level(log_ratio, loss_mask, level)
    if per_token:
        return clip((whole.detach() + log_ratio - log_ratio.detach()).exp(), advantage, low=low, high=high)
    share = loss_mask.sum(1, keepdim=True).clamp(min=1) if level == "product" else 1
    return clip(whole.exp(), advantage, low=low, high=high) / share


def sequence_clip_coefficient(
    log_ratio: Tensor, advantage: Tensor, loss_mask: Tensor, *, low: float, high: float, level: str, per_token: bool
) -> Tensor:
    """Derivative of `sequence_clip` by logp: s A where s is not clipped, or its mean over the answer's tokens."""
    each = clip_coefficient(at_level(log_ratio, loss_mask, level).exp(), advantage, low=low, high=high)
    return each if per_token else answer_mean(each, loss_mask)


def geometric_clip(log_ratio: Tensor, advantage: Tensor, loss_mask: Tensor, *, low: float, high: float) -> Tensor:
    """g A, with g the geometric mean over the answer of ratios clipped where going on would leave the region.

    log_ratio: [batch, time] nats; advantage: [batch, time], one sign for each answer in the paper. Returns
    [batch, time]. Source: Zhao et al. 2025, arXiv:2507.20673, GMPO, whose bounds these are.
    """
    near = torch.where(advantage > 0, log_ratio.clamp(max=high), log_ratio.clamp(min=-low))
    return answer_mean(near, loss_mask).exp() * advantage


def geometric_clip_coefficient(
    log_ratio: Tensor, advantage: Tensor, loss_mask: Tensor, *, low: float, high: float
) -> Tensor:
    """Derivative of `geometric_clip` by logp: the answer's mean of g A, on tokens that are not clipped."""
    free = torch.where(advantage > 0, log_ratio <= high, log_ratio >= -low)
    return answer_mean(geometric_clip(log_ratio, advantage, loss_mask, low=low, high=high), loss_mask) * free


@hookimpl
def unified_rules() -> list[Rule]:
    """Offer `ratio: sequence_clip` and `geometric_clip`."""
    both = frozenset({"logp", "old_logp"})
    return [
        Rule(
            "sequence_clip",
            SequenceClipSettings,
            of="ratio",
            value=sequence_clip,
            coefficient=sequence_clip_coefficient,
            reads=both,
        ),
        Rule(
            "geometric_clip",
            GeometricClipSettings,
            of="ratio",
            value=geometric_clip,
            coefficient=geometric_clip_coefficient,
            reads=both,
        ),
    ]
