"""Advantages that look along one answer: generalised advantage estimation, temporal difference, Monte Carlo.

What such a rule may name is listed in `advantages.py`. Tokens outside the loss mask (text that a tool wrote) are no
steps of time: value and advantage are carried over them, without discount, as in verl.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from unified import Chosen, Field, Rule, Settings, choice, hookimpl
from unified_plugins.rules import apply
from unified_plugins.rules.whitening import whiten as whitened


class ReturnSettings(Settings):
    """What may be set for every advantage that looks along one answer."""

    gamma: float = Field(1.0, ge=0, le=1, description="discount per token")
    whiten: bool = Field(False, description="whiten advantages over all tokens of the collected batch")
    whiten_std: Literal["sample", "population", "none"] = Field(
        "sample", description="whitening divides by the deviation with n - 1, with n, or not at all"
    )
    whiten_epsilon: float = Field(1e-8, ge=0, description="added to the variance in whitening")


class GAESettings(ReturnSettings):
    """What may be set for generalised advantage estimation."""

    lam: float = Field(0.95, ge=0, le=1, description="lambda: 0 trusts the critic, 1 the rewards that came")
    value_lam: float | None = Field(None, ge=0, le=1, description="lambda of the critic's returns; without, lam")
    length_alpha: float | None = Field(
        None, gt=0, description="lambda of the advantage is 1 - 1 / (this x tokens of the answer), in place of lam"
    )


class MonteCarloSettings(ReturnSettings):
    """What may be set for the rewards still to come."""

    baseline: Chosen | None = choice(
        "advantage",
        None,
        description="this advantage of the outcome stands in the place of the reward; a KL in the reward follows",
    )


def gae(
    token_reward: Tensor,
    old_value: Tensor,
    loss_mask: Tensor,
    tokens: Tensor | None = None,
    total: Callable[[Tensor], Tensor] | None = None,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    value_lam: float | None = None,
    length_alpha: float | None = None,
    whiten: bool = False,
    whiten_std: str = "sample",
    whiten_epsilon: float = 1e-8,
) -> dict[str, Tensor]:
    """Generalised advantage estimation: A_t = d_t + gamma lam A_t+1, with d_t = r_t + gamma V_t+1 - V_t.

    V and A are 0 after the end of the answer.

    Args:
        token_reward: [batch, time] float, reward of token t. old_value: [batch, time], V read before token t.
        loss_mask: [batch, time] bool. tokens: [batch, time] bool, those that whitening is taken over.
        total: sum over the first dimension and all processes; without it, over what is here.
        gamma, lam: per token. value_lam: of the returns. length_alpha: makes lam 1 - 1 / (length_alpha x length).
        whiten, whiten_std, whiten_epsilon: see `whitening.whiten`.
    Returns:
        {"advantage": [batch, time], "returns": [batch, time]}, in units of reward (advantage in deviations when
        whitened); returns = advantage before whitening (of value_lam) + value. 0 outside the loss mask.
    Source:
        Schulman et al. 2016, arXiv:1506.02438, eq. 16. A lambda of its own for the critic: Yuan et al. 2025,
        arXiv:2503.01491, VC-PPO; lambda by length: Yue et al. 2025, arXiv:2504.05118, VAPO.
    """
    own: float | Tensor = lam
    if length_alpha is not None:
        own = (1 - 1 / (length_alpha * loss_mask.sum(1).to(old_value.dtype).clamp(min=1))).clamp(min=0)  # [batch]
    advantage = _accumulate(token_reward, old_value, loss_mask, gamma, own)
    decoupled = length_alpha is not None or value_lam not in (None, lam)
    of_value = lam if value_lam is None else value_lam
    target = _accumulate(token_reward, old_value, loss_mask, gamma, of_value) if decoupled else advantage
    returns = torch.where(loss_mask, target + old_value, 0.0)
    if whiten:
        advantage = whitened(
            advantage, loss_mask, total or _sum_here, among=tokens, std=whiten_std, epsilon=whiten_epsilon
        )
    return {"advantage": advantage, "returns": returns}


def _accumulate(
    token_reward: Tensor, old_value: Tensor, loss_mask: Tensor, gamma: float, lam: float | Tensor
) -> Tensor:
    """[batch, time]: the discounted sum of differences; lam may differ between answers, [batch]."""
    advantage = torch.zeros_like(old_value)  # [batch, time]
    running = torch.zeros_like(old_value[:, 0])  # [batch], A of the next token that counts
    after = torch.zeros_like(running)  # [batch], V there
    for t in reversed(range(old_value.shape[1])):
        here = loss_mask[:, t]
        step = token_reward[:, t] + gamma * after - old_value[:, t]
        running = torch.where(here, step + gamma * lam * running, running)
        after = torch.where(here, old_value[:, t], after)
        advantage[:, t] = torch.where(here, running, 0.0)
    return advantage


def temporal_difference(
    token_reward: Tensor,
    old_value: Tensor,
    loss_mask: Tensor,
    tokens: Tensor | None = None,
    total: Callable[[Tensor], Tensor] | None = None,
    *,
    gamma: float = 1.0,
    whiten: bool = False,
    whiten_std: str = "sample",
    whiten_epsilon: float = 1e-8,
) -> dict[str, Tensor]:
    """One step of temporal difference: A_t = r_t + gamma V_t+1 - V_t, which is `gae` with lambda 0.

    Shapes, settings and results as in `gae`. Source: Sutton 1988; Schulman et al. 2016, arXiv:1506.02438, eq. 17.
    """
    keywords = {"whiten": whiten, "whiten_std": whiten_std, "whiten_epsilon": whiten_epsilon}
    return gae(token_reward, old_value, loss_mask, tokens, total, gamma=gamma, lam=0.0, **keywords)  # type: ignore[arg-type]


def monte_carlo(
    token_reward: Tensor,
    loss_mask: Tensor,
    tokens: Tensor | None = None,
    total: Callable[[Tensor], Tensor] | None = None,
    *,
    gamma: float = 1.0,
    baseline: Chosen | None = None,
    whiten: bool = False,
    whiten_std: str = "sample",
    whiten_epsilon: float = 1e-8,
    **offered: Any,
) -> dict[str, Tensor]:
    """The discounted rewards still to come: A_t = r_t + gamma r_t+1 + ..., without a critic.

    With a `baseline` the answer's outcome is first compared by that rule, before any KL is taken off the tokens: the
    order of OpenRLHF, where TRL's RLOO compares rewards that hold the KL.

    Shapes, settings and results as in `gae`; returns are the advantage before whitening.
    Source: Williams 1992, REINFORCE; return-to-go as in Sutton et al. 1999, Policy Gradient Methods; whitened over the
    batch, and with the group mean as baseline: Hu et al. 2025, arXiv:2501.03262, REINFORCE++ and its baseline form.
    """
    if baseline is not None:
        inner = {**offered, "reward": offered["outcome"], "loss_mask": loss_mask, "tokens": tokens, "total": total}
        compared = dict(apply.value(baseline, {**inner, "token_reward": token_reward}))["advantage"]  # [batch]
        if compared.dim() != 1:
            raise ValueError(f"baseline '{baseline.name}' must give one number per answer")
        token_reward = token_reward + torch.where(offered["last"], (compared - offered["outcome"])[:, None], 0.0)
    keywords = {"whiten": whiten, "whiten_std": whiten_std, "whiten_epsilon": whiten_epsilon}
    nothing = torch.zeros_like(token_reward)
    return gae(token_reward, nothing, loss_mask, tokens, total, gamma=gamma, lam=1.0, **keywords)  # type: ignore[arg-type]


def _sum_here(x: Tensor) -> Tensor:
    """Sum over the first dimension, of one process."""
    return x.sum(0)


def _of_baseline(settings: Any) -> frozenset[str]:
    return apply.reads(settings.baseline) if settings.baseline is not None else frozenset()


@hookimpl
def unified_rules() -> list[Rule]:
    """Offer `advantage: gae`, `temporal_difference` and `monte_carlo`."""
    critic = frozenset({"old_value"})
    return [
        Rule("gae", GAESettings, of="advantage", value=gae, reads=critic),
        Rule("temporal_difference", ReturnSettings, of="advantage", value=temporal_difference, reads=critic),
        Rule("monte_carlo", MonteCarloSettings, of="advantage", value=monte_carlo, reads=_of_baseline),
    ]
