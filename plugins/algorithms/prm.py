"""Process reward model: at the end of each step of an answer the score says whether the step is right.

The tokens of the loss mask are the ends of steps, and the reward of such a token is the label y of its step, in [0, 1].
GC of score there: y - sigmoid(s); loss = -y log sigmoid(s) - (1 - y) log sigmoid(-s). All ends of steps of an optimiser
step weigh the same. `source: step_ends` marks the ends and puts the labels there.
Use: steps with labels, or a search that made them; the model then guides a search or rewards each step.
Watch: `accuracy` against the share of the larger class, on held-out rows.
Source: Lightman et al. 2023, arXiv:2305.20050; with soft labels Wang et al. 2023, arXiv:2312.08935.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unified import Algorithm, Batch, Settings, hookimpl


class PRMSettings(Settings):
    """A process reward model has nothing to set."""


def coefficient(batch: Batch) -> dict[str, Tensor]:
    """GC of score at the ends of steps, [batch, time]."""
    return {"score": batch.expand(batch.reward) - torch.sigmoid(batch.score)}


def loss(batch: Batch) -> dict[str, Tensor]:
    """The loss of every end of a step, [batch, time]."""
    return {"score": F.softplus(batch.score) - batch.expand(batch.reward) * batch.score}


def metrics(batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
    """Means over ends of steps: the score, and how often it is on the label's side of 0."""
    on = batch.loss_mask & ~batch.probe[:, None]
    right = ((batch.score > 0) == (batch.expand(batch.reward) > 0.5)).double()
    return {n: (torch.where(on, x, 0.0).sum(), on.sum()) for n, x in (("score", batch.score), ("accuracy", right))}


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer it to recipes as `algorithm: prm`."""
    return [
        Algorithm(
            "prm",
            PRMSettings,
            coefficient=coefficient,
            loss=loss,
            metrics=metrics,
            reads=frozenset({"score"}),
            aggregation={"score": "token"},
            source="step_ends",
        )
    ]
