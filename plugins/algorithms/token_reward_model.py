"""Reward model that compares two answers token by token, in place of by their last score.

GC of score at token t: +-sigmoid(-(s of the better at t - s of the worse at t)) / n, over the n places t at which both
answers have a token that counts, divided by the number of pairs of the prompt; loss = the mean over those places of
-log sigmoid of the difference.
Use: comparisons, where a dense reward at every token is wanted.
Watch: `accuracy` on held-out pairs.
Source: DeepSpeed-Chat, Yao et al. 2023, arXiv:2308.01320; there the places begin where the answers first differ (set
the loss mask so) and run on over the padding of the shorter one, which has no score here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unified import Algorithm, Batch, Pairs, Settings, hookimpl, pairs
from unified_plugins.algorithms import reward_model


class TokenRewardModelSettings(Settings):
    """This reward model has nothing to set."""


def coefficient(batch: Batch) -> dict[str, Tensor]:
    """GC of score, [batch, time]."""
    found, lead, weight = compared(batch)
    push = torch.sigmoid(-lead) * weight  # [pairs, time]
    out = torch.zeros(batch.loss_mask.shape, dtype=push.dtype, device=push.device)
    return {"score": out.index_add(0, found.better, push).index_add(0, found.worse, -push)}


def loss(batch: Batch) -> Tensor:
    """The mean over the pairs of each prompt, [groups]."""
    found, lead, weight = compared(batch)
    each = (-F.logsigmoid(lead) * weight).sum(1)
    return torch.zeros(batch.groups, dtype=each.dtype, device=each.device).index_add(0, found.group, each)


def compared(batch: Batch) -> tuple[Pairs, Tensor, Tensor]:
    """The pairs, the better's lead at each place [pairs, time], and the weight of that place in its prompt."""
    found = pairs(batch)
    both = batch.loss_mask[found.better] & batch.loss_mask[found.worse]
    lead = torch.where(both, batch.score[found.better] - batch.score[found.worse], 0.0)
    return found, lead, both * (found.share / both.sum(1).clamp(min=1))[:, None]


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer it to recipes as `algorithm: token_reward_model`."""
    return [
        Algorithm(
            "token_reward_model",
            TokenRewardModelSettings,
            coefficient=coefficient,
            loss=loss,
            metrics=reward_model.metrics,
            reads=frozenset({"score"}),
            aggregation={"score": "group"},
            scope="group",
            answers=2,
        )
    ]
