"""Reward model of whole rankings: the Plackett-Luce likelihood of a prompt's answers, best first.

GC of score, at the answer's last token: 1 - sum over ranks k not below the answer's of softmax(scores left at k);
loss = sum over ranks of log(sum of e^s over those left) - s. For pairs it is the Bradley-Terry model; `reward_model`
takes all pairs of a ranking instead.
Use: ranked lists of three answers or more, for a reward model.
Watch: `accuracy` on held-out lists; training accuracy goes on after it has stopped.
Source: Plackett 1975 and Luce 1959.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unified import Algorithm, Batch, Settings, hookimpl
from unified_plugins.algorithms import reward_model
from unified_plugins.rules.listwise import ranking_coefficient, ranking_loss


class PlackettLuceSettings(Settings):
    """The ranking model has nothing to set."""


def coefficient(batch: Batch) -> dict[str, Tensor]:
    """GC of score, [batch, time]: 0 but for the last token of each answer."""
    row = ranking_coefficient(batch, reward_model.last_score(batch))
    return {"score": torch.where(batch.last, row[:, None], 0.0)}


def loss(batch: Batch) -> Tensor:
    """The negative log-likelihood of each prompt's ranking, [groups] nats."""
    return ranking_loss(batch, reward_model.last_score(batch))


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer it to recipes as `algorithm: plackett_luce`."""
    return [
        Algorithm(
            "plackett_luce",
            PlackettLuceSettings,
            coefficient=coefficient,
            loss=loss,
            metrics=reward_model.metrics,
            reads=frozenset({"score"}),
            aggregation={"score": "group"},
            scope="group",
            answers=2,
        )
    ]
