"""Reverse distillation: the policy keeps to what the teacher finds likely, on answers of its own.

Per token KL(policy, teacher) = Σ_v p_v (log p_v − log t_v), exact over the vocabulary; by the policy's logits the push
is p_v (KL − (log p_v − log t_v)). How the answer came to be is not differentiated.
Use: a teacher with the same vocabulary and a student too small for all of it: it keeps to the likely part.
Watch: `loss`, the KL in nats per token, and `completions/nats`: the entropy falls below the teacher's if it goes too
far.
Source: Agarwal et al. 2023, arXiv:2306.13649, section 3 (on-policy, reverse KL).
"""

from __future__ import annotations

from unified import Algorithm, Chosen, choice, hookimpl
from unified_plugins.algorithms.distillation import DistillationSettings, distillation


class DistillReverseSettings(DistillationSettings):
    """What a recipe may set for reverse distillation: the family's settings with reverse KL."""

    divergence: Chosen = choice("divergence", "reverse_kl", description="what is made small")


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer reverse distillation to recipes as `algorithm: distill_reverse`."""
    return [distillation("distill_reverse", DistillReverseSettings, source="rollouts")]
