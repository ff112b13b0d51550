"""The normaliser w: how much one token weighs in the step. Independent of the coefficient (DESIGN 5.1).

| name           | w of a token                                        | used by                          |
| token          | 1 / all tokens of the step                          | imitation, token-level policies  |
| sequence       | 1 / answers, 1 / length of its answer               | group-relative policy gradient   |
| sequence-sum   | 1 / answers                                         | sequence policy gradient         |
| group          | 1 / prompts                                         | losses of pairs and rankings     |
| group-token    | 1 / prompts, 1 / tokens of the answers to its prompt |                                 |
| constant       | 1 / (answers x L)                                   | length-unbiased policy gradient  |

Counts are of the whole optimiser step: all micro-batches, all processes. An answer counts when it is no probe and has a
token in the loss mask; rows of one trajectory count as one answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unified.batch import Batch, Reach
from unified.parts import AGGREGATIONS

#: aggregations whose w is the same for all tokens of a prompt's answers, so that answers may be coupled
CONSTANT_IN_GROUP = frozenset({"token", "sequence-sum", "group", "group-token", "constant"})


@dataclass(frozen=True)
class Counts:
    """What one optimiser step holds for one term: tokens, answers and prompts that count."""

    tokens: float
    answers: float
    groups: float

    @staticmethod
    def of(batch: Batch, on: Tensor, reach: Reach) -> Counts:
        """Count the rows `on` [batch] bool of this process's part of the step, and sum over processes."""
        on = on & batch.counts
        numbers = torch.stack(
            [
                (batch.lengths * on).sum().double(),
                torch.tensor(float(torch.unique(batch.trajectory[on]).numel()), device=on.device, dtype=torch.float64),
                torch.tensor(float(torch.unique(batch.group[on]).numel()), device=on.device, dtype=torch.float64),
            ]
        )
        tokens, answers, groups = reach.sum(numbers).tolist()
        return Counts(tokens, answers, groups)


def normaliser(batch: Batch, on: Tensor, how: str, counts: Counts, *, length: int | None = None) -> Tensor:
    """w of every answer's tokens.

    Args:
        batch: rows of the step; whole groups and whole trajectories for `group-token` and `sequence`.
        on: [batch] bool, rows that the term acts on.
        how: one of AGGREGATIONS.
        counts: of the whole step.
        length: L in tokens, for `constant`.
    Returns:
        [batch] float64, 0 on rows that do not count.
    Raises:
        ValueError: unknown `how`, or `constant` without a length.
    """
    on = on & batch.counts
    lengths = batch.lengths.double()
    if how == "token":
        w = torch.full_like(lengths, 1 / max(counts.tokens, 1))
    elif how == "sequence":
        w = 1 / (max(counts.answers, 1) * _sum_by(batch.trajectory, lengths * on).clamp(min=1))
    elif how == "sequence-sum":
        w = torch.full_like(lengths, 1 / max(counts.answers, 1))
    elif how == "group":
        w = torch.full_like(lengths, 1 / max(counts.groups, 1))
    elif how == "group-token":
        w = 1 / (max(counts.groups, 1) * _sum_by(batch.group, lengths * on).clamp(min=1))
    elif how == "constant":
        if not length:
            raise ValueError("aggregation 'constant' needs a length: set `constant_length`")
        w = torch.full_like(lengths, 1 / (max(counts.answers, 1) * length))
    else:
        raise ValueError(f"no aggregation '{how}'; known: {', '.join(AGGREGATIONS)}")
    return torch.where(on, w, torch.zeros_like(w))


def _sum_by(key: Tensor, x: Tensor) -> Tensor:
    """[batch]: the sum of x over the rows that share a row's key."""
    _, place = torch.unique(key, return_inverse=True)
    sums = torch.zeros(int(place.max()) + 1 if place.numel() else 0, dtype=x.dtype, device=x.device)
    return sums.index_add(0, place, x)[place]
