"""BCO: a classifier of good and bad answers, whose logit is the implicit reward less its running mean.

GC = weight beta sigmoid(-(r - delta)) on desirable, -weight beta sigmoid(r - delta) on the other answers, with
r = beta (log-ratio to the reference); loss = -log sigmoid(+-(r - delta)). delta, without gradient, is the mean of r
over all answers so far, those of this step included, as in TRL; exact over the step and saved with every checkpoint.
Where a collected batch is learned from in several steps, each adds its own answers to what came before the batch.
Use: answers with a thumb up or down and no pairs, where a classifier with a running level is wanted.
Watch: `delta`, the level, settles; `rewards/chosen` above it and `rewards/rejected` below.
Source: Jung et al. 2024, arXiv:2404.04656. Their matching of the two sides' prompts is not here.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from unified import Algorithm, Batch, Chosen, choice, hookimpl
from unified_plugins.algorithms import unpaired as family


class BCOSettings(family.UnpairedSettings):
    """What a recipe may set for BCO: the family's settings with its link."""

    link: Chosen = choice("link", "sigmoid", description="the loss of one answer")


def initial_state() -> dict[str, float]:
    """The mean of r over all answers so far, and their number."""
    return {"mean": 0.0, "count": 0.0}


def statistics(batch: Batch, settings: BCOSettings, state: Mapping[str, float]) -> dict[str, Tensor]:
    """`delta`: the mean of r, this step included, a single number."""
    reward = torch.where(batch.counts, family.rewards(batch, settings).double(), 0.0)
    number = state["count"] + batch.total(batch.counts.double())
    return {"delta": (state["count"] * state["mean"] + batch.total(reward)) / number.clamp(min=1)}


def coefficient(batch: Batch, settings: BCOSettings, statistics: Mapping[str, Tensor]) -> Tensor:
    """GC of logp, [batch, time]."""
    return family.push(batch, settings, statistics["delta"])


def loss(batch: Batch, settings: BCOSettings, statistics: Mapping[str, Tensor]) -> Tensor:
    """The loss of every answer, [batch]."""
    return family.cost(batch, settings, statistics["delta"])


def metrics(
    batch: Batch, settings: BCOSettings, statistics: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor | float, Tensor | float]]:
    """Those of the family, `delta`, and the number of answers (a total)."""
    found = family.measured(batch, settings)
    return {**found, "delta": (statistics["delta"], 1.0), "answers": (batch.counts.sum(), 0.0)}


def update(state: Mapping[str, float], totals: Mapping[str, float]) -> dict[str, float]:
    """The mean and number with those of a collected batch; the same where no answer of it counted."""
    if not totals.get("answers"):
        return dict(state)
    count = state["count"] + totals["answers"]
    return {"mean": (state["count"] * state["mean"] + totals["answers"] * totals["rewards"]) / count, "count": count}


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer BCO to recipes as `algorithm: bco`."""
    return [
        Algorithm(
            "bco",
            BCOSettings,
            coefficient=coefficient,
            loss=loss,
            statistics=statistics,
            metrics=metrics,
            update=update,
            initial_state=initial_state,
            reads=family.reads,
            aggregation="sequence-sum",
            scope="step",
        )
    ]
