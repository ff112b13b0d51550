"""Factors: numbers, without a gradient, that multiply the push of a token. They correct it, or leave it out.

A rule of kind "factor" may name: advantage [batch, time], loss_mask [batch, time] bool, the fields in its `reads`,
where these include logp and old_logp: log_ratio (policy over the policy that sampled), and where they include old_logp
and sampling_logp: mismatch (that policy by the trainer over the same by the rollout engine), both [batch, time] nats,
0 outside the loss mask. Its value is [batch, time] or [batch], 0 or more. Factors multiply; a token whose factor is 0
is not pushed but is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from unified import Field, Rule, Settings, hookimpl
from unified_plugins.rules.levels import Level, answer_mean, at_level, cut_above


class ImportanceSettings(Settings):
    """What may be set for the importance weight."""

    level: Level = Field("token", description="ratio of the token, its answer's geometric mean, or the whole product")
    low: float = Field(0.0, ge=0, description="the weight is at least this")
    high: float | None = Field(2.0, gt=0, description="the weight is at most this; without, it is not truncated")
    mean_one: bool = Field(False, description="divide by the mean weight over the optimiser step")


class RejectSettings(Settings):
    """What may be set for rejection."""

    level: Level = Field("token", description="ratio of the token, its answer's geometric mean, or the whole product")
    low: float = Field(0.5, ge=0, description="left out where the ratio is below this")
    high: float = Field(5.0, gt=0, description="left out where the ratio is above this")


class VariationSettings(Settings):
    """What may be set for the bound on an answer's total variation."""

    limit: float = Field(0.3, gt=0, description="largest mean of |ratio - 1| over the answer's tokens")


class OffPolicySettings(Settings):
    """What may be set for the off-policy mask."""

    limit: float = Field(0.5, gt=0, description="largest mean of log(old / policy) over the answer, in nats per token")


class TopEntropySettings(Settings):
    """What may be set for the choice of uncertain tokens."""

    share: float = Field(0.2, gt=0, le=1, description="share of the tokens of an optimiser step that is pushed")


def importance(
    mismatch: Tensor,
    loss_mask: Tensor,
    statistics: Mapping[str, Tensor],
    *,
    level: str,
    low: float,
    high: float | None,
    mean_one: bool,
) -> Tensor:
    """Weight of the trainer's policy over the rollout engine's, truncated to [low, high].

    mismatch: [batch, time] nats. Returns [batch, time].
    Source: Yao et al. 2025, Your Efficient RL Framework Secretly Brings You Off-Policy RL Training (TIS), level token;
    the product over the answer is the unbiased weight of the whole answer. `mean_one` is verl's batch normalisation.
    """
    weight = at_level(mismatch, loss_mask, level).exp().clamp(low, high)
    return weight / statistics["mean"] if mean_one else weight


def importance_statistics(
    mismatch: Tensor,
    loss_mask: Tensor,
    counts: Tensor,
    total: Callable[[Tensor], Tensor],
    *,
    level: str,
    low: float,
    high: float | None,
    mean_one: bool,
) -> dict[str, Tensor]:
    """The mean weight over the tokens of the step, or over its answers where the level is an answer's."""
    weight = at_level(mismatch, loss_mask, level).exp().clamp(low, high)
    among = loss_mask & counts[:, None]
    if level != "token":
        among = among & (loss_mask.long().cumsum(1) == 1)  # the first token of each
    added, number = total(torch.stack([torch.where(among, weight, 0.0).sum(1).double(), among.sum(1).double()], 1))
    return {"mean": torch.where(added > 0, added / number.clamp(min=1), 1.0)}


def reject(mismatch: Tensor, loss_mask: Tensor, *, level: str, low: float, high: float) -> Tensor:
    """1 where low <= ratio of the trainer's policy over the rollout engine's <= high, else 0.

    With `importance` at level token and without its truncation beside it, level "token" is IcePop and level "mean"
    sequence-masked importance sampling.

    mismatch: [batch, time] nats. Returns [batch, time].
    Source: Ling Team 2025, arXiv:2510.18855, IcePop, whose bounds these are.
    """
    ratio = at_level(mismatch, loss_mask, level).exp()
    return ((ratio >= low) & (ratio <= high)).to(mismatch.dtype)


def variation(mismatch: Tensor, advantage: Tensor, loss_mask: Tensor, *, limit: float) -> Tensor:
    """0 on tokens that widen the gap to the rollout engine, in answers whose mean |ratio - 1| is above the limit.

    A token widens it where its advantage has the sign of the mismatch. mismatch: [batch, time] nats; advantage:
    [batch, time]. Returns [batch, time]. Source: open-instruct, `rho_mask_tv_divergence` (VACO).
    """
    far = answer_mean((mismatch.exp() - 1).abs(), loss_mask) > limit
    return (~(far & (mismatch * advantage > 0))).to(mismatch.dtype)


def off_policy(log_ratio: Tensor, advantage: Tensor, loss_mask: Tensor, *, limit: float) -> Tensor:
    """0 on bad answers that the policy has moved away from: A < 0 and mean log(old / policy) above the limit.

    log_ratio: [batch, time] nats, policy over old; advantage: [batch, time]. Returns [batch, time].
    Source: DeepSeek-AI 2025, arXiv:2512.02556, DeepSeek-V3.2, section 3.1, off-policy sequence masking.
    """
    far = -answer_mean(log_ratio, loss_mask) > limit
    return (~(far & (advantage < 0))).to(log_ratio.dtype)


def top_entropy(entropy: Tensor, statistics: Mapping[str, Tensor], *, share: float) -> Tensor:
    """1 on the share of tokens with the highest entropy of their distribution, else 0.

    entropy: [batch, time] nats. Returns [batch, time].
    Source: Wang et al. 2025, arXiv:2506.01939, Beyond the 80/20 Rule, section 5; the share is of all tokens of the
    optimiser step.
    """
    return (entropy >= statistics["bound"]).to(entropy.dtype)


def top_entropy_statistics(
    entropy: Tensor, loss_mask: Tensor, counts: Tensor, gather: Callable[[Tensor], Tensor], *, share: float
) -> dict[str, Tensor]:
    """The entropy above which tokens are pushed."""
    everyone = gather(entropy[loss_mask & counts[:, None]])  # [tokens of all processes]
    return {"bound": cut_above(everyone, max(1, round(share * everyone.numel())))}


def _importance_scope(settings: Any) -> Literal["answer", "step"]:
    return "step" if settings.mean_one else "answer"


@hookimpl
def unified_rules() -> list[Rule]:
    """Offer `factors: [importance, reject, variation, off_policy, top_entropy]`."""
    engine = frozenset({"old_logp", "sampling_logp"})
    return [
        Rule(
            "importance",
            ImportanceSettings,
            of="factor",
            value=importance,
            statistics=importance_statistics,
            reads=engine,
            scope=_importance_scope,
        ),
        Rule("reject", RejectSettings, of="factor", value=reject, reads=engine),
        Rule("variation", VariationSettings, of="factor", value=variation, reads=engine),
        Rule("off_policy", OffPolicySettings, of="factor", value=off_policy, reads=frozenset({"logp", "old_logp"})),
        Rule(
            "top_entropy",
            TopEntropySettings,
            of="factor",
            value=top_entropy,
            statistics=top_entropy_statistics,
            reads=frozenset({"entropy"}),
            scope="step",
        ),
    ]
