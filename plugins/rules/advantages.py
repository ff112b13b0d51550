"""Advantages that compare answers to one prompt: group-relative, and against the mean of the others.

A rule of kind "advantage" may name: reward [batch] (of the whole answer, with the KL inside where its place is the
reward), token_reward [batch, time] (the same per token, an outcome at the last one), outcome [batch] (the reward
without any KL), group [batch] int, loss_mask [batch, time] bool, last [batch, time] bool (the answer's last token),
counts [batch] bool (answers that make up statistics: no probe, not empty, one row of a trajectory), tokens
[batch, time] bool (those of them and of their other rows), columns (the data's numbers by name, [batch] each), total
and gather (the only ways to the rows of other processes), and the fields in its `reads`.
It returns {"advantage": [batch] or [batch, time]} and, where a critic is to learn, {"returns": [batch, time]}.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from unified import Field, Rule, Settings, hookimpl


class GroupSettings(Settings):
    """What may be set for the group-relative advantage."""

    std: Literal["sample", "population", "none"] = Field("sample", description="divide by n - 1, by n, or not at all")
    over: Literal["group", "batch"] = Field("group", description="deviation of the prompt's answers, or of all answers")
    epsilon: float = Field(0.0, ge=0, description="added to the deviation, as some libraries do; not needed here")


def group_advantage(
    reward: Tensor,
    group: Tensor,
    counts: Tensor | None = None,
    total: Callable[[Tensor], Tensor] | None = None,
    *,
    std: str = "sample",
    over: str = "group",
    epsilon: float = 0.0,
) -> dict[str, Tensor]:
    """Compare each reward with those of all answers to its prompt: (r - mean) / deviation.

    Args:
        reward: [batch] float, any unit.
        group: [batch] int; equal values mark answers to one prompt.
        counts: [batch] bool, the answers that the mean and the deviation are taken over; all, if not given.
        total: sum over the first dimension and all processes; without it, over what is here.
        std: "sample" (divide by n - 1), "population" (by n) or "none".
        over: "group", the deviation of the prompt's answers, or "batch", of all answers of the collected batch.
        epsilon: added to the deviation.
    Returns:
        {"advantage": [batch]}, in standard deviations (in units of reward for "none"); sums to 0 over what counts.
        A group whose rewards are all equal, or of one answer, gets exactly 0, never NaN or rounding noise.
    Raises:
        ValueError: the shapes differ; the message shows both.
    Source:
        Shao et al. 2024, arXiv:2402.03300, section 4.1.2; the paper leaves the deviation open, here it is n - 1.
        Without the deviation: Liu et al. 2025, arXiv:2503.20783, Dr. GRPO. Over the batch: TRL, scale_rewards="batch".
    """
    counts = checked(reward, group, counts)
    number, mean, same = group_statistics(reward, group, counts)
    centred = reward.double() - mean  # [batch]
    if std != "none":
        if over == "batch":
            deviation = _deviation(reward, counts, total or (lambda x: x.sum(0)), std)
        else:
            square = sum_by(group, torch.where(counts, centred**2, 0.0))
            deviation = (square / (number - int(std == "sample")).clamp(min=1)).sqrt()
        centred = centred / torch.where(same, 1.0, deviation + epsilon)
    return {"advantage": torch.where(same, 0.0, centred).to(reward.dtype)}


def leave_one_out(reward: Tensor, group: Tensor, counts: Tensor | None = None) -> dict[str, Tensor]:
    """Compare each reward with the mean of the other answers to its prompt: r - mean of the others.

    reward: [batch] float. group: [batch] int. counts: [batch] bool, answers that make up the means; all, if not given.
    Returns {"advantage": [batch]}, in units of reward; exactly 0 for a group whose rewards are all equal or that has
    one answer. Raises ValueError when the shapes differ; the message shows both.
    Source: Ahmadian et al. 2024, arXiv:2402.14740, the leave-one-out estimator.
    """
    counts = checked(reward, group, counts)
    number, mean, same = group_statistics(reward, group, counts)
    advantage = (reward.double() - mean) * number / (number - 1).clamp(min=1)  # [batch]
    return {"advantage": torch.where(same, 0.0, advantage).to(reward.dtype)}


def _deviation(reward: Tensor, counts: Tensor, total: Callable[[Tensor], Tensor], std: str) -> Tensor:
    """The standard deviation of the rewards that count, in all of the batch; [] float64."""
    wide = torch.where(counts, reward.double(), 0.0)
    number, added = total(torch.stack([counts.double(), wide], 1))
    square = total(torch.where(counts, (wide - added / number.clamp(min=1)) ** 2, 0.0))
    return (square / (number - int(std == "sample")).clamp(min=1)).sqrt()


def checked(reward: Tensor, group: Tensor, counts: Tensor | None) -> Tensor:
    """`counts`, or all True; ValueError when the shapes differ."""
    counts = torch.ones_like(group, dtype=torch.bool) if counts is None else counts
    if not (reward.shape == group.shape == counts.shape and reward.dim() == 1):
        shapes = f"reward is {list(reward.shape)}, group {list(group.shape)}, counts {list(counts.shape)}"
        raise ValueError(f"{shapes}; all must be [batch]")
    return counts


def group_statistics(reward: Tensor, group: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per row [batch], of its group: how many answers count, their mean reward in float64, whether all are equal."""
    number = sum_by(group, counts.double())
    mean = sum_by(group, torch.where(counts, reward.double(), 0.0)) / number.clamp(min=1)
    low = extreme_by(group, torch.where(counts, reward, torch.inf), "amin")
    high = extreme_by(group, torch.where(counts, reward, -torch.inf), "amax")
    return number, mean, (low >= high) | (number < 2)


def sum_by(group: Tensor, x: Tensor) -> Tensor:
    """[batch]: the sum of x over the rows of the same group."""
    _, place = torch.unique(group, return_inverse=True)
    return torch.zeros_like(x).index_add(0, place, x)[place]


def extreme_by(group: Tensor, x: Tensor, how: str) -> Tensor:
    """[batch]: the smallest or largest x ("amin", "amax") over the rows of the same group."""
    _, place = torch.unique(group, return_inverse=True)
    return torch.zeros_like(x).scatter_reduce(0, place, x, how, include_self=False)[place]


@hookimpl
def unified_rules() -> list[Rule]:
    """Offer `advantage: group` and `advantage: leave_one_out`."""
    return [
        Rule("group", GroupSettings, of="advantage", value=group_advantage),
        Rule("leave_one_out", of="advantage", value=leave_one_out),
    ]
