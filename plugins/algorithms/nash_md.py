"""Nash-MD: policy gradient on the probability of being preferred to a mixture of policy and reference.

GC = (P - 1/2) - beta h on every token, with P the answer's reward: the probability that it is preferred to an answer of
the mixture; h, without gradient, is the log-ratio to the reference of the whole answer (`kl: sequence`, the paper's) or
of the token alone (`kl: token`, TRL's, which leaves out what a token does to later ones).
loss = -GC times log p of the token.
Use: a judge that compares, whose preferences may go in circles, so that no single score explains them.
Watch: `win_probability` starts at 1/2; `kl`.
Source: Munos et al. 2023, arXiv:2312.00886, section 7.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from unified import Algorithm, Batch, Field, Settings, hookimpl


class NashMDSettings(Settings):
    """What a recipe may set for Nash-MD."""

    beta: float = Field(0.008, ge=0, description="weight of the KL, tau of the paper; 0: no reference is needed")
    kl: Literal["sequence", "token"] = Field("sequence", description="log-ratio of the whole answer, or of each token")


def reads(settings: NashMDSettings) -> frozenset[str]:
    """Both log-probs, where the KL has a weight."""
    return frozenset({"logp", "ref_logp"} if settings.beta else ())


def coefficient(batch: Batch, settings: NashMDSettings) -> Tensor:
    """GC of logp, [batch, time]."""
    push = batch.expand(batch.total_reward - 0.5)
    if not settings.beta:
        return push
    ratio = torch.where(batch.loss_mask, batch.logp.detach() - batch.ref_logp, 0.0)
    return push - settings.beta * batch.expand(ratio.sum(1) if settings.kl == "sequence" else ratio)


def loss(batch: Batch, settings: NashMDSettings) -> Tensor:
    """A surrogate with the same gradient, [batch, time]."""
    return -coefficient(batch, settings) * batch.logp


def metrics(batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
    """Means over answers: the win probability, and kl, the log-ratio of the whole answer in nats, where it is read."""
    on = batch.counts
    found = {"win_probability": batch.total_reward}
    if batch.has("ref_logp"):
        found["kl"] = torch.where(batch.loss_mask, batch.logp - batch.ref_logp, 0.0).sum(1)
    return {name: (torch.where(on, x, 0.0).sum(), on.sum()) for name, x in found.items()}


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer Nash-MD to recipes as `algorithm: nash_md`; `reward` must judge by comparison."""
    return [
        Algorithm(
            "nash_md",
            NashMDSettings,
            coefficient=coefficient,
            loss=loss,
            metrics=metrics,
            reads=reads,
            aggregation="sequence-sum",
            source="rollouts",
            reward="required",
        )
    ]
