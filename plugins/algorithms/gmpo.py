"""GMPO: the geometric mean of the tokens' clipped ratios, in place of GRPO's arithmetic one.

GC = g A on tokens inside the clip, else 0, with g = exp(mean of clipped log ratios) and A as in GRPO.
Each answer weighs 1 / answers, each of its tokens 1 / length.
Use: samples with outliers among the tokens' ratios, as in mixtures of experts or long answers.
Watch: `clip_ratio`, `policy_kl`.
Source: Zhao et al. 2025, arXiv:2507.20673; bounds exp(-0.4) and exp(0.4), no reference, as there.
"""

from __future__ import annotations

from unified import Algorithm, Chosen, choice, hookimpl
from unified_plugins.algorithms.policy_gradient import PolicyGradientSettings, policy_gradient


class GMPOSettings(PolicyGradientSettings):
    """What a recipe may set for GMPO: the family's settings with the paper's defaults."""

    ratio: Chosen = choice("ratio", "geometric_clip", description="clip before the geometric mean")


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer GMPO to recipes as `algorithm: gmpo`."""
    return [policy_gradient("gmpo", GMPOSettings, how="sequence", answers=2)]
