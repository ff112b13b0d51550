"""Ratio rules without the hard clip: a capped weight, a soft gate, and a bound on probabilities in place of ratios.

What such a rule may name is listed in `ratios.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unified import Field, Rule, Settings, hookimpl
from unified_plugins.rules.levels import Level, at_level


class ClippedWeightSettings(Settings):
    """What may be set for the clipped weight."""

    low: float | None = Field(None, ge=0, le=1, description="the weight is at least 1 - low; without, it may reach 0")
    high: float = Field(4.0, ge=0, description="the weight is at most 1 + high")
    level: Level = Field("token", description="ratio of the token, its answer's geometric mean, or the whole product")


class SoftGateSettings(Settings):
    """What may be set for the soft gate."""

    positive: float = Field(1.0, gt=0, description="temperature of the gate where the advantage is above 0")
    negative: float = Field(1.05, gt=0, description="and elsewhere; higher stops sooner")


class ProbabilityClipSettings(Settings):
    """What may be set for the bound on probabilities."""

    low: float = Field(0.2, ge=0, description="a token's probability may fall by this much")
    high: float = Field(0.2, ge=0, description="a token's probability may rise by this much")
    symmetric: bool = Field(False, description="stop a token outside the bounds whichever way it is pushed")
    pull: float = Field(0.0, ge=0, description="weight of the squared log-ratio, which pulls back all tokens")


def clipped_weight(
    logp: Tensor, log_ratio: Tensor, advantage: Tensor, loss_mask: Tensor, *, low: float | None, high: float, level: str
) -> Tensor:
    """sg(clip(ratio, 1 - low, 1 + high)) A log p: the ratio only weighs, and no token is ever left out.

    At level "product" it is truncated importance sampling of whole answers.

    logp, log_ratio: [batch, time] nats; advantage: [batch, time]. Returns [batch, time].
    Source: MiniMax 2025, arXiv:2506.13585, section 3.1, CISPO, without a lower bound; the cap of 5 is that of Khatri
    et al. 2025, arXiv:2510.13786, ScaleRL.
    """
    weight = clipped_weight_coefficient(log_ratio, advantage, loss_mask, low=low, high=high, level=level)
    return weight.detach() * logp


def clipped_weight_coefficient(
    log_ratio: Tensor, advantage: Tensor, loss_mask: Tensor, *, low: float | None, high: float, level: str
) -> Tensor:
    """Derivative of `clipped_weight` by logp: clip(ratio) A, [batch, time]."""
    ratio = at_level(log_ratio, loss_mask, level).exp()
    return ratio.clamp(0.0 if low is None else 1 - low, 1 + high) * advantage


def soft_gate(ratio: Tensor, advantage: Tensor, *, positive: float, negative: float) -> Tensor:
    """4 / tau sigmoid(tau (ratio - 1)) A, with one tau where A > 0 and another elsewhere.

    ratio, advantage: [batch, time], unitless. Returns [batch, time].
    Source: Gao et al. 2025, arXiv:2511.20347, SAPO, whose temperatures these are.
    """
    tau = torch.where(advantage > 0, torch.full_like(ratio, positive), torch.full_like(ratio, negative))
    return 4 / tau * torch.sigmoid(tau * (ratio - 1)) * advantage


def soft_gate_coefficient(ratio: Tensor, advantage: Tensor, *, positive: float, negative: float) -> Tensor:
    """Derivative of `soft_gate` by logp: 4 sigmoid (1 - sigmoid) ratio A, which is A at ratio 1; 0 at infinity."""
    tau = torch.where(advantage > 0, torch.full_like(ratio, positive), torch.full_like(ratio, negative))
    x = tau * (ratio - 1)
    gate = 4 * torch.sigmoid(x) * torch.sigmoid(-x) * ratio
    return torch.where(torch.isinf(ratio), 0.0, gate) * advantage


def probability_clip(
    ratio: Tensor,
    log_ratio: Tensor,
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    *,
    low: float,
    high: float,
    symmetric: bool,
    pull: float,
) -> Tensor:
    """ratio A while the token's probability is within its bounds, less pull (log ratio)^2.

    The bound is on the total variation between "this token" and "any other", so that rare tokens may move by large
    ratios and likely ones may not; `symmetric` and `pull` are prime-rl's.

    logp, old_logp, log_ratio: [batch, time] nats; ratio, advantage: [batch, time]. Returns [batch, time].
    Source: Qi et al. 2026, arXiv:2602.04879, DPPO, the binary total variation.
    """
    held = _held(logp.detach(), old_logp, advantage, low=low, high=high, symmetric=symmetric)
    return torch.where(held, 0.0, ratio * advantage) - pull * log_ratio**2


def probability_clip_coefficient(
    ratio: Tensor,
    log_ratio: Tensor,
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    *,
    low: float,
    high: float,
    symmetric: bool,
    pull: float,
) -> Tensor:
    """Derivative of `probability_clip` by logp: ratio A within the bounds, else 0, less 2 pull log ratio."""
    held = _held(logp, old_logp, advantage, low=low, high=high, symmetric=symmetric) | (advantage == 0)
    return torch.where(held, 0.0, ratio * advantage) - 2 * pull * log_ratio


def _held(logp: Tensor, old_logp: Tensor, advantage: Tensor, *, low: float, high: float, symmetric: bool) -> Tensor:
    """[batch, time] bool: tokens outside the bounds that would be pushed further (symmetric: pushed at all)."""
    moved = logp.exp() - old_logp.exp()
    if symmetric:
        return (moved > high) | (moved < -low)
    return torch.where(advantage > 0, moved > high, moved < -low)


@hookimpl
def unified_rules() -> list[Rule]:
    """Offer `ratio: clipped_weight`, `soft_gate` and `probability_clip`."""
    both = frozenset({"logp", "old_logp"})
    given = (
        ("clipped_weight", ClippedWeightSettings, clipped_weight, clipped_weight_coefficient),
        ("soft_gate", SoftGateSettings, soft_gate, soft_gate_coefficient),
        ("probability_clip", ProbabilityClipSettings, probability_clip, probability_clip_coefficient),
    )
    return [Rule(n, s, of="ratio", value=v, coefficient=c, reads=both) for n, s, v, c in given]
