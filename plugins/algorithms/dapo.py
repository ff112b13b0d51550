"""DAPO: GRPO with more room upwards than downwards, all tokens weighed the same, and no reference.

GC = ratio A inside the clip [0.8, 1.28], else 0, with A = (r - mean) / deviation over the prompt's answers.
The paper's recipe around it: `filters: [no_spread]` with refill, and `reward: {name: overlong, ...}`.
Use: a verifier's reward on long answers, groups filtered so that each has right and wrong ones.
Watch: `frac_reward_zero_std` (filter and refill where it is high), `completions/clipped_ratio`, `clip_ratio`.
Source: Yu et al. 2025, arXiv:2503.14476, eq. 8; the bounds: its section 4.1.
"""

from __future__ import annotations

from unified import Algorithm, Chosen, choice, hookimpl
from unified_plugins.algorithms.policy_gradient import PolicyGradientSettings, policy_gradient


class DAPOSettings(PolicyGradientSettings):
    """What a recipe may set for DAPO: the family's settings with the paper's defaults."""

    ratio: Chosen = choice("ratio", {"name": "clip", "low": 0.2, "high": 0.28}, description="clip-higher")


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer DAPO to recipes as `algorithm: dapo`."""
    return [policy_gradient("dapo", DAPOSettings, how="token", answers=2)]
