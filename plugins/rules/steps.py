"""Advantages along one answer without a critic: pooled scores of steps, and the optimal baseline of each token.

What such a rule may name is listed in `advantages.py`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from unified import Field, Rule, Settings, hookimpl
from unified_plugins.rules.advantages import group_advantage, group_statistics, sum_by


class ProcessSettings(Settings):
    """What may be set for process supervision."""

    std: Literal["sample", "population", "none"] = Field("sample", description="divide by n - 1, by n, or not at all")


class OptimalTokenSettings(Settings):
    """What may be set for the optimal baseline of each token."""

    push_tail: bool = Field(False, description="push tokens that no other answer reaches by the whole return, as verl")


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
    old_collision_logp: Tensor,
    group: Tensor,
    loss_mask: Tensor,
    counts: Tensor | None = None,
    *,
    push_tail: bool = False,
) -> dict[str, Tensor]:
    """G_t - sum(G_t W_t) / sum(W_t) over the prompt's answers, at the n-th token of each: the least variance.

    G_t is the reward still to come, W_t the sum up to t of 1 - 2 p + sum(p^2), the square of the score function.

    token_reward: [batch, time]; old_logp, old_collision_logp: [batch, time] nats, the latter the log of the sum of p^2
    over the vocabulary, both of the policy that sampled; group: [batch] int. Tokens outside loss_mask are skipped.
    Returns {"advantage": [batch, time]}, in units of reward; exactly 0 where all answers have the same return, and
    where one answer of a prompt alone is that long, unless `push_tail` says that there is no baseline then.
    Source: the optimal token baseline, arXiv:2602.07078; with tools as in verl.
    """
    counts = torch.ones_like(group, dtype=torch.bool) if counts is None else counts
    to_go = torch.where(loss_mask, _to_go(torch.where(loss_mask, token_reward, 0.0)), 0.0)
    energy = torch.where(loss_mask, 1 - 2 * old_logp.exp() + old_collision_logp.exp(), 0.0).cumsum(1)
    place = (loss_mask.long().cumsum(1) - 1).clamp(min=0)  # [batch, time], the token is the n-th of its answer
    key = group[:, None] * loss_mask.shape[1] + place
    among = (loss_mask & counts[:, None]).double().flatten()
    above, below = (
        sum_by(key.flatten(), among * x.double().flatten()).view(key.shape) for x in (to_go * energy, energy)
    )
    number, _, same = (x.view(key.shape) for x in group_statistics(to_go.flatten(), key.flatten(), among.bool()))
    advantage = to_go - torch.where(below > 0, above / torch.where(below > 0, below, 1.0), 0.0)
    lone = to_go if push_tail else torch.zeros_like(to_go)
    advantage = torch.where(number > 1, torch.where(same, 0.0, advantage), lone)
    return {"advantage": torch.where(loss_mask, advantage, 0.0).to(token_reward.dtype)}


def _to_go(x: Tensor) -> Tensor:
    """[batch, time]: the sum of x from each token to the end."""
    return x.flip(1).cumsum(1).flip(1)


@hookimpl
def unified_rules() -> list[Rule]:
    """Offer `advantage: process` and `optimal_token`."""
    return [
        Rule("process", ProcessSettings, of="advantage", value=process),
        Rule(
            "optimal_token",
            OptimalTokenSettings,
            of="advantage",
            value=optimal_token,
            reads=frozenset({"old_logp", "old_collision_logp"}),
        ),
    ]
