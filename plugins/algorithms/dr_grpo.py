"""Dr. GRPO: GRPO without its two biases, the deviation under the advantage and the length under the answer.

GC = ratio A inside the clip, else 0, with A = r - mean over the prompt's answers. Every token weighs 1 / (answers L).
Use: a verifier's reward, where GRPO's answers grow longer without becoming better.
Watch: `completions/mean_length`, for right and wrong answers; `constant_length` sets the scale of the step.
Source: Liu et al. 2025, arXiv:2503.20783, section 3; no reference, as there.
"""

from __future__ import annotations

from unified import Algorithm, Chosen, Field, choice, hookimpl
from unified_plugins.algorithms.policy_gradient import PolicyGradientSettings, policy_gradient


class DrGRPOSettings(PolicyGradientSettings):
    """What a recipe may set for Dr. GRPO: the family's settings with the paper's defaults."""

    advantage: Chosen = choice(
        "advantage", {"name": "group", "std": "none"}, description="reward less the mean of its prompt"
    )
    constant_length: int = Field(256, ge=1, description="L: the longest answer that may be sampled, in tokens")


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer Dr. GRPO to recipes as `algorithm: dr_grpo`."""
    return [policy_gradient("dr_grpo", DrGRPOSettings, how="constant", answers=2)]
