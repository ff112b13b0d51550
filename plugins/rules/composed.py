"""Advantages made of other advantages: whitened over the batch, and summed over several rewards.

What such a rule may name is listed in `advantages.py`; these hand it all on to the rule inside.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from unified import Chosen, Field, Rule, Settings, choice, hookimpl
from unified_plugins.rules import apply
from unified_plugins.rules.whitening import whiten


class WhitenedSettings(Settings):
    """What may be set for a whitened advantage."""

    of: Chosen = choice("advantage", "group", description="the advantage to whiten")
    over: Literal["answers", "tokens"] = Field("answers", description="every answer counts once, or every token")
    std: Literal["sample", "population", "none"] = Field(
        "sample", description="divide by the deviation with n - 1, with n, or not at all"
    )
    epsilon: float = Field(1e-8, ge=0, description="added to the variance")


class PerRewardSettings(Settings):
    """What may be set for the sum of advantages of several rewards."""

    of: Chosen = choice("advantage", "group", description="the advantage of each reward")
    rewards: dict[str, float] = Field({}, description="column of each reward, and the weight of its advantage")


def whitened(*, of: Chosen, over: str, std: str, epsilon: float, **offered: Any) -> dict[str, Tensor]:
    """Another advantage, less its mean over the collected batch and divided by the standard deviation.

    Over answers the inner advantage must be one number per answer. Returns {"advantage": [batch] or [batch, time]}, and
    the inner rule's returns as they are.
    Raises ValueError for an inner advantage per token where answers are to be counted.
    Source: over answers TRL's RLOO (normalize_advantages); over tokens Hu et al. 2025, arXiv:2501.03262, REINFORCE++.
    """
    found: dict[str, Tensor] = dict(apply.value(of, offered))
    x, mask, counts = found["advantage"], offered["loss_mask"], offered["counts"]
    keywords: dict[str, Any] = {"std": std, "epsilon": epsilon}
    if over == "tokens":
        wide = x[:, None].expand(mask.shape) if x.dim() == 1 else x
        return {**found, "advantage": whiten(wide, mask, offered["total"], among=offered["tokens"], **keywords)}
    if x.dim() != 1:
        raise ValueError(f"advantage '{of.name}' is one number per token; whiten it `over: tokens`")
    every = torch.ones_like(counts)[:, None]
    white = whiten(x[:, None], every, offered["total"], among=counts[:, None], **keywords)[:, 0]
    return {**found, "advantage": white}


def per_reward(*, of: Chosen, rewards: dict[str, float], **offered: Any) -> dict[str, Tensor]:
    """The weighted sum of the advantages of several rewards, each normalised by itself.

    Each reward is a column of the answers. A KL inside the reward has no place here. Returns {"advantage": [batch]}.
    Raises ValueError for a column that is not there; the message lists those that are.
    Source: Liu et al. 2026, arXiv:2601.05242, GDPO; its last step is `whitened`.
    """
    columns: dict[str, Tensor] = offered["columns"]
    missing = [name for name in rewards if name not in columns]
    if missing or not rewards:
        what = f"no column '{missing[0]}'" if missing else "no `rewards` are named"
        raise ValueError(f"{what}; columns of these answers: {', '.join(columns) or 'none'}")
    parts = []
    for name, weight in rewards.items():
        one, last = columns[name].to(offered["reward"].dtype), offered["last"]
        own = {"reward": one, "outcome": one, "token_reward": torch.where(last, one[:, None], 0.0)}
        parts.append(weight * dict(apply.value(of, {**offered, **own}))["advantage"])
    return {"advantage": torch.stack(parts).sum(0)}


def _inner(settings: Any) -> frozenset[str]:
    return apply.reads(settings.of)


@hookimpl
def unified_rules() -> list[Rule]:
    """Offer `advantage: {name: whitened, of: ...}` and `{name: per_reward, of: ..., rewards: {COLUMN: weight}}`."""
    return [
        Rule("whitened", WhitenedSettings, of="advantage", value=whitened, reads=_inner),
        Rule("per_reward", PerRewardSettings, of="advantage", value=per_reward, reads=_inner),
    ]
