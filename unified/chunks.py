"""Logits of some tokens at a time: made by one product, read in pieces, and replaced by their gradients."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

#: numbers in one chunk of logits on a CPU, and on other devices: a product of fewer than some 300 tokens waits for the
#: head's weight there (989 TFLOP/s and 3.35 TB/s, NVIDIA H100 data sheet, 2023)
CHUNK_NUMBERS, CHUNK_ELSEWHERE = 16_777_216, 67_108_864
#: numbers of it that are read at a time on a CPU, 4 MiB in float32, and of a product that is added to a gradient
PIECE_NUMBERS = 1_048_576


def chunk_rows(hidden: Tensor, weight: Tensor | None, numbers: int | None = None) -> int:
    """Tokens of one chunk of at most so many logits; without a number, of what is kept for the device."""
    if numbers is None:
        numbers = CHUNK_NUMBERS if hidden.device.type == "cpu" else CHUNK_ELSEWHERE
    return max(1, numbers // (hidden.shape[1] if weight is None else weight.shape[0]))


def chunk_of_logits(hidden: Tensor, weight: Tensor | None, bias: Tensor | None, temperature: float) -> Tensor:
    """[chunk, vocab] logits over temperature, in float32 or float64; without a weight `hidden` holds the logits."""
    z = hidden if weight is None else hidden @ weight.T
    z = z.float() if z.dtype in (torch.bfloat16, torch.float16) else z
    if bias is not None:
        z = z + bias.to(z.dtype)
    return z if temperature == 1.0 else z / temperature


class Scratch:
    """Memory for the numbers of one piece, which the next one writes over: new memory costs as much as reading it."""

    def __init__(self) -> None:
        self.made: dict[str, Tensor] = {}

    def like(self, name: str, x: Tensor) -> Tensor:
        """A tensor of the shape of x [piece, vocab], in float32 or float64, that holds anything."""
        if name not in self.made or len(self.made[name]) < len(x):
            self.made[name] = torch.empty_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
        return self.made[name][: len(x)]


class Chunk:
    """Logits of some tokens in the type of the product, which are read, and replaced by their gradients, in pieces.

    A product of many tokens reads the weight once for all of them; what is made of each logit in float32 is small
    enough for a cache.
    """

    def __init__(self, at: slice, logits: Tensor, *, given: bool) -> None:
        """given: the logits are somebody else's, and are not to be changed."""
        self.at, self.logits, self.given = at, logits, given

    def pieces(self) -> Iterator[tuple[slice, slice]]:
        """(tokens among all, tokens of the chunk)."""
        rows, vocab = self.logits.shape
        step = max(1, PIECE_NUMBERS // vocab) if self.logits.device.type == "cpu" else rows
        for start in range(0, rows, step):
            own = slice(start, min(start + step, rows))
            yield slice(self.at.start + own.start, self.at.start + own.stop), own

    @property
    def is_its_own(self) -> bool:
        """Whether it is read in place, and its logits are spoiled then."""
        return not self.given and not self.stays

    @property
    def stays(self) -> bool:
        """Whether its logits are products that reading leaves as they are."""
        return not self.given and self.logits.dtype in (torch.bfloat16, torch.float16)

    def read(self, own: slice, bias: Tensor | None, temperature: float, scratch: Scratch) -> Tensor:
        """[piece, vocab] logits over temperature in float32 or float64, to be changed at will until the next piece."""
        z = self.logits[own]
        if not self.is_its_own:
            z = scratch.like("logits", z).copy_(z)
        if bias is not None:
            z += bias.to(z.dtype)
        return z if temperature == 1.0 else z.div_(temperature)


def chunks_of(h: Tensor, w: Tensor | None, rows: int, last: Chunk | None = None) -> Iterator[Chunk]:
    """Of all tokens, `last` first, which is there; without a weight `h` holds the logits, which stay as they are."""
    end = len(h)
    if last is not None:
        end = last.at.start
        yield last
        last = None
    for start in range(0, end, rows):
        at = slice(start, min(start + rows, end))
        yield Chunk(at, h[at] if w is None else h[at] @ w.T, given=w is None)


class Gradients:
    """Gradients of what the logits are made of, gathered chunk by chunk; None where nobody asks for one."""

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        needed: tuple[bool, ...],
        dtype: torch.dtype,
        wide: torch.dtype,
        cast: Tensor | None = None,
    ) -> None:
        """cast: the weight in the type of the product, where it is there."""
        self.likes = (hidden, weight, bias)
        self.h, self.w = hidden.to(dtype), weight.to(dtype) if cast is None and weight is not None else cast
        self.hidden = torch.empty_like(hidden) if needed[0] else None
        self.weight = None if weight is None or not needed[1] else torch.empty_like(weight, dtype=wide)
        self.bias = None if bias is None or not needed[2] else torch.zeros_like(bias, dtype=wide)
        self.fresh = True  # nothing stands in the weight's gradient
        if self.weight is not None and not len(hidden):
            self.weight.zero_()

    def put(self, chunk: Chunk, tokens: slice, own: slice, d: Tensor) -> None:
        """d: [piece, vocab], the gradient of a piece's logits, which takes their place."""
        if self.bias is not None:
            self.bias += d.sum(0)
        if not chunk.given:
            chunk.logits[own] = d
        elif self.hidden is not None:
            self.hidden[tokens] = d.to(self.hidden.dtype)

    def add(self, chunk: Chunk) -> None:
        """What follows from a chunk whose pieces have all been put."""
        if self.w is None:
            return
        if self.hidden is not None:
            self.hidden[chunk.at] = (chunk.logits @ self.w).to(self.hidden.dtype)
        if self.weight is not None:
            _add_product(self.weight, chunk.logits, self.h[chunk.at], first=self.fresh)
            self.fresh = False

    def all(self) -> tuple[Tensor | None, ...]:
        """Of hidden states, weight and bias, in the types of these."""
        made = (self.hidden, self.weight, self.bias)
        return tuple(
            None if g is None or like is None else g.to(like.dtype) for g, like in zip(made, self.likes, strict=True)
        )


def _add_product(total: Tensor, d: Tensor, h: Tensor, *, first: bool) -> None:
    """total [vocab, hidden] += d.T @ h, or = for the first, in parts: the product beside the total stays small."""
    words = chunk_rows(h, None, PIECE_NUMBERS if h.device.type == "cpu" else CHUNK_ELSEWHERE)
    for start in range(0, len(total), words):
        part = slice(start, start + words)
        if total.dtype == h.dtype:
            total[part].addmm_(d[:, part].T, h, beta=0 if first else 1)
        elif first:
            total[part] = d[:, part].T @ h
        else:
            total[part] += d[:, part].T @ h
