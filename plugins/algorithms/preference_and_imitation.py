"""The preference family with imitation of the best answer beside the comparison, both per prompt.

Loss of a prompt = comparison_weight (mean of the link over its pairs) + nll_weight (-log p of its best answer, summed
or averaged over tokens). The best answer beats another and is beaten by none; several share the weight; a prompt whose
answers are all equally good has none. Both parts weigh every prompt the same. Where imitation shall weigh every token
of the step the same, as TRL has it, write two terms: the comparison, and `sft` with `on: best`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from unified import Algorithm, Batch, Field, Pairs, pairs
from unified_plugins.algorithms import preference as family


class ImitatingSettings(family.PreferenceSettings):
    """The family's settings, and those of the imitation."""

    comparison_weight: float = Field(1.0, ge=0, description="factor on the comparison")
    nll_weight: float = Field(1.0, ge=0, description="factor on -log p of the best answer")
    nll: Literal["sum", "mean"] = Field("mean", description="over the tokens of that answer")


def coefficient(batch: Batch, settings: ImitatingSettings) -> Tensor:
    """GC of logp, [batch, time]."""
    found = pairs(batch)
    return together(batch, settings, found, best(batch, found))


def loss(batch: Batch, settings: ImitatingSettings) -> Tensor:
    """The weighted sum of both parts, [groups]."""
    found = pairs(batch)
    return costs(batch, settings, found, best(batch, found))


def together(batch: Batch, settings: ImitatingSettings, found: Pairs, share: Tensor) -> Tensor:
    """GC of logp, [batch, time]: these pairs compared, and answers imitated by their share [batch]."""
    imitate = batch.expand(settings.nll_weight * share / _per(batch, settings))
    return settings.comparison_weight * family.push(batch, settings, found) + imitate


def costs(batch: Batch, settings: ImitatingSettings, found: Pairs, share: Tensor) -> Tensor:
    """The loss of each prompt, [groups], of which `together` is the coefficient."""
    nll = -torch.where(batch.loss_mask, batch.logp, 0.0).sum(1) / _per(batch, settings)  # [batch]
    compared = settings.comparison_weight * family.cost(batch, settings, found)
    return compared.index_add(0, batch.group, (settings.nll_weight * share * nll).to(compared.dtype))


def best(batch: Batch, found: Pairs) -> Tensor:
    """[batch]: 1 on answers that are better than another and worse than none, divided by their number in the prompt."""
    rows = torch.zeros(2, batch.size, dtype=torch.bool, device=batch.group.device)
    rows[0, found.better], rows[1, found.worse] = True, True
    top = (rows[0] & ~rows[1]).double()
    number = torch.zeros(batch.groups, dtype=top.dtype, device=top.device).index_add(0, batch.group, top)
    return top / number.clamp(min=1)[batch.group]


def preference_and_imitation(name: str, settings: type[ImitatingSettings]) -> Algorithm:
    """A member of the family."""
    return Algorithm(
        name,
        settings,
        coefficient=coefficient,
        loss=loss,
        metrics=family.metrics,
        reads=family.reads,
        aggregation="group",
        scope="group",
        answers=2,
    )


def _per(batch: Batch, settings: ImitatingSettings) -> Tensor:
    """[batch]: what a sum over an answer's tokens is divided by."""
    return batch.lengths.double().clamp(min=1) if settings.nll == "mean" else torch.ones_like(batch.lengths).double()
