"""Reward model: score the better answer above the worse, over all pairs of a prompt's ranking.

GC of score, at the answer's last token: +-link'(m) with m = s of the better - s of the worse - margin; for the sigmoid
link +-sigmoid(-m), summed over the answer's pairs and divided by the number of pairs of the prompt, K (K - 1) / 2.
Centring adds -2 centring (s of the better + s of the worse) to both.
Use: comparisons by people or by a judge, for a stage that needs a reward.
Watch: `accuracy` on held-out pairs; one epoch is usual, more overfits (Ouyang et al. 2022, appendix C.2).
Source: Ouyang et al. 2022, arXiv:2203.02155, eq. 1; margin: Touvron et al. 2023, arXiv:2307.09288, eq. 2; centring:
Eisenstein et al. 2023, arXiv:2312.09244.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unified import Algorithm, Batch, Chosen, Field, Pairs, Settings, UserError, choice, hookimpl, pairs
from unified_plugins.algorithms.preference import link_coefficient, link_value


class RewardModelSettings(Settings):
    """What a recipe may set for a reward model."""

    link: Chosen = choice("link", "sigmoid", description="the loss of one comparison")
    margin: str | None = Field(
        None, description="column of the data with the least distance, read at the better answer"
    )
    centring: float = Field(0.0, ge=0, description="weight of (s of the better + s of the worse)^2")


def coefficient(batch: Batch, settings: RewardModelSettings) -> dict[str, Tensor]:
    """GC of score, [batch, time]: 0 but for the last token of each answer."""
    found, better, worse = _scores(batch)
    up, down = link_coefficient(settings.link, better, worse, gap=_margin(batch, settings, found))  # [pairs] each
    pull = 2 * settings.centring * (better + worse)
    row = found.per_row(up - pull, down - pull, batch.size)
    return {"score": torch.where(batch.last, row[:, None], 0.0)}


def loss(batch: Batch, settings: RewardModelSettings) -> Tensor:
    """The mean over the pairs of each prompt, [groups]."""
    found, better, worse = _scores(batch)
    each = link_value(settings.link, better, worse, gap=_margin(batch, settings, found))
    return found.per_group(each + settings.centring * (better + worse) ** 2, batch.groups)


def metrics(batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
    """Means over prompts of accuracy and margin, mean over answers of score and score_square."""
    found, better, worse = _scores(batch)
    prompts = found.share.sum()
    score, counts = last_score(batch), batch.counts
    return {
        "accuracy": (((better > worse) * found.share).sum(), prompts),
        "margin": (((better - worse) * found.share).sum(), prompts),
        "score": (torch.where(counts, score, 0.0).sum(), counts.sum()),
        "score_square": (torch.where(counts, score**2, 0.0).sum(), counts.sum()),
    }


def last_score(batch: Batch) -> Tensor:
    """[batch]: the score read after the last token."""
    return torch.where(batch.last, batch.score, 0.0).sum(1)


def _scores(batch: Batch) -> tuple[Pairs, Tensor, Tensor]:
    """The pairs, and the scores [pairs] of their better and their worse answers."""
    found, score = pairs(batch), last_score(batch)
    return found, score[found.better], score[found.worse]


def _margin(batch: Batch, settings: RewardModelSettings, found: Pairs) -> Tensor | float:
    """[pairs]: how far apart the scores should at least be."""
    if settings.margin is None:
        return 0.0
    if settings.margin not in batch.columns:
        raise UserError(f"`margin: {settings.margin}` names no column of the data", f"columns: {sorted(batch.columns)}")
    return batch.columns[settings.margin][found.better]


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer reward models to recipes as `algorithm: reward_model`."""
    return [
        Algorithm(
            "reward_model",
            RewardModelSettings,
            coefficient=coefficient,
            loss=loss,
            metrics=metrics,
            reads=frozenset({"score"}),
            aggregation={"score": "group"},
            scope="group",
            answers=2,
        )
    ]
