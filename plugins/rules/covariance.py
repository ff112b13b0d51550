"""Ratio rules that hold back the tokens on which log-probability and advantage go together: they lower the entropy.

The covariance of a token is (A - mean A)(log p - mean log p), with means over all tokens of the optimiser step. What
such a rule may name is listed in `ratios.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from unified import Field, Rule, Settings, hookimpl
from unified_plugins.rules.levels import cut_above
from unified_plugins.rules.ratios import ClipSettings, clip, clip_coefficient


class ClipCovSettings(ClipSettings):
    """What may be set for the clip by covariance."""

    share: float = Field(2e-4, gt=0, le=1, description="share of all tokens that is left out, at least one")
    floor: float = Field(1.0, description="only tokens with a covariance above this are left out")
    ceiling: float = Field(5.0, description="only tokens with a covariance below this are left out")


class KLCovSettings(Settings):
    """What may be set for the penalty by covariance."""

    share: float = Field(2e-3, gt=0, le=1, description="share of all tokens that is held back, at least one")
    weight: float = Field(1.0, ge=0, description="weight of |log-ratio| to the policy that sampled, on those tokens")


def clip_cov(
    ratio: Tensor,
    logp: Tensor,
    advantage: Tensor,
    statistics: Mapping[str, Tensor],
    *,
    low: float,
    high: float,
    share: float,
    floor: float,
    ceiling: float,
) -> Tensor:
    """The clipped objective, with tokens of high covariance left out.

    The paper draws the tokens at random among those between `floor` and `ceiling`; here they are the highest of these,
    so that a step does not depend on how it is cut. With share 1 the two are the same.

    ratio, advantage: [batch, time]; logp: [batch, time] nats. Returns [batch, time].
    Source: Cui et al. 2025, arXiv:2505.22617, Clip-Cov, whose share and bounds these are.
    """
    out = _left_out(ratio, logp.detach(), advantage, statistics, low=low, high=high, floor=floor, ceiling=ceiling)
    return torch.where(out, 0.0, clip(ratio, advantage, low=low, high=high))


def clip_cov_coefficient(
    ratio: Tensor,
    logp: Tensor,
    advantage: Tensor,
    statistics: Mapping[str, Tensor],
    *,
    low: float,
    high: float,
    share: float,
    floor: float,
    ceiling: float,
) -> Tensor:
    """Derivative of `clip_cov` by logp: that of `clip`, and 0 on the tokens that are left out."""
    out = _left_out(ratio, logp, advantage, statistics, low=low, high=high, floor=floor, ceiling=ceiling)
    return torch.where(out, 0.0, clip_coefficient(ratio, advantage, low=low, high=high))


def clip_cov_statistics(
    ratio: Tensor,
    logp: Tensor,
    advantage: Tensor,
    loss_mask: Tensor,
    counts: Tensor,
    total: Callable[[Tensor], Tensor],
    gather: Callable[[Tensor], Tensor],
    *,
    low: float,
    high: float,
    share: float,
    floor: float,
    ceiling: float,
) -> dict[str, Tensor]:
    """The two means, and the covariance above which tokens are left out."""
    means = _means(logp, advantage, loss_mask & counts[:, None], total)
    everything = {**means, "bound": means["tokens"].new_full((), -torch.inf)}
    among = _left_out(ratio, logp, advantage, everything, low=low, high=high, floor=floor, ceiling=ceiling)
    own = _covariance(logp, advantage, means)[among & loss_mask & counts[:, None]]  # [tokens of this process]
    return {**means, "bound": cut_above(gather(own), max(1, int(share * float(means["tokens"]))))}


def kl_cov(
    ratio: Tensor,
    log_ratio: Tensor,
    logp: Tensor,
    advantage: Tensor,
    statistics: Mapping[str, Tensor],
    *,
    share: float,
    weight: float,
) -> Tensor:
    """ratio A without a clip, less weight |log ratio| on the tokens of highest covariance.

    ratio, advantage: [batch, time]; logp, log_ratio: [batch, time] nats. Returns [batch, time].
    Source: Cui et al. 2025, arXiv:2505.22617, KL-Cov; as in its code the penalty is |log ratio|.
    """
    held = _covariance(logp.detach(), advantage, statistics) >= statistics["bound"]
    return ratio * advantage - torch.where(held, weight * log_ratio.abs(), 0.0)


def kl_cov_coefficient(
    ratio: Tensor,
    log_ratio: Tensor,
    logp: Tensor,
    advantage: Tensor,
    statistics: Mapping[str, Tensor],
    *,
    share: float,
    weight: float,
) -> Tensor:
    """Derivative of `kl_cov` by logp: ratio A, less weight sign(log ratio) on the tokens that are held back."""
    held = _covariance(logp, advantage, statistics) >= statistics["bound"]
    push = torch.where(advantage == 0, 0.0, ratio * advantage)
    return push - torch.where(held, weight * log_ratio.sign(), 0.0)


def kl_cov_statistics(
    logp: Tensor,
    advantage: Tensor,
    loss_mask: Tensor,
    counts: Tensor,
    total: Callable[[Tensor], Tensor],
    gather: Callable[[Tensor], Tensor],
    *,
    share: float,
    weight: float,
) -> dict[str, Tensor]:
    """The two means, and the covariance above which tokens are held back."""
    among = loss_mask & counts[:, None]
    means = _means(logp, advantage, among, total)
    own = _covariance(logp, advantage, means)[among]  # [tokens of this process]
    return {**means, "bound": cut_above(gather(own), max(1, int(share * float(means["tokens"]))))}


def _means(logp: Tensor, advantage: Tensor, among: Tensor, total: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Number of tokens, and the means of logp and advantage over them, on all processes."""
    kept = [torch.where(among, x.double(), 0.0).sum(1) for x in (torch.ones_like(logp), logp, advantage)]
    tokens, of_logp, of_advantage = total(torch.stack(kept, 1))  # from [batch, 3]
    number = tokens.clamp(min=1)
    return {"tokens": tokens, "logp": of_logp / number, "advantage": of_advantage / number}


def _covariance(logp: Tensor, advantage: Tensor, means: Mapping[str, Tensor]) -> Tensor:
    """[batch, time] float64: (A - mean A)(log p - mean log p)."""
    return (advantage.double() - means["advantage"]) * (logp.double() - means["logp"])


def _left_out(
    ratio: Tensor,
    logp: Tensor,
    advantage: Tensor,
    statistics: Mapping[str, Tensor],
    *,
    low: float,
    high: float,
    floor: float,
    ceiling: float,
) -> Tensor:
    """[batch, time] bool: covariance within its bounds, above the step's, and not clipped anyway."""
    covariance = _covariance(logp, advantage, statistics)
    within = (covariance > floor) & (covariance < ceiling) & (covariance >= statistics["bound"])
    return within & (clip_coefficient(ratio, advantage, low=low, high=high) != 0)


@hookimpl
def unified_rules() -> list[Rule]:
    """Offer `ratio: clip_cov` and `kl_cov`."""
    both = frozenset({"logp", "old_logp"})
    return [
        Rule(
            "clip_cov",
            ClipCovSettings,
            of="ratio",
            value=clip_cov,
            coefficient=clip_cov_coefficient,
            statistics=clip_cov_statistics,
            reads=both,
            scope="step",
        ),
        Rule(
            "kl_cov",
            KLCovSettings,
            of="ratio",
            value=kl_cov,
            coefficient=kl_cov_coefficient,
            statistics=kl_cov_statistics,
            reads=both,
            scope="step",
        ),
    ]
