"""SAPO: a soft gate on the ratio in the place of the clip, which closes sooner for bad answers.

GC = 4 p (1 - p) ratio A with p = sigmoid(tau (ratio - 1)), tau 1 where A > 0, else 1.05; A as in GRPO.
Each answer weighs 1 / answers, each of its tokens 1 / length.
Use: samples learned from in several steps, where a hard clip throws away too much.
Watch: `policy_kl`: nothing is cut off, so a large step shows there first.
Source: Gao et al. 2025, arXiv:2511.20347; no reference.
"""

from __future__ import annotations

from unified import Algorithm, Chosen, choice, hookimpl
from unified_plugins.algorithms.policy_gradient import PolicyGradientSettings, policy_gradient


class SAPOSettings(PolicyGradientSettings):
    """What a recipe may set for SAPO: the family's settings with the paper's defaults."""

    ratio: Chosen = choice("ratio", "soft_gate", description="gate that closes softly")


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer SAPO to recipes as `algorithm: sapo`."""
    return [policy_gradient("sapo", SAPOSettings, how="sequence", answers=2)]
