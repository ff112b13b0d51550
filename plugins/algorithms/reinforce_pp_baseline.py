"""REINFORCE++ with a baseline: outcomes less their prompt's mean, whitened over the batch's tokens, and PPO's clip.

GC = ratio A inside the clip, else 0, less kl_weight log(policy / reference), the k2 estimate as a loss.
All tokens of a step weigh the same.
Use: a verifier with several samples a prompt, prompts of very different difficulty.
Watch: `frac_reward_zero_std`, `kl`, `clip_ratio`.
Source: Hu et al. 2025, arXiv:2501.03262; the deviation is that of n, as in its code (OpenRLHF).
"""

from __future__ import annotations

from unified import Algorithm, Chosen, Field, choice, hookimpl
from unified_plugins.algorithms.policy_gradient import PolicyGradientSettings, policy_gradient


class ReinforcePlusPlusBaselineSettings(PolicyGradientSettings):
    """What a recipe may set for REINFORCE++ with a baseline: the family's settings with the paper's defaults."""

    advantage: Chosen = choice(
        "advantage",
        {"name": "whitened", "of": {"name": "group", "std": "none"}, "over": "tokens", "std": "population"},
        description="reward less its prompt's mean, whitened",
    )
    kl: Chosen = choice("kl", "k2", description="estimate of KL(policy, reference)")
    kl_weight: float = Field(0.01, ge=0, description="weight of that estimate; 0: no reference is needed")


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer REINFORCE++ with a baseline to recipes as `algorithm: reinforce_pp_baseline`."""
    return [policy_gradient("reinforce_pp_baseline", ReinforcePlusPlusBaselineSettings, how="token", answers=2)]
