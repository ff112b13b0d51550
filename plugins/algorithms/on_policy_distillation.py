"""On-policy distillation: the credit of each sampled token is how much likelier the teacher finds it.

GC = A_t = log teacher_t − log policy_t, of the policy that sampled (gamma 0; `advantage: {name: teacher, gamma: 1}`
gives the sum over what follows). A one-sample estimate of the gradient of KL(policy, teacher) of each token.
Use: a teacher that can score tokens but not show its whole distribution.
Watch: `reward` is constant here; look at `loss`, and at the reward of held-out prompts, `eval/reward`.
Source: Lu et al. 2025, Thinking Machines, "On-Policy Distillation"; the exact form over all tokens is distill_reverse.
"""

from __future__ import annotations

from dataclasses import replace

from unified import Algorithm, Chosen, choice, hookimpl
from unified_plugins.algorithms.policy_gradient import PolicyGradientSettings, policy_gradient


class OnPolicyDistillationSettings(PolicyGradientSettings):
    """What a recipe may set: the policy-gradient family's settings with the teacher's advantage and no ratio."""

    advantage: Chosen = choice("advantage", "teacher", description="how a token is judged")
    ratio: Chosen = choice("ratio", "none", description="trust region around the policy that sampled")


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer on-policy distillation to recipes as `algorithm: on_policy_distillation`."""
    preset = policy_gradient("on_policy_distillation", OnPolicyDistillationSettings, how="token", answers=1)
    return [replace(preset, reward="constant")]
