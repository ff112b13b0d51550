"""How answers lie in one forward: token streams, and an index that finds each answer token's hidden state.

Padded, packed and prefix-shared (a prompt once, its answers behind it) are layouts of the same rows. What a plugin
sees, [batch, time], does not depend on the choice.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from unified.data import Answer, PromptGroup
from unified.streams import Segment

Kind = Literal["padded", "packed", "padded-left", "prefix-shared"]
#: what a shared prompt costs in further calls of attention, in tokens that could be computed meanwhile: measured on one
#: thread of a CPU, 5M parameters, forward and backward, between 3.3 and 4 (less for larger models)
CALLS = 4
#: share of the tokens of a collected batch that sharing must save beyond that; 5 % and less were within the noise
WORTH = 0.05


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

    input_ids, position_ids: [streams, slots]. attention_mask: [streams, slots], None in a stream without padding.
    segments: what lies in the stream in order, None when padded: the length of a row, or the lengths of a prompt and of
    each of its answers, whose positions all go on from the prompt's.
    For each of the n answer tokens that carry a gradient: `row`, `time` (place in [batch, time]), `target` (its id),
    `before` (slot, in the flattened streams, of the hidden state that predicts it; answers that share their prompt
    share that of their first tokens) and `after` (its own slot).
    shape: (batch, time).
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor | None
    segments: tuple[Segment, ...] | None
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
    """Lay rows out as `kind`; `pad` is the id that fills empty slots (it is never looked at).

    Rows without any token have one slot all the same: no model takes an input of none.
    """
    if kind in ("packed", "prefix-shared"):
        return _stream(rows, pad, shared=kind == "prefix-shared")
    return _padded(rows, pad, left=kind == "padded-left")


def sharing_pays(rows: Sequence[Row]) -> bool:
    """Whether prompts that stand once instead of once per answer save enough of these rows' tokens."""
    whole = sum(r.tokens for r in rows)
    families = sum(len(f) > 1 for f in _families(rows, shared=True))
    return whole - _slots(rows, "prefix-shared") - CALLS * families > WORTH * whole


def _padded(rows: Sequence[Row], pad: int, *, left: bool) -> Layout:
    width = max(1, *(r.tokens for r in rows))
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


def _stream(rows: Sequence[Row], pad: int, *, shared: bool) -> Layout:
    """Rows one behind the other; those of equal length side by side, so that attention computes them together.

    shared: rows with the same prompt are a family, whose prompt stands once, with the shortest answer first.
    """
    families = [sorted(f, key=lambda i: len(rows[i].answer)) for f in _families(rows, shared=shared)]
    shapes = [_segment(rows, family) for family in families]
    order = sorted(range(len(families)), key=lambda f: (len(shapes[f]), shapes[f]))
    prompts, answers = [0] * len(rows), [0] * len(rows)
    ids: list[int] = []
    positions = []
    for family in (families[f] for f in order):
        prompt = rows[family[0]].prompt
        at = len(ids)
        ids += prompt
        positions.append(torch.arange(len(prompt)))
        for i in family:
            prompts[i], answers[i] = at, len(ids)
            ids += rows[i].answer
            positions.append(torch.arange(len(prompt), rows[i].tokens))
    segments = tuple(s[0] if len(s) == 1 else s for s in (shapes[f] for f in order) if sum(s))
    if not ids:
        ids, positions, segments = [pad], [torch.zeros(1, dtype=torch.long)], (1,)
    index = _index(rows, prompts, answers)
    return Layout(torch.tensor(ids, dtype=torch.long)[None], torch.cat(positions)[None], None, segments, *index)


def _family_of(row: Row, i: int) -> Hashable:
    """What rows that can share a prompt have in common; a row without a prompt stands alone."""
    return tuple(row.prompt) or i


def _families(rows: Sequence[Row], *, shared: bool) -> list[list[int]]:
    """Numbers of the rows that stand together in the stream."""
    if not shared:
        return [[i] for i in range(len(rows))]
    found: dict[Hashable, list[int]] = {}
    for i, row in enumerate(rows):
        found.setdefault(_family_of(row, i), []).append(i)
    return list(found.values())


def _segment(rows: Sequence[Row], family: Sequence[int]) -> tuple[int, ...]:
    """(tokens of the one row), or (tokens of the prompt, of each answer) where several answers have a token."""
    prompt, answers = len(rows[family[0]].prompt), [len(rows[i].answer) for i in family if rows[i].answer]
    return (prompt, *answers) if len(answers) > 1 else (prompt + sum(answers),)


def _index(
    rows: Sequence[Row], prompts: Sequence[int], answers: Sequence[int] | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, tuple[int, int]]:
    """From the first slots of prompts and answers; without the latter, answers follow their prompts."""
    ends = torch.tensor([at + len(r.prompt) for r, at in zip(rows, prompts, strict=True)])
    first = ends if answers is None else torch.tensor(answers)
    lengths = torch.tensor([len(r.answer) for r in rows])
    row = torch.repeat_interleave(torch.arange(len(rows)), lengths)
    time = torch.arange(int(lengths.sum())) - (lengths.cumsum(0) - lengths)[row]
    carries = torch.tensor([m for r in rows for m in r.mask], dtype=torch.bool)
    target = torch.tensor([t for r in rows for t in r.answer], dtype=torch.long)[carries]
    row, time = row[carries], time[carries]
    own = first[row] + time
    before = torch.where(time == 0, ends[row], own) - 1
    return row, time, target, before, own, (len(rows), max(1, int(lengths.max())))


def cut(rows: Sequence[Row], units: Sequence[Sequence[int]], budget: int, kind: Kind) -> list[list[list[int]]]:
    """Cut rows into micro-batches of at most `budget` token slots; the same rows are always cut the same way.

    Args:
        rows: the rows of an optimiser step.
        units: numbers of rows that must be seen together (single rows, or the rows of a prompt).
        budget: slots of one forward; a row larger than it goes alone.
        kind: padded rows cost the longest of them, those of a stream their own tokens, and a shared prompt counts once.
            Prefix-shared, units of one prompt stay together as far as they fit; what does not repeats the prompt.
    Returns:
        A list of passes. A pass of one micro-batch needs one forward; a pass of several holds one unit that is larger
        than the budget, whose coefficients are computed before any of it is pushed.
    """
    passes, fitting = [], []
    for unit in (list(u) for u in units if u):
        if len(unit) > 1 and _slots([rows[i] for i in unit], kind) > budget:
            passes.append(_micros(rows, [[i] for i in unit], budget, kind))
        else:
            fitting.append(unit)
    return passes + [[micro] for micro in _micros(rows, fitting, budget, kind)]


def _slots(rows: Sequence[Row], kind: Kind) -> int:
    """Token slots that the rows take in one forward."""
    if kind == "packed":
        return sum(r.tokens for r in rows)
    if kind == "prefix-shared":
        prompts = {_family_of(r, i): len(r.prompt) for i, r in enumerate(rows)}
        return sum(prompts.values()) + sum(len(r.answer) for r in rows)
    return len(rows) * max((r.tokens for r in rows), default=0)


def _micros(rows: Sequence[Row], units: Sequence[list[int]], budget: int, kind: Kind) -> list[list[int]]:
    """Micro-batches of whole units."""
    if kind in ("padded", "padded-left"):
        return _runs(rows, units, budget)
    if kind == "prefix-shared":
        units = _together(rows, units, budget)
    filled = _fill([_slots([rows[i] for i in u], kind) for u in units], budget)
    return [[i for u in bin_ for i in units[u]] for bin_ in filled]


def _runs(rows: Sequence[Row], units: Sequence[list[int]], budget: int) -> list[list[int]]:
    """Padded: neighbours in order of their longest rows, so that little is padding."""
    micros: list[list[int]] = []
    longest = 0
    for unit in sorted(units, key=lambda u: max(rows[i].tokens for i in u)):
        longest = max(longest, *(rows[i].tokens for i in unit))
        if micros and (len(micros[-1]) + len(unit)) * longest <= budget:
            micros[-1] += unit
        else:
            micros.append(list(unit))
    return micros


def _together(rows: Sequence[Row], units: Sequence[list[int]], budget: int) -> list[list[int]]:
    """Units of one prompt joined, as many as the budget holds beside the prompt."""
    by_prompt: dict[Hashable, list[list[int]]] = {}
    for unit in units:
        by_prompt.setdefault(_family_of(rows[unit[0]], unit[0]), []).append(unit)
    joined = []
    for same in by_prompt.values():
        prompt = len(rows[same[0][0]].prompt)
        costs = [_slots([rows[i] for i in u], "prefix-shared") - prompt for u in same]
        joined += [[i for u in bin_ for i in same[u]] for bin_ in _fill(costs, budget - prompt)]
    return joined


def _fill(costs: Sequence[int], room: int) -> list[list[int]]:
    """Bins of things that cost at most `room` together, each in the fullest bin that holds it, dearest first.

    A thing that costs more has a bin of its own. Within a bin things stand in their own order. Best-fit decreasing:
    at most 11/9 of the fewest bins, and 4 more (Johnson 1973, MIT project MAC TR-109).
    """
    bins: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room left, bin), sorted
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        at = bisect_left(free, (costs[i], -1))
        if at < len(free):
            left, bin_ = free.pop(at)
            bins[bin_].append(i)
        else:
            left, bin_ = room, len(bins)
            bins.append([i])
        insort(free, (left - costs[i], bin_))
    return [sorted(b) for b in bins]
