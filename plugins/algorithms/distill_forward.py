"""Forward distillation: the policy's distribution is drawn over all that the teacher finds likely, on given answers.

Per token KL(teacher, policy) = Σ_v t_v (log t_v − log p_v); by the policy's logits the push is t_v − p_v.
Use: a teacher with the same vocabulary and answers that are given; covers all that the teacher may say.
Watch: `loss`, the KL in nats per token: it ends at the gap of capacity, not at 0.
Source: Hinton et al. 2015, arXiv:1503.02531, section 2 (without hard labels: these are a term `sft`).
"""

from __future__ import annotations

from unified import Algorithm, hookimpl
from unified_plugins.algorithms.distillation import DistillationSettings, distillation


class DistillForwardSettings(DistillationSettings):
    """What a recipe may set for forward distillation: the family's settings with forward KL on all tokens."""


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer forward distillation to recipes as `algorithm: distill_forward`."""
    return [distillation("distill_forward", DistillForwardSettings, source="rows")]
