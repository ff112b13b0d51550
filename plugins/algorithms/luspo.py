"""LUSPO: GSPO with each answer weighed by its length, so that long ones are not held back.

GC = s A where s is inside the clip, else 0, as in GSPO; every token weighs 1 / answers, where GSPO has 1 / length too.
Use: GSPO's uses, where answers must be free to grow.
Watch: `completions/mean_length`, `completions/clipped_ratio`.
Source: Liu et al. 2026, arXiv:2602.05261.
"""

from __future__ import annotations

from unified import Algorithm, Chosen, choice, hookimpl
from unified_plugins.algorithms.policy_gradient import PolicyGradientSettings, policy_gradient


class LUSPOSettings(PolicyGradientSettings):
    """What a recipe may set for LUSPO: the family's settings with the paper's defaults."""

    ratio: Chosen = choice("ratio", "sequence_clip", description="clip on whole answers")


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer LUSPO to recipes as `algorithm: luspo`."""
    return [policy_gradient("luspo", LUSPOSettings, how="sequence-sum", answers=2)]
