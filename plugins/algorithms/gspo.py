"""GSPO: one ratio for a whole answer, the geometric mean of its tokens', clipped as one.

GC = s A where s is inside the clip, else 0, the same for all tokens of an answer; s = exp(mean log ratio), A as GRPO's.
Each answer weighs 1 / answers, each of its tokens 1 / length.
Use: mixtures of experts and long answers, where ratios of single tokens are noise.
Watch: `clip_ratio`: with the paper's narrow bounds a large share is clipped, and learning goes on.
Source: Zheng et al. 2025, arXiv:2507.18071, eq. 5; the bounds: its section 5.1; no reference, as there.
"""

from __future__ import annotations

from unified import Algorithm, Chosen, choice, hookimpl
from unified_plugins.algorithms.policy_gradient import PolicyGradientSettings, policy_gradient


class GSPOSettings(PolicyGradientSettings):
    """What a recipe may set for GSPO: the family's settings with the paper's defaults."""

    ratio: Chosen = choice("ratio", "sequence_clip", description="clip on whole answers")


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer GSPO to recipes as `algorithm: gspo`."""
    return [policy_gradient("gspo", GSPOSettings, how="sequence", answers=2)]
