"""RAFT: the best of several answers to each prompt is imitated.

GC = 1 / length on every token of the answer with the highest reward of its prompt (answers that tie share it), else 0;
loss = mean of -log p over the tokens of the best answer. Every prompt weighs the same. For the mean over all tokens of
the best answers write `sft` with `on: best`.
Use: a reward and a budget of samples, where the simplest stable method is wanted.
Watch: `reward` and `reward_std`: when the group has no spread its best answer says nothing.
Source: Dong et al. 2023, arXiv:2304.06767.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from unified import Algorithm, Batch, Settings, hookimpl
from unified_plugins.algorithms import sft


class RAFTSettings(Settings):
    """RAFT has nothing to set."""


def coefficient(batch: Batch) -> Tensor:
    """1 / length on the best answers, divided by how many tie, [batch]; no head is read."""
    reward = torch.where(batch.counts, batch.total_reward, -torch.inf)
    top = torch.full((batch.groups,), -torch.inf, dtype=reward.dtype, device=reward.device)
    best = (reward == top.scatter_reduce(0, batch.group, reward, "amax")[batch.group]) & batch.counts
    number = torch.zeros_like(top).index_add(0, batch.group, best.to(top.dtype))
    return best / (number.clamp(min=1)[batch.group] * batch.lengths.clamp(min=1)).double()


def loss(batch: Batch) -> Tensor:
    """The negative log-likelihood of each prompt's best answer, per token, [batch, time] nats."""
    return -batch.expand(coefficient(batch)) * batch.logp


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer RAFT to recipes as `algorithm: raft`."""
    (plain,) = sft.unified_algorithms()
    own = replace(plain, name="raft", settings=RAFTSettings, coefficient=coefficient, loss=loss)
    return [replace(own, aggregation="group", scope="group", source="rollouts", reward="required", answers=2)]
