"""PPO: clipped policy gradient with a critic, the KL to the reference inside the reward of each token.

GC of logp = ratio A inside the clip, else 0; A from generalised advantage estimation, whitened over
the collected batch.
GC of value = 2 value_weight (R - V), 0 where the clipped error is the larger one. All tokens of a step weigh the same.
Use: a reward model or verifier and a critic: one sample a prompt suffices, and credit differs from token to token.
Watch: `kl`, `clip_ratio`, and the critic: `value_error_square` must fall below the variance of `returns`.
Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7 and 9 (policy), clipped value as in OpenAI baselines; KL in the
reward as in Ziegler et al. 2019, arXiv:1909.08593, eq. 2. value_weight 0.5 makes the push of the critic R - V.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from unified import Algorithm, Batch, Chosen, Field, UserError, choice, hookimpl
from unified_plugins.algorithms import policy_gradient as family
from unified_plugins.rules.value_loss import value_clipped, value_coefficient, value_loss


class PPOSettings(family.PolicyGradientSettings):
    """What a recipe may set for PPO: the family's settings, and the critic's."""

    critic: ClassVar[bool] = True

    advantage: Chosen = choice(
        "advantage",
        {"name": "gae", "gamma": 1.0, "lam": 0.95, "whiten": True},
        description="how much better a token was than the critic expected; the rule must give returns",
    )
    kl: Chosen = choice("kl", "k1", description="estimate of KL(policy, reference)")
    kl_weight: float = Field(0.05, ge=0, description="weight of that estimate; 0: no reference is needed")
    kl_place: Literal["reward", "advantage", "loss"] = Field("reward", description="where the KL enters")
    value_weight: float = Field(0.5, gt=0, description="weight of the critic's squared error")
    value_clip: float | None = Field(0.2, gt=0, description="the critic is clipped to +- this around its old value")


def reads(settings: PPOSettings) -> frozenset[str]:
    """Those of the family, and the critic now and when the answers were sampled."""
    return family.reads(settings) | {"value", "old_value"}


def credit_reads(settings: PPOSettings) -> frozenset[str]:
    """Those of the family; the rule for the advantage says whether it looks at the critic."""
    return family.credit_reads(settings)


def credit(batch: Batch, settings: PPOSettings, state: Mapping[str, float]) -> dict[str, Tensor]:
    """Advantage and returns, each [batch, time]."""
    found = family.credit(batch, settings, state)
    if "returns" not in found:
        raise UserError(
            f"advantage '{settings.advantage.name}' gives no returns for the critic to learn",
            "choose one that does, such as gae, or an algorithm without a critic",
        )
    return found


def coefficient(
    batch: Batch, settings: PPOSettings, state: Mapping[str, float], statistics: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """GC of logp and value, [batch, time], and of entropy where it has a weight."""
    push = value_coefficient(batch.value, batch.expand(batch.returns), batch.old_value, clip=settings.value_clip)
    return {**family.coefficient(batch, settings, state, statistics), "value": settings.value_weight * push}


def loss(
    batch: Batch, settings: PPOSettings, state: Mapping[str, float], statistics: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The clipped objective with its sign turned and the critic's error, [batch, time] each."""
    error = value_loss(batch.value, batch.expand(batch.returns), batch.old_value, clip=settings.value_clip)
    return {**family.loss(batch, settings, state, statistics), "value": settings.value_weight * error}


def metrics(
    batch: Batch, settings: PPOSettings, state: Mapping[str, float], statistics: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """The family's, and means over tokens of what the critic's explained variance is made of.

    It is 1 - (value_error_square - value_error^2) / (returns_square - returns^2), with value_error = R - V.
    """
    mask = batch.loss_mask & ~batch.probe[:, None]
    returns = batch.expand(batch.returns)
    error = returns - batch.value
    out = {"value_error": error, "value_error_square": error**2, "returns": returns, "returns_square": returns**2}
    if settings.value_clip is not None:
        clipped = value_clipped(batch.value, returns, batch.old_value, clip=settings.value_clip)
        out["value_clip_ratio"] = clipped.double()
    own = {name: (torch.where(mask, x, 0.0).sum(), mask.sum()) for name, x in out.items()}
    return {**family.metrics(batch, settings, state, statistics), **own}


def aggregation(settings: PPOSettings) -> dict[str, str]:
    """All heads that are pushed are weighed by token."""
    return {**family.aggregation("token")(settings), "value": "token"}


def with_critic(name: str, settings: type[PPOSettings]) -> Algorithm:
    """A member of the family with a critic."""
    return replace(
        family.policy_gradient(name, settings, how="token", answers=1),
        coefficient=coefficient,
        loss=loss,
        credit=credit,
        metrics=metrics,
        reads=reads,
        credit_reads=credit_reads,
        aggregation=aggregation,
    )


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer PPO to recipes as `algorithm: ppo`."""
    return [with_critic("ppo", PPOSettings)]
