"""ReMax: REINFORCE with the reward of the greedy answer as its baseline.

GC = r - reward of the greedy answer to the same prompt, which is sampled beside and never pushed. Every token weighs
1 / answers.
Use: a reward and memory for no critic; one sample and one greedy answer a prompt.
Watch: `reward` against that of greedy answers: when sampling is greedy, nothing is left to learn from.
Source: Li et al. 2023, arXiv:2310.10505; without its KL in the reward, which is `kl_weight` with `kl_place: reward`.
"""

from __future__ import annotations

from unified import Algorithm, Chosen, choice, hookimpl
from unified_plugins.algorithms.policy_gradient import PolicyGradientSettings, policy_gradient


class ReMaxSettings(PolicyGradientSettings):
    """What a recipe may set for ReMax: the family's settings with the paper's defaults."""

    advantage: Chosen = choice("advantage", "greedy", description="reward less that of the greedy answer")
    ratio: Chosen = choice("ratio", "none", description="none: answers are of the policy as it is now")


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer ReMax to recipes as `algorithm: remax`."""
    return [policy_gradient("remax", ReMaxSettings, how="sequence-sum", answers=1, source="rollouts_and_greedy")]
