"""Clip-Cov: PPO's clip, and the tokens on which log p and advantage go together most are left out.

GC = ratio A inside the clip, 0 outside it and on a share of the tokens with high (A - mean A)(log p - mean log p),
means over all tokens of the optimiser step; A as in GRPO. All tokens of a step weigh the same.
Use: long runs with a verifier whose entropy falls too soon under a plain clip.
Watch: `completions/nats` (the entropy of what is sampled) and `clip_ratio`.
Source: Cui et al. 2025, arXiv:2505.22617.
"""

from __future__ import annotations

from unified import Algorithm, Chosen, choice, hookimpl
from unified_plugins.algorithms.policy_gradient import PolicyGradientSettings, policy_gradient


class ClipCovAlgorithmSettings(PolicyGradientSettings):
    """What a recipe may set for Clip-Cov: the family's settings with the paper's defaults."""

    ratio: Chosen = choice("ratio", "clip_cov", description="clip, and the tokens of high covariance")


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer Clip-Cov to recipes as `algorithm: clip_cov`."""
    return [policy_gradient("clip_cov", ClipCovAlgorithmSettings, how="token", answers=2)]
