"""APO-zero without pairs: raise good answers over the reference and lower bad ones below it; KTO with z0 = 0.

GC = weight beta s'(beta h) on desirable, -weight beta s'(beta h) on the other answers, with h the log-ratio to the
reference and s'(x) = sigmoid(x) sigmoid(-x); loss = weight (1 - sigmoid(beta h)) and weight sigmoid(beta h).
Use: answers with a thumb up or down and no pairs, better than what the policy writes by itself.
Watch: `rewards/chosen` above 0, `rewards/rejected` below; weights for sides of unequal size.
Source: D'Oosterlinck et al. 2024, arXiv:2408.06266.
"""

from __future__ import annotations

from torch import Tensor

from unified import Algorithm, Batch, hookimpl
from unified_plugins.algorithms import unpaired as family


class APOZeroUnpairedSettings(family.UnpairedSettings):
    """What a recipe may set for unpaired APO-zero: the family's settings."""


def coefficient(batch: Batch, settings: APOZeroUnpairedSettings) -> Tensor:
    """GC of logp, [batch, time]."""
    return family.push(batch, settings, 0.0)


def loss(batch: Batch, settings: APOZeroUnpairedSettings) -> Tensor:
    """The loss of every answer, [batch]."""
    return family.cost(batch, settings, 0.0)


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer it to recipes as `algorithm: apo_zero_unpaired`."""
    return [
        Algorithm(
            "apo_zero_unpaired",
            APOZeroUnpairedSettings,
            coefficient=coefficient,
            loss=loss,
            metrics=family.measured,
            reads=family.reads,
            aggregation="sequence-sum",
        )
    ]
