"""What lies in a stream of tokens, piece by piece: rows, or prompts with the answers that see them."""

from __future__ import annotations

from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

from torch import Tensor

#: the length of a row, or of a prompt and of each of its answers
Segment = int | tuple[int, ...]


class Piece(NamedTuple):
    """Slots of a number of rows, prompts or answers of one length, and of the prompt that they see besides."""

    at: slice
    number: int
    length: int
    prompt: slice | None


class Plan(NamedTuple):
    """All pieces of a stream in order, (prompt, answers) of every family, and tokens of the longest row."""

    pieces: tuple[Piece, ...]
    families: tuple[tuple[slice, slice], ...]
    longest: int


@lru_cache(maxsize=64)
def plan_of(segments: tuple[Segment, ...]) -> Plan:
    """Where everything lies; asked once per layer for the same stream."""
    pieces: list[Piece] = []
    families, at, longest = [], 0, 0

    def add(length: int, count: int, prompt: slice | None) -> None:
        nonlocal at
        pieces.append(Piece(slice(at, at + count * length), count, length, prompt))
        at += count * length

    for segment, run in groupby(segments):
        count = len(list(run))
        if isinstance(segment, int):
            longest = max(longest, segment)
            add(segment, count, None)
            continue
        longest = max(longest, segment[0] + max(segment[1:]))
        for _ in range(count):
            prompt = slice(at, at + segment[0])
            add(segment[0], 1, None)
            for length, same in groupby(segment[1:]):
                add(length, len(list(same)), prompt)
            families.append((prompt, slice(prompt.stop, at)))
    return Plan(tuple(pieces), tuple(families), longest)


def rows_of(x: Tensor, count: int, length: int) -> Tensor:
    """[1, heads, count * length, width] -> a view [count, heads, length, width]."""
    return x[0].unflatten(1, (count, length)).transpose(0, 1)


def part_of(x: Tensor, piece: Piece) -> Tensor:
    """A view [count, heads, length, width] of a piece of [1, heads, tokens, width]."""
    return rows_of(x[:, :, piece.at], piece.number, piece.length)
