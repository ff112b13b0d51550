"""DPO on whole rankings: the Plackett-Luce likelihood of a list of answers under their implicit rewards.

GC = beta (1 - sum over ranks k not below the answer's of softmax(s of those left at k)), with s = beta (log-ratio to
the reference); loss = sum over ranks of log(sum of e^s over those left) - s. For pairs it is DPO; `dpo` takes all pairs
of a list instead.
Use: ranked lists of three answers or more whose whole order matters.
Watch: `rewards/accuracies` over all pairs of the list.
Source: Rafailov et al. 2023, arXiv:2305.18290, appendix A.3.
"""

from __future__ import annotations

from torch import Tensor

from unified import Algorithm, Batch, Chosen, Field, Settings, choice, hookimpl
from unified_plugins.algorithms import preference as family
from unified_plugins.rules.listwise import ranking_coefficient, ranking_loss


class DPOPLSettings(Settings):
    """What a recipe may set for DPO on rankings."""

    beta: float = Field(0.1, gt=0, description="scale of the margin; larger stays nearer to the reference")
    margin: Chosen = choice("margin", "reference", description="what is compared")


def _scored(settings: DPOPLSettings) -> family.PreferenceSettings:
    return family.PreferenceSettings(beta=settings.beta, margin=settings.margin)


def reads(settings: DPOPLSettings) -> frozenset[str]:
    """Those of the margin."""
    return family.reads(_scored(settings))


def coefficient(batch: Batch, settings: DPOPLSettings) -> Tensor:
    """GC of logp, [batch, time]."""
    own = _scored(settings)
    return batch.expand(ranking_coefficient(batch, family.scores(batch, own))) * family.along(batch, own)


def loss(batch: Batch, settings: DPOPLSettings) -> Tensor:
    """The negative log-likelihood of each prompt's ranking, [groups]."""
    return ranking_loss(batch, family.scores(batch, _scored(settings)))


def metrics(batch: Batch, settings: DPOPLSettings) -> dict[str, tuple[Tensor, Tensor]]:
    """Those of the preference family, over all pairs of a list."""
    return family.metrics(batch, _scored(settings))


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer it to recipes as `algorithm: dpo_pl`."""
    return [
        Algorithm(
            "dpo_pl",
            DPOPLSettings,
            coefficient=coefficient,
            loss=loss,
            metrics=metrics,
            reads=reads,
            aggregation="group",
            scope="group",
            answers=2,
        )
    ]
