"""WPO: DPO whose pairs weigh by how likely the policy is to write them, so that off-policy data count for less.

GC = w times that of DPO, loss = w times that of DPO, with w = the product over both answers of
exp(mean over tokens of logp - log sum over the vocabulary of p^2), without gradient. An answer sampled from the policy
weighs about 1; w is not capped. Reads `collision_logp` [batch, time], log sum p^2 in nats.
Use: pairs that another policy wrote.
Watch: the weights: `gc/abs` is small where the policy would not write the answers.
Source: Zhou et al. 2024, arXiv:2406.11827, "sampled" alignment of weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unified import Algorithm, Batch, Pairs, hookimpl, pairs
from unified_plugins.algorithms import preference as family


class WPOSettings(family.PreferenceSettings):
    """What a recipe may set for WPO: the family's settings with the paper's defaults."""


def reads(settings: WPOSettings) -> frozenset[str]:
    """Those of the family, and log sum p^2 of every token's distribution."""
    return family.reads(settings) | {"logp", "collision_logp"}


def coefficient(batch: Batch, settings: WPOSettings) -> Tensor:
    """GC of logp, [batch, time]."""
    found = pairs(batch)
    return family.push(batch, settings, found, weights(batch, found))


def loss(batch: Batch, settings: WPOSettings) -> Tensor:
    """The weighted mean of the link over the pairs of each prompt, [groups]."""
    found = pairs(batch)
    return family.cost(batch, settings, found, weights(batch, found))


def weights(batch: Batch, found: Pairs) -> Tensor:
    """w of each pair, [pairs]."""
    gain = torch.where(batch.loss_mask, batch.logp.detach() - batch.collision_logp, 0.0)
    mean = gain.sum(1) / batch.lengths.clamp(min=1)
    return (mean[found.better] + mean[found.worse]).exp()


def metrics(batch: Batch, settings: WPOSettings) -> dict[str, tuple[Tensor, Tensor]]:
    """Those of the family, and the mean weight of a pair."""
    found = pairs(batch)
    weight = (weights(batch, found) * found.share).sum()
    return {**family.metrics(batch, settings), "weights": (weight, found.share.sum())}


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer WPO to recipes as `algorithm: wpo`."""
    return [
        Algorithm(
            "wpo",
            WPOSettings,
            coefficient=coefficient,
            loss=loss,
            metrics=metrics,
            reads=reads,
            aggregation="group",
            scope="group",
            answers=2,
        )
    ]
