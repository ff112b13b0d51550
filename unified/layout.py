"""How answers lie in one forward: token streams, and an index that finds each answer token's hidden state.

Padded and packed are two layouts of the same rows; a prefix-shared one (the prompt once, its answers behind it) has its
place here. What a plugin sees, [batch, time], does not depend on the choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from unified.data import Answer, PromptGroup

Kind = Literal["padded", "packed", "padded-left"]


@dataclass(frozen=True)
class Row:
    """One answer with its prompt, as token ids; `mask` is True on answer tokens that carry a gradient."""

    prompt: list[int]
    answer: list[int]
    mask: list[bool]

    @staticmethod
    def of(group: PromptGroup, answer: Answer) -> Row:
        """With an empty prompt the first token is context: nothing before it could predict it."""
        mask = list(answer.loss_mask) if answer.loss_mask is not None else [True] * len(answer.ids)
        if not group.prompt and mask:
            mask[0] = False
        return Row(group.prompt, answer.ids, mask)

    @property
    def tokens(self) -> int:
        """Slots that the row takes in a forward."""
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True)
class Layout:
    """Rows as one forward sees them.

    input_ids, position_ids: [streams, slots]. attention_mask: [streams, slots], None when packed.
    segments: lengths of the packed rows in the stream, None when padded.
    For each of the n answer tokens that carry a gradient: `row`, `time` (place in [batch, time]), `target` (its id),
    `before` (slot, in the flattened streams, of the hidden state that predicts it) and `after` (its own slot).
    shape: (batch, time).
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor | None
    segments: tuple[int, ...] | None
    row: Tensor
    time: Tensor
    target: Tensor
    before: Tensor
    after: Tensor
    shape: tuple[int, int]

    def to(self, device: torch.device | str) -> Layout:
        """The same on another device."""
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {k: v.to(device) for k, v in held.items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    def scatter(self, x: Tensor) -> Tensor:
        """[n] (or [n, k]) of the answer tokens -> [batch, time] (or [.., k]), 0 elsewhere; differentiable."""
        out = torch.zeros((*self.shape, *x.shape[1:]), dtype=x.dtype, device=x.device)
        return out.index_put((self.row, self.time), x)


def lay_out(rows: Sequence[Row], kind: Kind, *, pad: int = 0) -> Layout:
    """Lay rows out as `kind`; `pad` is the id that fills empty slots (it is never looked at)."""
    return _packed(rows) if kind == "packed" else _padded(rows, pad, left=kind == "padded-left")


def _padded(rows: Sequence[Row], pad: int, *, left: bool) -> Layout:
    width = max(r.tokens for r in rows)
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    positions = torch.zeros((len(rows), width), dtype=torch.long)
    starts = []
    for i, r in enumerate(rows):
        start = width - r.tokens if left else 0
        ids[i, start : start + r.tokens] = torch.tensor(r.prompt + r.answer)
        mask[i, start : start + r.tokens] = 1
        positions[i, start : start + r.tokens] = torch.arange(r.tokens)
        starts.append(i * width + start)
    return Layout(ids, positions, mask, None, *_index(rows, starts))


def _packed(rows: Sequence[Row]) -> Layout:
    """Rows of equal length lie side by side, so that attention computes them together."""
    order = sorted(range(len(rows)), key=lambda i: rows[i].tokens)
    starts, at = [0] * len(rows), 0
    for i in order:
        starts[i] = at
        at += rows[i].tokens
    ids = torch.tensor([t for i in order for t in rows[i].prompt + rows[i].answer])[None]
    positions = torch.cat([torch.arange(rows[i].tokens) for i in order])[None]
    segments = tuple(rows[i].tokens for i in order if rows[i].tokens)
    return Layout(ids, positions, None, segments, *_index(rows, starts))


def _index(
    rows: Sequence[Row], starts: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, tuple[int, int]]:
    lengths = torch.tensor([len(r.answer) for r in rows])
    row = torch.repeat_interleave(torch.arange(len(rows)), lengths)
    time = torch.arange(int(lengths.sum())) - (lengths.cumsum(0) - lengths)[row]
    first = torch.tensor([start + len(r.prompt) for r, start in zip(rows, starts, strict=True)])
    carries = torch.tensor([m for r in rows for m in r.mask], dtype=torch.bool)
    target = torch.tensor([t for r in rows for t in r.answer], dtype=torch.long)[carries]
    row, time = row[carries], time[carries]
    own = first[row] + time
    return row, time, target, own - 1, own, (len(rows), max(1, int(lengths.max())))


def cut(costs: Sequence[int], units: Sequence[Sequence[int]], budget: int, kind: Kind) -> list[list[list[int]]]:
    """Cut rows into micro-batches of at most `budget` token slots.

    Args:
        costs: tokens of each row.
        units: rows that must be seen together (single rows, or the rows of a prompt).
        budget: slots of one forward; a single row larger than it goes alone.
        kind: padded rows cost the longest of them, packed rows their own length.
    Returns:
        A list of passes. A pass of one micro-batch needs one forward; a pass of several holds one unit that is larger
        than the budget, whose coefficients are computed before any of it is pushed.
    """

    def slots(count: int, total: int, longest: int) -> int:
        return total if kind == "packed" else count * longest

    passes: list[list[list[int]]] = []
    held: list[int] = []
    total = longest = 0
    for unit in sorted(units, key=lambda u: max((costs[i] for i in u), default=0)):
        if not unit:
            continue
        own, top = sum(costs[i] for i in unit), max(costs[i] for i in unit)
        if slots(len(unit), own, top) > budget and len(unit) > 1:
            passes.append([part for (part,) in cut(costs, [[i] for i in unit], budget, kind)])
            continue
        if held and slots(len(held) + len(unit), total + own, max(longest, top)) > budget:
            passes.append([held])
            held, total, longest = [], 0, 0
        held, total, longest = held + list(unit), total + own, max(longest, top)
    if held:
        passes.append([held])
    return passes
