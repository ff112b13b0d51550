"""Advantages along one answer without a critic: pooled scores of steps, and the optimal baseline of each token.

What such a rule may name is listed in `advantages.py`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from unified import Field, Rule, Settings, hookimpl
from unified_plugins.rules.advantages import group_advantage, sum_by


class ProcessSettings(Settings):
    """What may be set for process supervision."""

    std: Literal["sample", "population", "none"] = Field("sample", description="divide by n - 1, by n, or not at all")


def process(
    token_reward: Tensor, group: Tensor, loss_mask: Tensor, tokens: Tensor | None = None, *, std: str = "sample"
) -> dict[str, Tensor]:
    """Scores of steps, normalised over all steps of all answers to the prompt, and summed from here to the end.

    The score of a step is the reward of its last token; tokens with reward 0 end no step.

    token_reward: [batch, time]; group: [batch] int; tokens: [batch, time] bool, those that make up statistics.
    Returns {"advantage": [batch, time]}, in standard deviations; 0 where the prompt's steps all have one score.
    Source: Shao et al. 2024, arXiv:2402.03300, section 4.1.3; the paper leaves the deviation open, here it is n - 1.
    """
    ends = loss_mask & (token_reward != 0)  # [batch, time]
    counted = ends if tokens is None else ends & tokens
    pooled = group[:, None].expand(ends.shape)[ends]  # [steps]
    scores = group_advantage(token_reward[ends], pooled, counted[ends], std=std)["advantage"]
    each = torch.zeros_like(token_reward)
    each[ends] = scores
    return {"advantage": torch.where(loss_mask, _to_go(each), 0.0)}


def optimal_token(
    token_reward: Tensor,
    old_logp: Tensor,
    old_square: Tensor,
    group: Tensor,
    loss_mask: Tensor,
    counts: Tensor | None = None,
) -> dict[str, Tensor]:
    """G_t - sum(G_t W_t) / sum(W_t) over the prompt's answers, at the n-th token of each: the least variance.

    G_t is the reward still to come, W_t the sum up to t of 1 - 2 p + sum(p^2), the square of the score function.

    token_reward, old_logp (nats): [batch, time]; old_square: [batch, time], the sum over the vocabulary of p^2 by the
    policy that sampled; group: [batch] int. Tokens outside loss_mask are skipped. Returns {"advantage": [batch, time]},
    in units of reward; where only one answer of a prompt is that long, there is no baseline.
    Source: Li et al. 2026, arXiv:2602.07078, the optimal token baseline; with tools as in verl.
    """
    counts = torch.ones_like(group, dtype=torch.bool) if counts is None else counts
    to_go = torch.where(loss_mask, _to_go(torch.where(loss_mask, token_reward, 0.0)), 0.0)
    energy = torch.where(loss_mask, 1 - 2 * old_logp.exp() + old_square, 0.0).cumsum(1)
    place = (loss_mask.long().cumsum(1) - 1).clamp(min=0)  # [batch, time], the token is the n-th of its answer
    key = group[:, None] * loss_mask.shape[1] + place
    among = (loss_mask & counts[:, None]).double().flatten()
    number, above, below = (
        sum_by(key.flatten(), among * x.double().flatten()).view(key.shape)
        for x in (torch.ones_like(energy), to_go * energy, energy)
    )
    baseline = torch.where((number > 1) & (below > 0), above / torch.where(below > 0, below, 1.0), 0.0)
    return {"advantage": torch.where(loss_mask, to_go - baseline, 0.0).to(token_reward.dtype)}


def _to_go(x: Tensor) -> Tensor:
    """[batch, time]: the sum of x from each token to the end."""
    return x.flip(1).cumsum(1).flip(1)


@hookimpl
def unified_rules() -> list[Rule]:
    """Offer `advantage: process` and `optimal_token`."""
    return [
        Rule("process", ProcessSettings, of="advantage", value=process),
        Rule("optimal_token", of="advantage", value=optimal_token, reads=frozenset({"old_logp", "old_square"})),
    ]
