"""KTO: raise good answers over the level z0 = KL(policy, reference), lower bad ones under it; no pairs are needed.

GC = weight beta s'(beta (h - z0)) on desirable, -weight beta s'(beta (z0 - h)) on the other answers, with h the
log-ratio to the reference and s'(x) = sigmoid(x) sigmoid(-x); loss = weight (1 - sigmoid(+-beta (h - z0))). z0, without
gradient, is the mean of h over probes, which are answers to other prompts, and at least 0. It is exact over the whole
step and all processes; without probes (`source: rows`, or one prompt a step) it is 0, as the metric `probes` shows.
Use: answers with a thumb up or down and no pairs; sides of unequal size through the two weights.
Watch: `kl`, the level z0: where it is 0 all along, `probes` is 0 or answers lie below the reference.
Source: Ethayarajh et al. 2024, arXiv:2402.01306.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from unified import Algorithm, Batch, hookimpl
from unified_plugins.algorithms import unpaired as family


class KTOSettings(family.UnpairedSettings):
    """What a recipe may set for KTO: the family's settings with the paper's defaults."""


def statistics(batch: Batch, settings: KTOSettings) -> dict[str, Tensor]:
    """`kl`: z0 in nats, a single number; `probes`: how many there were."""
    on = batch.probe & batch.loss_mask.any(1)
    h = family.rewards(batch, settings).double() / settings.beta
    number = batch.total(on.double())
    return {"kl": (batch.total(torch.where(on, h, 0.0)) / number.clamp(min=1)).clamp(min=0), "probes": number}


def coefficient(batch: Batch, settings: KTOSettings, statistics: Mapping[str, Tensor]) -> Tensor:
    """GC of logp, [batch, time]."""
    return family.push(batch, settings, settings.beta * statistics["kl"])


def loss(batch: Batch, settings: KTOSettings, statistics: Mapping[str, Tensor]) -> Tensor:
    """The loss of every answer, [batch]."""
    return family.cost(batch, settings, settings.beta * statistics["kl"])


def metrics(
    batch: Batch, settings: KTOSettings, statistics: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor | float, Tensor | float]]:
    """Those of the family, `kl` in nats, and the share of answers that are probes."""
    on = batch.loss_mask.any(1)
    found = family.measured(batch, settings)
    return {**found, "kl": (statistics["kl"], 1.0), "probes": ((batch.probe & on).sum(), on.sum())}


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer KTO to recipes as `algorithm: kto`."""
    return [
        Algorithm(
            "kto",
            KTOSettings,
            coefficient=coefficient,
            loss=loss,
            statistics=statistics,
            metrics=metrics,
            reads=family.reads,
            aggregation="sequence-sum",
            scope="step",
            source="mismatched",
        )
    ]
