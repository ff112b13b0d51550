"""DPPO: tokens are stopped when their probability, not its ratio, has moved too far.

GC = ratio A while the probability of the token is within its bounds, else 0, with A as in GRPO. All tokens of a step
weigh the same.
Use: samples learned from off-policy, where a ratio clip is too tight for rare tokens and too loose for likely ones.
Watch: `clip_ratio` and `policy_kl`.
Source: Qi et al. 2026, arXiv:2602.04879, the binary total variation; no reference.
"""

from __future__ import annotations

from unified import Algorithm, Chosen, choice, hookimpl
from unified_plugins.algorithms.policy_gradient import PolicyGradientSettings, policy_gradient


class DPPOSettings(PolicyGradientSettings):
    """What a recipe may set for DPPO: the family's settings with the paper's defaults."""

    ratio: Chosen = choice("ratio", "probability_clip", description="bound on probabilities")


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer DPPO to recipes as `algorithm: dppo`."""
    return [policy_gradient("dppo", DPPOSettings, how="token", answers=2)]
