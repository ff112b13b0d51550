"""Keys and values in rows of places: of answers that are decoded together, and of the prompts that they share.

Those of one owner lie one behind the other, [owners, heads, places, width], so that both products of the attention are
`bmm` over contiguous matrices, one per owner and head of the keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: places are added by at least so many and by this part of what is there; lengths of products are multiples of ROUND
ROUND, PART = 16, 16
#: owners of similar length are multiplied together: so many at a time, and those beside them that differ by less places
TOGETHER, SIMILAR = 8, 32


class KeyValue(NamedTuple):
    """Of one layer."""

    key: Tensor
    value: Tensor


class Run(NamedTuple):
    """Owners one behind the other of which so many first places are multiplied."""

    owners: slice
    seen: int


class Places:
    """Keys and values of `capacity` owners at most, the first `live` of which count.

    most: places that an owner can ever need. What all owners need is grown to step by step and no further: products
    over all of the memory need no copy of a part of it.
    """

    def __init__(self, capacity: int, most: int) -> None:
        self.capacity, self.most = capacity, most
        self.live = self.places = 0
        self.runs: list[Run] = []
        self.layers: dict[int, KeyValue] = {}  # [owners, heads, places, width]

    def enter(self, own: dict[int, KeyValue], count: int, length: int) -> None:
        """Behind the owners that count, so many more that begin with the first `length` of own [heads, tokens, width].

        With length 0 they begin with nothing, and `own` tells heads, widths and types.
        """
        self._reserve(self.live + count, max(length, 1), own)
        at = slice(self.live, self.live + count)
        for number, (key, value) in own.items() if length else ():
            layer = self.layers[number]
            layer.key[at, :, :length] = key
            layer.value[at, :, :length] = value
        self.live += count

    def keep(self, holes: Sequence[int], movers: Sequence[int], live: int) -> None:
        """Only `live` owners count from now on; owners `movers` take the places of owners `holes`."""
        if holes:
            device = next(iter(self.layers.values())).key.device
            to, what = (torch.tensor(x, device=device) for x in (holes, movers))
            for key, value in self.layers.values():
                key[to], value[to] = key[what], value[what]
        self.live = live

    def begin(self, lengths: Sequence[int]) -> None:
        """Make ready for products over so many places of each owner."""
        self._reserve(self.live, max(lengths), {})
        self.runs = []
        for start in range(0, len(lengths), TOGETHER):
            owners = slice(start, min(start + TOGETHER, len(lengths)))
            seen = min(-(-max(lengths[owners]) // ROUND) * ROUND, self.places)
            if self.runs and abs(self.runs[-1].seen - seen) < SIMILAR:
                before = self.runs.pop()
                owners, seen = slice(before.owners.start, owners.stop), max(before.seen, seen)
            self.runs.append(Run(owners, seen))
        if len(self.runs) == 1:  # all of it: a part would be copied
            self.runs = [Run(self.runs[0].owners, self.places)]

    def write(self, number: int, at: int | Tensor, key: Tensor, value: Tensor) -> None:
        """Key and value [live, heads, 1, width] of one more token.

        at: its place, where it is that of all owners; else [live * heads] places of the flat memory.
        """
        for whole, new in zip(self.layers[number], (key, value), strict=True):
            width = whole.shape[-1]
            if isinstance(at, int):
                whole[: self.live, :, at] = new[:, :, 0]
            else:
                whole.view(-1, width).index_copy_(0, at, new.reshape(-1, width).to(whole.dtype))

    def scores(self, number: int, asked: Tensor) -> Tensor:
        """asked [live * heads, n, width] times keys: [live * heads, n, places], 0 where a run sees no place."""
        keys = self.layers[number].key
        heads, width = keys.shape[1], keys.shape[-1]
        if len(self.runs) == 1:
            return torch.bmm(asked, keys[: self.live].view(-1, self.places, width).transpose(1, 2))
        out = asked.new_zeros(*asked.shape[:2], self.places)
        for owners, seen in self.runs:
            at = slice(owners.start * heads, owners.stop * heads)
            out[at, :, :seen] = torch.bmm(asked[at], keys[owners, :, :seen].flatten(0, 1).transpose(1, 2))
        return out

    def mixed(self, number: int, weights: Tensor) -> Tensor:
        """weights [live * heads, n, places] times values: [live * heads, n, width]."""
        values = self.layers[number].value
        heads, width = values.shape[1], values.shape[-1]
        if len(self.runs) == 1:
            return torch.bmm(weights, values[: self.live].view(-1, self.places, width))
        out = []
        for owners, seen in self.runs:
            at = slice(owners.start * heads, owners.stop * heads)
            out.append(torch.bmm(weights[at, :, :seen], values[owners, :, :seen].flatten(0, 1)))
        return torch.cat(out)

    def _reserve(self, owners: int, places: int, like: dict[int, KeyValue]) -> None:
        """Room for so many owners of so many tokens; `like` tells heads, widths and types where there is no layer."""
        before = self.layers
        held = len(next(iter(before.values())).key) if before else 0
        if owners <= held and places <= self.places:
            return
        if owners > held:
            held = min(self.capacity, max(owners, 2 * held))
        old = self.places
        if places > old:
            step = max(ROUND, places // PART // ROUND * ROUND)
            self.places = min(-(-places // step) * step, max(self.most, places))
        self.layers = {}
        for number, pair in (before or like).items():
            both = []
            for x in pair:  # zeros: what does not count is multiplied, too
                new = x.new_zeros(held, x.shape[-3], self.places, x.shape[-1])
                if before:
                    new[: self.live, :, :old] = x[: self.live]
                both.append(new)
            self.layers[number] = KeyValue(*both)
