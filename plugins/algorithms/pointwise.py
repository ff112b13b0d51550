"""Pointwise scalar model: each answer has a label y of its own, a class or a number.

GC of score, at the answer's last token: y - sigmoid(s) for `target: class` (y in [0, 1], soft labels are allowed), or
y - s for `target: number`; loss = -y log sigmoid(s) - (1 - y) log sigmoid(-s), or (s - y)^2 / 2. y is the answer's
reward, and every answer weighs the same.
Use: answers with a class or a number each, and no comparisons: safety labels, right or wrong, ratings.
Watch: `accuracy` against the share of the larger class, or `error_square` against the labels' variance.
Source: logistic and least-squares regression; as a safety reward model DeepSeek-AI 2025, arXiv:2501.12948.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from unified import Algorithm, Batch, Field, Settings, hookimpl
from unified_plugins.algorithms.reward_model import last_score


class PointwiseSettings(Settings):
    """What a recipe may set for a pointwise scalar model."""

    target: Literal["class", "number"] = Field("class", description="class: a label in [0, 1]; number: regression")


def coefficient(batch: Batch, settings: PointwiseSettings) -> dict[str, Tensor]:
    """GC of score, [batch, time]: 0 but for the last token of each answer."""
    score = last_score(batch)
    push = batch.total_reward - (score if settings.target == "number" else torch.sigmoid(score))
    return {"score": torch.where(batch.last, push[:, None], 0.0)}


def loss(batch: Batch, settings: PointwiseSettings) -> Tensor:
    """The loss of every answer, [batch]."""
    score, label = last_score(batch), batch.total_reward
    if settings.target == "number":
        return 0.5 * (score - label) ** 2
    return F.softplus(score) - label * score


def metrics(batch: Batch, settings: PointwiseSettings) -> dict[str, tuple[Tensor, Tensor]]:
    """Means over answers: score, and error_square or (for classes) the accuracy."""
    score, label, on = last_score(batch), batch.total_reward, batch.counts
    right = ((score > 0) == (label > 0.5)).double()
    own = {"error_square": (score - label) ** 2} if settings.target == "number" else {"accuracy": right}
    return {name: (torch.where(on, x, 0.0).sum(), on.sum()) for name, x in {"score": score, **own}.items()}


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer it to recipes as `algorithm: pointwise`."""
    return [
        Algorithm(
            "pointwise",
            PointwiseSettings,
            coefficient=coefficient,
            loss=loss,
            metrics=metrics,
            reads=frozenset({"score"}),
            aggregation={"score": "sequence-sum"},
        )
    ]
