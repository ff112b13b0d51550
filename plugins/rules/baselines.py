"""Advantages against another baseline than the mean: weighed by length, the second best, a greedy answer.

What such a rule may name is listed in `advantages.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from unified import Field, Rule, Settings, hookimpl
from unified_plugins.rules.advantages import checked, extreme_by, group_advantage, group_statistics, sum_by


class PassAtKSettings(Settings):
    """What may be set for the advantage of the best answer alone."""

    std: Literal["sample", "population", "none"] = Field("sample", description="divide by n - 1, by n, or not at all")
    epsilon: float = Field(0.0, ge=0, description="added to the deviation, as some libraries do; not needed here")


def length_weighted(
    reward: Tensor, group: Tensor, loss_mask: Tensor, counts: Tensor | None = None
) -> dict[str, Tensor]:
    """r - sum(length r) / sum(length) over the prompt's answers: the baseline of least variance on policy.

    reward: [batch]; group: [batch] int; loss_mask: [batch, time] bool, whose tokens are the length. Returns
    {"advantage": [batch]}, in units of reward; exactly 0 for a group whose rewards are all equal.
    Source: Hao et al. 2025, arXiv:2505.23585, OPO.
    """
    counts = checked(reward, group, counts)
    _, _, same = group_statistics(reward, group, counts)
    length = torch.where(counts, loss_mask.sum(1), 0).double()
    baseline = sum_by(group, length * torch.where(counts, reward.double(), 0.0)) / sum_by(group, length).clamp(min=1)
    return {"advantage": torch.where(same, 0.0, reward.double() - baseline).to(reward.dtype)}


def pass_at_k(
    reward: Tensor,
    group: Tensor,
    counts: Tensor | None = None,
    *,
    std: str = "sample",
    epsilon: float = 0.0,
) -> dict[str, Tensor]:
    """Only the best answer is pushed: by how much it beats the second best, in deviations of its prompt's rewards.

    reward: [batch]; group: [batch] int; counts: [batch] bool. Returns {"advantage": [batch]}; 0 where two answers
    share the first place, and for a prompt with one answer.
    Source: Tang et al. 2025, arXiv:2503.19595, the leave-one-out estimate of max@k; divided by the deviation in verl.
    """
    counts = checked(reward, group, counts)
    first = extreme_by(group, torch.where(counts, reward, -torch.inf), "amax")
    best = counts & (reward == first)
    second = extreme_by(group, torch.where(counts & ~best, reward, -torch.inf), "amax")
    ahead = best & (sum_by(group, best.double()) == 1) & torch.isfinite(second)
    gain = torch.where(ahead, (first - second).double(), 0.0)
    if std != "none":
        found = group_advantage(reward, group, counts, std=std, epsilon=epsilon)["advantage"].double()
        centred = group_advantage(reward, group, counts, std="none")["advantage"].double()
        gain = torch.where(ahead, gain * found / torch.where(centred == 0, 1.0, centred), 0.0)
    return {"advantage": gain.to(reward.dtype)}


def greedy(
    reward: Tensor, group: Tensor, probe: Tensor, total: Callable[[Tensor], Tensor] | None = None
) -> dict[str, Tensor]:
    """r - the reward of the greedy answer to the same prompt, which is given as a probe.

    reward: [batch]; group: [batch] int; probe: [batch] bool, the greedy answers (the mean, where a prompt has several).
    Returns {"advantage": [batch]}, in units of reward; 0 for a prompt whose probe could not be judged.
    Raises ValueError when no answer of the collected batch is a probe.
    Source: Li et al. 2023, arXiv:2310.10505, ReMax.
    """
    number = probe.double().sum() if total is None else total(probe.double())
    if not number:
        raise ValueError("advantage 'greedy' needs a greedy answer as a probe: use `source: rollouts_and_greedy`")
    probes = sum_by(group, probe.double())
    baseline = sum_by(group, torch.where(probe, reward.double(), 0.0)) / probes.clamp(min=1)
    return {"advantage": torch.where(probes > 0, reward.double() - baseline, 0.0).to(reward.dtype)}


@hookimpl
def unified_rules() -> list[Rule]:
    """Offer `advantage: length_weighted`, `pass_at_k` and `greedy`."""
    return [
        Rule("length_weighted", of="advantage", value=length_weighted),
        Rule("pass_at_k", PassAtKSettings, of="advantage", value=pass_at_k),
        Rule("greedy", of="advantage", value=greedy, reads=frozenset({"probe"})),
    ]
