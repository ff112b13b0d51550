"""OPO: exactly on policy, with the baseline of least variance, the mean of rewards weighed by length.

GC = r - sum(length r) / sum(length) over the prompt's answers. Every token weighs 1 / answers.
Use: one optimiser step for each collected batch, answers of very different lengths.
Watch: `frac_reward_zero_std`, `grad_norm`.
Source: Hao et al. 2025, arXiv:2505.23585; neither clip, nor KL, nor entropy bonus, as there.
"""

from __future__ import annotations

from unified import Algorithm, Chosen, choice, hookimpl
from unified_plugins.algorithms.policy_gradient import PolicyGradientSettings, policy_gradient


class OPOSettings(PolicyGradientSettings):
    """What a recipe may set for OPO: the family's settings with the paper's defaults."""

    advantage: Chosen = choice("advantage", "length_weighted", description="reward less the mean by length")
    ratio: Chosen = choice("ratio", "none", description="none: answers are of the policy as it is now")


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer OPO to recipes as `algorithm: opo`."""
    return [policy_gradient("opo", OPOSettings, how="sequence-sum", answers=2)]
