"""RLOO: REINFORCE with the mean of the other answers to a prompt as its baseline; the whole answer is one action.

GC = R - mean of the others' R, with R = r - kl_weight sum of log(policy / reference). Every token weighs 1 / answers.
Use: a reward and a few samples a prompt (2 or 4), KL inside the reward, no critic.
Watch: `kl`, `reward_std`, `frac_reward_zero_std`.
Source: Ahmadian et al. 2024, arXiv:2402.14740, eq. 5; the KL weight is TRL's.
"""

from __future__ import annotations

from typing import Literal

from unified import Algorithm, Chosen, Field, choice, hookimpl
from unified_plugins.algorithms.policy_gradient import PolicyGradientSettings, policy_gradient


class RLOOSettings(PolicyGradientSettings):
    """What a recipe may set for RLOO: the family's settings with the paper's defaults."""

    advantage: Chosen = choice("advantage", "leave_one_out", description="reward less the mean of the other answers")
    ratio: Chosen = choice("ratio", "none", description="none: answers are of the policy as it is now")
    kl: Chosen = choice("kl", "k1", description="estimate of KL(policy, reference)")
    kl_weight: float = Field(0.03, ge=0, description="weight of that estimate; 0: no reference is needed")
    kl_place: Literal["reward", "advantage", "loss"] = Field("reward", description="where the KL enters")


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer RLOO to recipes as `algorithm: rloo`."""
    return [policy_gradient("rloo", RLOOSettings, how="sequence-sum", answers=2)]
