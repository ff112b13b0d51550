"""What rows that are decoded together have computed, and the attention of one new token of each over it.

Two functions are registered with transformers' AttentionInterface. `PROMPTS` computes a packed stream of prompts as
`unified` does and takes their keys and values down; `TOKENS` adds the key and value of one new token to each row and
lets it look at the row. The cache reaches them as the keyword `rows_cache` of the model's forward; no model is
rewritten, and none of transformers' own caches takes part.

A prompt of several answers is held once and multiplied once with the queries of all of them. Measured on one thread in
bfloat16 (5M weights, 8 answers of 64 tokens to each of 4 prompts of 256): 0.9 s, and 1.4 with the prompt in every row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from unified import packed_masks as packed_masks  # importing it registers `unified`
from unified import plain_float32
from unified_plugins.engines._places import KeyValue, Places

PROMPTS, TOKENS = "unified_rollout_prompts", "unified_rollout_tokens"


class RowsCache:
    """Keys and values of `capacity` rows at most.

    prompt, answer: most tokens of either. shared: prompts are held once for all of their rows, and not in each row.
    """

    def __init__(self, capacity: int, prompt: int, answer: int, *, shared: bool) -> None:
        self.capacity, self.shared = capacity, shared
        self.rows = Places(capacity, answer if shared else prompt + answer)
        self.prompts = Places(capacity, prompt)  # no more than rows, for each has one at least
        self.taken: dict[int, KeyValue] = {}  # of the prompts that are computed now, [heads, tokens, width]
        self.owner: list[int] = []  # of each row the number of its prompt
        self.lengths: list[int] = []  # tokens of each prompt that is held
        self._moved = True  # since the table was made
        self._position = self._first = torch.empty(0)
        self._own: Sequence[int] = ()  # of each row the place of the new token among its own
        self._at: dict[int, int | Tensor] = {}  # heads of the keys -> where the new token goes, see `Places.write`
        self._masks: dict[int | None, Tensor] = {}  # window -> what is added to the scores

    def admit(self, prompt: dict[int, KeyValue], count: int) -> None:
        """Behind the rows that count, so many more that begin with the prompt."""
        length = next(iter(prompt.values())).key.shape[1]
        if self.shared:
            self.owner += [self.prompts.live] * count
            self.lengths.append(length)
            self.prompts.enter(prompt, 1, length)
        self.rows.enter(prompt, count, 0 if self.shared else length)
        self._moved = True

    def keep(self, holes: Sequence[int], movers: Sequence[int], live: int) -> None:
        """Only `live` rows count from now on; rows `movers` take the places of rows `holes`. Idle prompts leave."""
        self.rows.keep(holes, movers, live)
        self._moved = True
        if not self.shared:
            return
        for hole, mover in zip(holes, movers, strict=True):
            self.owner[hole] = self.owner[mover]
        del self.owner[live:]
        asked = set(self.owner)
        left = len(asked)
        free = [slot for slot in range(left) if slot not in asked]
        last = [slot for slot in range(left, self.prompts.live) if slot in asked]
        self.prompts.keep(free, last, left)
        place = dict(zip(last, free, strict=True))
        for old, new in place.items():
            self.lengths[new] = self.lengths[old]
        self.lengths = self.lengths[:left]
        self.owner = [place.get(slot, slot) for slot in self.owner]

    def begin(self, places: Sequence[int], position: Tensor) -> None:
        """Make ready for one more token of each row; places, and position [live], say where in its row it stands."""
        if self._moved:
            self._arrange(position.device)
        own = [at - self.lengths[slot] for at, slot in zip(places, self.owner, strict=True)] if self.shared else places
        self.rows.begin([at + 1 for at in own])
        if self.shared:
            self.prompts.begin(self.lengths)
        self._position, self._own, self._at, self._masks = position, own, {}, {}

    def _arrange(self, device: torch.device) -> None:
        """Which rows ask which prompt, and where a row finds what came of it."""
        self._moved = False
        self._first = torch.zeros(self.rows.live, dtype=torch.long, device=device)  # place of a row's first own token
        if not self.shared:
            return
        asking: list[list[int]] = [[] for _ in self.lengths]
        rank = []
        for row, slot in enumerate(self.owner):
            rank.append(len(asking[slot]))
            asking[slot].append(row)
        most = max(map(len, asking))
        filled = [own + [own[0]] * (most - len(own)) for own in asking]  # what fills up is not read
        rows = [row for own in filled for row in own]
        self._in_order = rows == list(range(self.rows.live))  # equally many of each prompt, one after the other
        self._table = torch.tensor(filled, device=device)  # [prompts, most] rows
        self._slot, self._rank = torch.tensor(self.owner, device=device), torch.tensor(rank, device=device)
        self._first = torch.tensor(self.lengths, device=device)[self._slot]

    def write(self, number: int, key: Tensor, value: Tensor) -> None:
        """Key and value of the new token of each row, [live, heads, 1, width]."""
        heads = key.shape[1]
        if heads not in self._at:
            own = torch.tensor(self._own, device=key.device).repeat_interleave(heads)
            flat = torch.arange(len(own), device=key.device) * self.rows.places + own
            self._at[heads] = self._own[0] if len(set(self._own)) == 1 else flat
        self.rows.write(number, self._at[heads], key, value)

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """[live, 1, 1, places] of `scores`: 0 where the new token looks, −inf elsewhere. window: with itself."""
        if window not in self._masks:
            device = self._position.device
            place = self._first[:, None] + torch.arange(self.rows.places, device=device)
            if self.shared:
                before = torch.arange(self.prompts.places, device=device)[None, :]
                beyond = torch.iinfo(torch.long).max  # of a prompt that is shorter: a place that nobody sees
                place = torch.cat([torch.where(before < self._first[:, None], before, beyond), place], 1)
            hidden = place > self._position[:, None]
            if window is not None:
                hidden |= place <= self._position[:, None] - window
            mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -math.inf)
            self._masks[window] = mask[:, None, None]
        return self._masks[window]

    def scores(self, number: int, asked: Tensor) -> Tensor:
        """asked [live, heads, n, width]: the n queries of each row and head of the keys; [live, heads, n, places].

        Places of the row's prompt come first where prompts are shared, its own behind them.
        """
        rows, heads, n, _ = asked.shape
        own = self.rows.scores(number, asked.flatten(0, 1)).view(rows, heads, n, -1)
        if not self.shared:
            return own
        return torch.cat([self._of_rows(self.prompts.scores(number, self._of_prompts(asked)), heads), own], 3)

    def mixed(self, number: int, weights: Tensor) -> Tensor:
        """weights [live, heads, n, places], as `scores` orders the places: [live, heads, n, width]."""
        rows, heads, n, _ = weights.shape
        split = self.prompts.places if self.shared else 0
        own = self.rows.mixed(number, weights[..., split:].flatten(0, 1)).view(rows, heads, n, -1)
        if not self.shared:
            return own
        return own + self._of_rows(self.prompts.mixed(number, self._of_prompts(weights[..., :split])), heads)

    def _of_prompts(self, x: Tensor) -> Tensor:
        """[live, heads, n, m] -> [prompts * heads, rows of a prompt * n, m]."""
        slots, most = self._table.shape
        by_prompt = x.unflatten(0, (slots, most)) if self._in_order else x[self._table]
        return by_prompt.transpose(1, 2).reshape(slots * x.shape[1], most * x.shape[2], -1)

    def _of_rows(self, x: Tensor, heads: int) -> Tensor:
        """The way back."""
        slots, most = self._table.shape
        by_prompt = x.view(slots, heads, most, -1, x.shape[-1]).transpose(1, 2)
        return by_prompt.flatten(0, 1) if self._in_order else by_prompt[self._slot, self._rank]


def _prompts(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *,
    rows_cache: RowsCache, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention of a stream of prompts, [1, heads, tokens, width], whose keys and values are kept."""
    layer: Any = module
    dtype = torch.get_autocast_dtype(key.device.type) if torch.is_autocast_enabled(key.device.type) else key.dtype
    rows_cache.taken[int(layer.layer_idx)] = KeyValue(key[0].to(dtype), value[0].to(dtype))
    return ALL_ATTENTION_FUNCTIONS["unified"](module, query, key, value, mask, **kwargs)


@plain_float32()  # many small products
def _tokens(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None = None, *,
    rows_cache: RowsCache, sliding_window: int | None = None, softcap: float | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention of one new token of each row: [live, heads, 1, width] to [live, 1, heads, width].

    Terms of the scores that are not known here have been refused when the prompts were computed.
    """
    layer: Any = module
    number = int(layer.layer_idx)
    rows, heads, _, width = query.shape
    groups = key.shape[1]
    rows_cache.write(number, key, value)
    held = rows_cache.rows.layers[number]
    scale = width**-0.5 if scaling is None else scaling
    asked = (query * scale).reshape(rows, groups, heads // groups, width).to(held.key.dtype)
    scores = rows_cache.scores(number, asked)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights = torch.softmax(scores.add_(rows_cache.mask(sliding_window, scores.dtype)), -1).to(held.value.dtype)
    return rows_cache.mixed(number, weights).reshape(rows, 1, heads, -1), None


AttentionInterface.register(PROMPTS, _prompts)
AttentionInterface.register(TOKENS, _tokens)
