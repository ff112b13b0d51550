"""Plackett-Luce: the likelihood of a whole ranking, best first, of scores s.

A prompt's loss is the sum over its answers of log(sum of e^s over the answer and all ranked below it) - s: at each rank
the best of those that are left is chosen. Answers of equal rank do not compete. For two answers it is Bradley-Terry.
Source: Plackett 1975 and Luce 1959, as in Rafailov et al. 2023, arXiv:2305.18290, appendix A.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unified import Batch


def ranking_loss(batch: Batch, score: Tensor) -> Tensor:
    """The negative log-likelihood of each prompt's ranking, [groups] nats, of scores [batch]."""
    left = torch.where(_left(batch), score[None, :], -torch.inf)  # [batch, batch]
    each = torch.where(batch.counts, left.logsumexp(1) - score, 0.0)
    return torch.zeros(batch.groups, dtype=each.dtype, device=each.device).index_add(0, batch.group, each)


def ranking_coefficient(batch: Batch, score: Tensor) -> Tensor:
    """Its negative derivative by the scores, [batch]: 1 - sum over ranks not below of softmax(those left)."""
    left = torch.where(_left(batch), score[None, :], -torch.inf)
    chosen = left.softmax(1) * batch.counts[:, None]  # [rank, batch]
    return batch.counts.to(score.dtype) - chosen.sum(0)


def _left(batch: Batch) -> Tensor:
    """[batch, batch] bool: column j is left when row i is chosen: i itself, or of its prompt and ranked below it."""
    reward = batch.total_reward
    below = (batch.group[:, None] == batch.group[None, :]) & (reward[:, None] > reward[None, :])
    own = torch.eye(batch.size, dtype=torch.bool, device=reward.device)
    return own | (below & batch.counts[:, None] & batch.counts[None, :])
