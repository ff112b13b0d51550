"""The advantage of on-policy distillation: how much likelier the teacher finds what the policy said.

What such a rule may name is listed in `advantages.py`. Both log-probs are those of the sampled token: the teacher's,
and those of the policy that sampled it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unified import Field, Rule, Settings, hookimpl


class TeacherSettings(Settings):
    """What may be set for the advantage from a teacher."""

    gamma: float = Field(0.0, ge=0, le=1, description="discount per token of what follows; 0: each token for itself")
    normalise: bool = Field(False, description="divide the discounted sum by the sum of its discounts: a mean")
    own: bool = Field(True, description="whether the sum begins with the token itself, or with the next one")
    weight: float = Field(1.0, gt=0, description="factor")


def teacher_advantage(
    teacher_logp: Tensor,
    old_logp: Tensor,
    loss_mask: Tensor,
    *,
    gamma: float = 0.0,
    normalise: bool = False,
    own: bool = True,
    weight: float = 1.0,
) -> dict[str, Tensor]:
    """A_t = weight · Σ_{i ≥ t} gamma^(i − t) (log teacher_i − log policy_i) over the tokens that count.

    With gamma 0 it lowers KL(policy, teacher) of every token given what stands before it; with gamma 1 it is the
    gradient of the KL of whole answers. Without `own` the sum begins one token later, as beside an exact term for the
    token itself. Tokens outside the loss mask are no steps of time.

    Args:
        teacher_logp, old_logp: [batch, time] nats. loss_mask: [batch, time] bool.
        gamma, normalise, own, weight: see the settings.
    Returns:
        {"advantage": [batch, time]}, in nats; 0 outside the loss mask.
    Source:
        discount 0: Lu et al. 2025, Thinking Machines, "On-Policy Distillation"; the sum or mean over what follows, and
        `own` off beside an exact first step: Gu et al. 2023, arXiv:2306.08543, section 2.2 (MiniLLM).
    """
    gap = torch.where(loss_mask, teacher_logp - old_logp, 0.0)  # [batch, time]
    advantage = torch.zeros_like(gap)
    running, mass = torch.zeros_like(gap[:, 0]), torch.zeros_like(gap[:, 0])  # [batch], of what follows
    for t in reversed(range(gap.shape[1])):
        here = loss_mask[:, t]
        after, after_mass = gamma * running, gamma * mass
        sums = (gap[:, t] + after, 1 + after_mass) if own else (running, mass)
        value = sums[0] / sums[1].clamp(min=torch.finfo(gap.dtype).tiny) if normalise else sums[0]
        advantage[:, t] = torch.where(here, weight * value, 0.0)
        running = torch.where(here, gap[:, t] + after, running)
        mass = torch.where(here, 1 + after_mass, mass)
    return {"advantage": advantage}


@hookimpl
def unified_rules() -> list[Rule]:
    """Offer `advantage: teacher`."""
    reads = frozenset({"teacher_logp", "old_logp"})
    return [Rule("teacher", TeacherSettings, of="advantage", value=teacher_advantage, reads=reads)]
