"""CISPO: the ratio is a weight with a cap, and no token is left out.

GC = min(ratio, 1 + high) A without a gradient through the ratio, A as in GRPO. All tokens of a step weigh the same.
Use: samples learned from in several steps, where rare tokens that a clip would silence shall keep their push.
Watch: `policy_kl`: no token is left out, so a step that is too large shows there.
Source: MiniMax 2025, arXiv:2506.13585, section 3.1. The cap, which it leaves open, is that of Khatri et al. 2025,
arXiv:2510.13786; no lower bound and no reference, as in both.
"""

from __future__ import annotations

from unified import Algorithm, Chosen, choice, hookimpl
from unified_plugins.algorithms.policy_gradient import PolicyGradientSettings, policy_gradient


class CISPOSettings(PolicyGradientSettings):
    """What a recipe may set for CISPO: the family's settings with the paper's defaults."""

    ratio: Chosen = choice("ratio", "clipped_weight", description="weight of log p, capped")


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer CISPO to recipes as `algorithm: cispo`."""
    return [policy_gradient("cispo", CISPOSettings, how="token", answers=2)]
