"""REINFORCE: the plain policy gradient. No baseline, no clip, no reference.

GC = the reward still to come. Every token weighs 1 / answers.
Use: a baseline for comparisons, or rewards that are centred already.
Watch: `grad_norm`: without a baseline its variance is large; `reward` below 0 pushes down all that is sampled.
Source: Williams 1992, Simple Statistical Gradient-Following Algorithms.
"""

from __future__ import annotations

from unified import Algorithm, Chosen, choice, hookimpl
from unified_plugins.algorithms.policy_gradient import PolicyGradientSettings, policy_gradient


class ReinforceSettings(PolicyGradientSettings):
    """What a recipe may set for REINFORCE: the family's settings with the paper's defaults."""

    advantage: Chosen = choice("advantage", "monte_carlo", description="the reward still to come")
    ratio: Chosen = choice("ratio", "none", description="none: answers are of the policy as it is now")


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer REINFORCE to recipes as `algorithm: reinforce`."""
    return [policy_gradient("reinforce", ReinforceSettings, how="sequence-sum", answers=1)]
