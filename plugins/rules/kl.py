"""Estimates of KL(policy, reference) from the sampled token, and how an adaptive weight follows them.

A rule of kind "kl" may name: log_ratio [batch, time] nats (policy over reference, 0 outside the loss mask), loss_mask,
the fields in its `reads`, and where these include old_logp: old_ratio [batch, time] (policy over the policy that
sampled). Its value is the estimate; its coefficient the negative derivative of that by logp.
Source of k1, k2, k3: Schulman 2020, Approximating KL Divergence (joschu.net/blog/kl-approx.html). Straight-through is
verl's `k1+` and `k3+`: the value of one estimate, and the gradient of k2, which is that of KL(policy, reference).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from unified import Field, Rule, Settings, hookimpl


class KLSettings(Settings):
    """What may be set for every estimate."""

    importance: Literal["none", "on_policy", "old_policy"] = Field(
        "none", description="differentiated weight: none, policy over itself (value 1), or policy over the old policy"
    )
    log_ratio_limit: float | None = Field(None, gt=0, description="log-ratio is clamped to +- this, in nats")
    limit: float | None = Field(None, gt=0, description="the estimate is clamped to +- this, in nats")
    straight_through: bool = Field(False, description="as a loss: this value, with the gradient of k2 unclamped")

    @model_validator(mode="after")
    def _one_gradient(self) -> KLSettings:
        if self.straight_through and self.importance != "none":
            raise ValueError("straight_through has the gradient of k2, so importance must be none")
        return self


def k1(log_ratio: Tensor) -> Tensor:
    """k1 = log(policy / reference): unbiased, any sign. As a loss its coefficient is -1 everywhere: only noise.

    log_ratio: [batch, time] nats. Returns [batch, time] nats.
    """
    return log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    """k2 = log(policy / reference)^2 / 2: never negative; as a loss it has the gradient of KL(policy, reference).

    log_ratio: [batch, time] nats. Returns [batch, time] nats.
    """
    return log_ratio**2 / 2


def k3(log_ratio: Tensor) -> Tensor:
    """k3 = reference / policy - 1 - log(reference / policy): unbiased, never negative; arXiv:2402.03300, eq. 4.

    As a loss it has the gradient of KL(reference, policy), unbounded where the policy is far below the reference.
    log_ratio: [batch, time] nats. Returns [batch, time] nats.
    """
    return torch.expm1(-log_ratio) + log_ratio


def absolute(log_ratio: Tensor) -> Tensor:
    """abs = |log(policy / reference)|, as a penalty that has one size on either side.

    log_ratio: [batch, time] nats. Returns [batch, time] nats.
    """
    return log_ratio.abs()


def adapt_weight(weight: float, kl: float, *, target: float, horizon: float) -> float:
    """The next KL weight: weight (1 + clip(kl / target - 1, -0.2, 0.2) / horizon).

    kl, target: nats per token. horizon: in collected batches; the weight changes by at most 0.2 / horizon.
    Source: Ziegler et al. 2019, arXiv:1909.08593, section 2.2, with the horizon counted in collected batches.
    """
    return weight * (1 + max(-0.2, min(0.2, kl / target - 1)) / horizon)


def _rule(name: str, estimate: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor]) -> Rule:
    """A rule from an estimate and its derivative by the log-ratio; the settings are the same for all."""

    def value(
        log_ratio: Tensor,
        old_ratio: Tensor | None = None,
        *,
        importance: str,
        log_ratio_limit: float | None,
        limit: float | None,
        straight_through: bool = False,
    ) -> Tensor:
        x = log_ratio if log_ratio_limit is None else log_ratio.clamp(-log_ratio_limit, log_ratio_limit)
        weighted = estimate(x) * _weight(log_ratio, old_ratio, importance)
        weighted = weighted if limit is None else weighted.clamp(-limit, limit)
        return weighted.detach() + k2(log_ratio) - k2(log_ratio).detach() if straight_through else weighted

    def coefficient(
        log_ratio: Tensor,
        old_ratio: Tensor | None = None,
        *,
        importance: str,
        log_ratio_limit: float | None,
        limit: float | None,
        straight_through: bool = False,
    ) -> Tensor:
        x = log_ratio if log_ratio_limit is None else log_ratio.clamp(-log_ratio_limit, log_ratio_limit)
        if straight_through:
            return -log_ratio
        weight = _weight(log_ratio, old_ratio, importance)
        rate = torch.where(x == log_ratio, slope(x), 0.0)
        if importance != "none":
            rate = rate + estimate(x)
        if limit is not None:
            rate = torch.where((estimate(x) * weight).abs() > limit, 0.0, rate)
        return -rate * weight

    value.__doc__ = estimate.__doc__
    coefficient.__doc__ = f"The negative derivative of {name} by logp, [batch, time]."
    return Rule(name, KLSettings, of="kl", value=value, coefficient=coefficient, reads=_reads)


def _weight(log_ratio: Tensor, old_ratio: Tensor | None, importance: str) -> Tensor | float:
    """The differentiated weight, [batch, time]; its derivative by logp is itself."""
    if importance == "on_policy":
        return (log_ratio - log_ratio.detach()).exp()
    if importance == "old_policy":
        if old_ratio is None:
            raise ValueError("importance 'old_policy' needs old_logp")
        return old_ratio
    return 1.0


def _reads(settings: Any) -> frozenset[str]:
    """The reference, and the old policy where the estimate is weighted by it."""
    return frozenset({"ref_logp", *(["old_logp"] if settings.importance == "old_policy" else [])})


@hookimpl
def unified_rules() -> list[Rule]:
    """Offer `kl: k1`, `k2`, `k3` and `abs`."""
    return [
        _rule("k1", k1, torch.ones_like),
        _rule("k2", k2, lambda x: x),
        _rule("k3", k3, lambda x: -torch.expm1(-x)),
        _rule("abs", absolute, torch.sign),
    ]
