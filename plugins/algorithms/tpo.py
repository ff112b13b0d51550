"""TPO: of three answers or more the best is imitated, and the others are compared without a reference.

GC = nll_weight on the best (gold) answer, +-beta sigmoid(-m) on the others, m = beta (logp of the better - that of the
worse) - gap; loss = -log sigmoid(m) - nll_weight log p of the gold answer, a sum over its tokens. TPO-L is
`margin: {name: length_normalised, reference: false}` with a `gap`.
Use: rows with a gold answer beside a better and a worse one.
Watch: `rewards/accuracies`, and the log-probability of the gold answer, which must rise.
Source: Saeidi et al. 2024, arXiv:2405.16681. TRL averages the imitation over all gold tokens of the batch: for that
write two terms, `tpo` with nll_weight 0 and `sft` with `on: best`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from torch import Tensor

from unified import Algorithm, Batch, Chosen, Field, Pairs, choice, hookimpl, pairs
from unified_plugins.algorithms import preference_and_imitation as family
from unified_plugins.algorithms.preference import compared, scores


class TPOSettings(family.ImitatingSettings):
    """What a recipe may set for TPO: the family's settings with its margin."""

    margin: Chosen = choice("margin", "reference_free", description="what is compared")
    nll: Literal["sum", "mean"] = Field("sum", description="over the tokens of the gold answer")


def parts(batch: Batch) -> tuple[Pairs, Tensor]:
    """The pairs without the best answers, and the share [batch] by which the best ones are imitated."""
    share = family.best(batch, pairs(batch))
    return pairs(batch.plus(probe=batch.probe | (share > 0))), share


def coefficient(batch: Batch, settings: TPOSettings) -> Tensor:
    """GC of logp, [batch, time]."""
    return family.together(batch, settings, *parts(batch))


def loss(batch: Batch, settings: TPOSettings) -> Tensor:
    """The loss of each prompt, [groups]."""
    return family.costs(batch, settings, *parts(batch))


def metrics(batch: Batch, settings: TPOSettings) -> dict[str, tuple[Tensor, Tensor]]:
    """Those of the preference family, over the pairs that are compared."""
    found, _ = parts(batch)
    score = scores(batch, settings)
    return compared(found, score[found.better], score[found.worse])


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer TPO to recipes as `algorithm: tpo`."""
    preset = family.preference_and_imitation("tpo", TPOSettings)
    return [replace(preset, coefficient=coefficient, loss=loss, metrics=metrics, answers=3)]
