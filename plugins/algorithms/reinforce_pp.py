"""REINFORCE++: the reward still to come with the KL inside, whitened over all tokens of the batch, and PPO's clip.

GC = ratio A inside the clip, else 0, with A the whitened sum from here to the end of the token rewards
[last token] r - kl_weight log(policy / reference). All tokens of a step weigh the same.
Use: a reward and one sample a prompt or more, without a critic and without groups.
Watch: `kl`, `clip_ratio`; whitening is over the batch, so a small one is noisy.
Source: Hu et al. 2025, arXiv:2501.03262; the deviation is that of n, as in its code (OpenRLHF).
"""

from __future__ import annotations

from typing import Literal

from unified import Algorithm, Chosen, Field, choice, hookimpl
from unified_plugins.algorithms.policy_gradient import PolicyGradientSettings, policy_gradient


class ReinforcePlusPlusSettings(PolicyGradientSettings):
    """What a recipe may set for REINFORCE++: the family's settings with the paper's defaults."""

    advantage: Chosen = choice(
        "advantage",
        {"name": "monte_carlo", "whiten": True, "whiten_std": "population"},
        description="reward still to come, whitened",
    )
    kl: Chosen = choice("kl", "k1", description="estimate of KL(policy, reference)")
    kl_weight: float = Field(0.01, ge=0, description="weight of that estimate; 0: no reference is needed")
    kl_place: Literal["reward", "advantage", "loss"] = Field("reward", description="where the KL enters")


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer REINFORCE++ to recipes as `algorithm: reinforce_pp`."""
    return [policy_gradient("reinforce_pp", ReinforcePlusPlusSettings, how="token", answers=1)]
