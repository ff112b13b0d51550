"""Divergences between two distributions, of the student and of the teacher, for distillation.

A rule of kind "divergence" may name: student [n, s] and teacher [n, s], log-probs in nats over the same s tokens (or
tokens and a bucket for the rest), each summing to 1. Its value is the divergence of each of the n places, to be
minimised; its coefficient the negative derivative of that by the student's log-probs, [n, s].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unified import Field, Rule, Settings, hookimpl


class JSDSettings(Settings):
    """What may be set for the generalised Jensen-Shannon divergence."""

    beta: float = Field(0.5, ge=0, le=1, description="weight of the teacher in the mixture; 0 forward, 1 reverse KL")


class MixedSettings(Settings):
    """What may be set for the sum of both KL divergences."""

    forward: float = Field(0.5, ge=0, le=1, description="weight of KL(teacher, student); the other gets the rest")


def forward_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher, student) = Σ t (log t − log s): the student covers all that the teacher does.

    student, teacher: [n, s] nats. Returns [n] nats.
    Source: Hinton et al. 2015, arXiv:1503.02531, section 2, without its factor temperature² (see `distillation.py`).
    """
    return _expected(teacher, teacher - student)


def forward_kl_coefficient(teacher: Tensor) -> Tensor:
    """-d forward_kl / d log s: the teacher's probability, [n, s]."""
    return teacher.exp()


def reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(student, teacher) = Σ s (log s − log t): the student keeps to where the teacher is likely.

    student, teacher: [n, s] nats. Returns [n] nats. Source: Gu et al. 2023, arXiv:2306.08543, section 2.1.
    """
    return _expected(student, student - teacher)


def reverse_kl_coefficient(student: Tensor, teacher: Tensor) -> Tensor:
    """-d reverse_kl / d log s: −s (log s − log t + 1), [n, s]."""
    return -_weighed(student, student - teacher + 1)


def jsd(student: Tensor, teacher: Tensor, *, beta: float) -> Tensor:
    """β KL(teacher, m) + (1 − β) KL(student, m) with m = β teacher + (1 − β) student.

    At its ends, where this is 0, it is the limit of itself over β (forward KL at 0) and over 1 − β (reverse KL at 1).
    student, teacher: [n, s] nats. Returns [n] nats.
    Source: Agarwal et al. 2023, arXiv:2306.13649, section 2 and appendix A (GKD).
    """
    if beta in (0.0, 1.0):
        return forward_kl(student, teacher) if beta == 0.0 else reverse_kl(student, teacher)
    mixture = _mixture(student, teacher, beta)
    return beta * _expected(teacher, teacher - mixture) + (1 - beta) * _expected(student, student - mixture)


def jsd_coefficient(student: Tensor, teacher: Tensor, *, beta: float) -> Tensor:
    """-d jsd / d log s: −(1 − β) s (log s − log m), [n, s]; the rest of the derivative is 0, as m sums to 1."""
    if beta in (0.0, 1.0):
        return forward_kl_coefficient(teacher) if beta == 0.0 else reverse_kl_coefficient(student, teacher)
    return -(1 - beta) * _weighed(student, student - _mixture(student, teacher, beta))


def mixed_kl(student: Tensor, teacher: Tensor, *, forward: float) -> Tensor:
    """forward · KL(teacher, student) + (1 − forward) · KL(student, teacher).

    student, teacher: [n, s] nats. Returns [n] nats. Source: NeMo RL, DistillationLossFn, kl_type "mixed".
    """
    return forward * forward_kl(student, teacher) + (1 - forward) * reverse_kl(student, teacher)


def mixed_kl_coefficient(student: Tensor, teacher: Tensor, *, forward: float) -> Tensor:
    """-d mixed_kl / d log s, [n, s]."""
    push = forward * forward_kl_coefficient(teacher)
    return push + (1 - forward) * reverse_kl_coefficient(student, teacher)


def _mixture(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """log(β t + (1 − β) s), [n, s]."""
    return torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))


def _weighed(logp: Tensor, x: Tensor) -> Tensor:
    """p x, and 0 where p is 0, [n, s]."""
    p = logp.exp()
    return torch.where(p > 0, p * torch.where(p > 0, x, 0.0), 0.0)


def _expected(logp: Tensor, x: Tensor) -> Tensor:
    """Σ p x, [n]."""
    return _weighed(logp, x).sum(-1)


@hookimpl
def unified_rules() -> list[Rule]:
    """Offer `divergence: forward_kl`, `reverse_kl`, `jsd` and `mixed_kl`."""
    return [
        Rule("forward_kl", of="divergence", value=forward_kl, coefficient=forward_kl_coefficient),
        Rule("reverse_kl", of="divergence", value=reverse_kl, coefficient=reverse_kl_coefficient),
        Rule("jsd", JSDSettings, of="divergence", value=jsd, coefficient=jsd_coefficient),
        Rule("mixed_kl", MixedSettings, of="divergence", value=mixed_kl, coefficient=mixed_kl_coefficient),
    ]
