"""Over which tokens two distributions are compared: all, or the k likeliest and something for the rest.

A `View` holds both distributions over the compared tokens, and turns derivatives by the student's log-probs there into
derivatives by its logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class View:
    """student, teacher: [n, s] log-probs. to_logits: from [n, s] by the student's log-probs to [n, vocab] by logits."""

    student: Tensor
    teacher: Tensor
    to_logits: Callable[[Tensor], Tensor]


def whole(logp: Tensor, teacher: Tensor) -> View:
    """All tokens: logp, teacher [n, vocab] log-probs. d log s_v / d z_u = [u = v] − s_u."""
    return View(logp, teacher, lambda slope: slope - logp.exp() * slope.sum(-1, keepdim=True))


def with_floor(logp: Tensor, ids: Tensor, teacher: Tensor, *, floor: float) -> View:
    """All tokens; the teacher is renormalised over its ids [n, k] and has log-prob `floor` on every other token."""
    spread = torch.full_like(logp, floor).scatter(1, ids, teacher.log_softmax(-1))
    return whole(logp, spread)


def renormalised(logp: Tensor, ids: Tensor, teacher: Tensor) -> View:
    """Only the ids [n, k], over which both are renormalised; other logits are not pushed."""
    student = logp.gather(1, ids).log_softmax(-1)  # [n, k]

    def to_logits(slope: Tensor) -> Tensor:
        inside = slope - student.exp() * slope.sum(-1, keepdim=True)
        return torch.zeros_like(logp).scatter(1, ids, inside)

    return View(student, teacher.log_softmax(-1), to_logits)


def with_tail(logp: Tensor, ids: Tensor, teacher: Tensor, teacher_tail: Tensor) -> View:
    """The ids [n, k] and one bucket [n] of all other tokens; teacher_tail: the teacher's log-prob of that bucket."""
    rest = logp.scatter(1, ids, -torch.inf)  # [n, vocab], the tokens of the bucket
    tail = rest.logsumexp(-1, keepdim=True)  # [n, 1]
    student = torch.cat([logp.gather(1, ids), tail], -1)

    def to_logits(slope: Tensor) -> Tensor:
        share = torch.where(tail.isfinite(), (rest - tail).exp(), 0.0)  # of each token in the bucket
        own = (slope[:, -1:] * share).scatter(1, ids, slope[:, :-1])
        return own - logp.exp() * slope.sum(-1, keepdim=True)

    return View(student, torch.cat([teacher, teacher_tail[:, None]], -1), to_logits)


def tail_of(logp: Tensor) -> Tensor:
    """log(1 − Σ p) [n] of the k log-probs [n, k]; of no more than rounding it is that of the smallest step below 1."""
    inside = logp.logsumexp(-1).clamp(max=-torch.finfo(logp.dtype).eps)
    return torch.log(-torch.expm1(inside))
