"""GRPO: the credit of an answer is its reward, compared with the other answers to its prompt.

GC = ratio A inside the clip, else 0, + kl_weight (reference / policy - 1), with A = (r - mean) / deviation over the
prompt's answers. Each answer weighs 1 / answers, each of its tokens 1 / length.
Use: a reward that can be computed or predicted, several samples a prompt, and no critic.
Watch: `frac_reward_zero_std` (groups that teach nothing), `kl`, `clip_ratio`, `completions/clipped_ratio`.
Source: Shao et al. 2024, arXiv:2402.03300, section 4.1 and appendix A.1.6; kl_weight 0.04 from section 4.2. The clip's
0.2 is not in the paper; it is PPO's.
"""

from __future__ import annotations

from unified import Algorithm, Field, hookimpl
from unified_plugins.algorithms.policy_gradient import PolicyGradientSettings, policy_gradient


class GRPOSettings(PolicyGradientSettings):
    """What a recipe may set for GRPO: the family's settings with the paper's defaults."""

    kl_weight: float = Field(0.04, ge=0, description="weight of the KL estimate; 0: no reference is needed")


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer GRPO to recipes as `algorithm: grpo`."""
    return [policy_gradient("grpo", GRPOSettings, how="sequence", answers=2)]
