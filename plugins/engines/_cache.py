"""Keys and values of rows that are decoded together, and the attention of one token over them.

Two functions are registered with transformers' AttentionInterface. `PROMPTS` computes a packed stream of prompts as
`unified` does and takes their keys and values down; `TOKENS` adds the key and value of one new token to each row and
lets it look at the row. The cache reaches them as the keyword `rows_cache` of the model's forward; no model is
rewritten, and none of transformers' own caches takes part.

A row's keys lie one behind the other, [rows, heads, places, width], so that both products of the attention are `bmm`
over contiguous matrices, one per row and head of the keys: no key is copied for the heads of the query that share it.
Rows are of different length, and the mask says which places count.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from unified import packed_masks as packed_masks  # importing it registers `unified`
from unified import plain_float32

PROMPTS, TOKENS = "unified_rollout_prompts", "unified_rollout_tokens"
#: places that are added at a time; lengths of the products are rounded up to ROUND, so that fewer shapes occur
STEP, ROUND = 64, 16
#: rows of similar length are multiplied together: so many at a time, and those beside them that differ by less places
TOGETHER, SIMILAR = 8, 32


class KeyValue(NamedTuple):
    """Of one layer."""

    key: Tensor
    value: Tensor


class Run(NamedTuple):
    """Rows one behind the other that look at so many of their first places."""

    rows: slice
    seen: int


class RowsCache:
    """Keys and values of `capacity` rows at most, the first `live` of which count.

    most: places that a row can ever need; the cache grows to them in steps.
    """

    def __init__(self, capacity: int, most: int) -> None:
        self.capacity, self.most = capacity, most
        self.live = self.places = 0
        self.runs: list[Run] = []
        self.layers: dict[int, KeyValue] = {}  # [capacity, heads, places, width]
        self.taken: dict[int, KeyValue] = {}  # of the prompts that are computed now, [heads, tokens, width]
        self._at: dict[int, Tensor] = {}  # heads of the keys -> where the new token goes, [live * heads]
        self._masks: dict[int | None, list[Tensor]] = {}  # window -> of each run what is added to the scores
        self._position = torch.empty(0)
        self._used = 0  # places that any row has filled

    def admit(self, prompt: dict[int, KeyValue], count: int) -> None:
        """Behind the rows that count, so many more that begin with the prompt."""
        length = next(iter(prompt.values())).key.shape[1]
        self.reserve(length + 1, prompt)
        at = slice(self.live, self.live + count)
        for number, (key, value) in prompt.items():
            layer = self.layers[number]
            layer.key[at, :, :length] = key
            layer.value[at, :, :length] = value
        self.live += count
        self._used = max(self._used, length)

    def keep(self, holes: list[int], movers: list[int], live: int) -> None:
        """Only `live` rows count from now on; rows `movers` take the places of rows `holes`."""
        if holes:
            device = next(iter(self.layers.values())).key.device
            to, what = (torch.tensor(x, device=device) for x in (holes, movers))
            for key, value in self.layers.values():
                for x in (key, value):
                    x[to, :, : self._used] = x[what, :, : self._used]
        self.live = live

    def reserve(self, places: int, like: dict[int, KeyValue] | None = None) -> None:
        """Room for so many tokens in each row; `like` tells heads, widths and types where there is no layer yet."""
        if places <= self.places:
            return
        old, before = self.places, self.layers or like or {}
        self.places = max(places, min(self.most, max(places, old + old // 2) + STEP))
        made = {}
        for number, pair in before.items():
            both = []
            for x in pair:
                heads, width = x.shape[-3], x.shape[-1]
                new = x.new_zeros(self.capacity, heads, self.places, width)  # zeros: what does not count is multiplied
                if self.layers:
                    new[: self.live, :, :old] = x[: self.live]
                both.append(new)
            made[number] = KeyValue(*both)
        self.layers = made

    def begin(self, places: list[int], position: Tensor) -> None:
        """Make ready for one more token of each row; places, and position [live], say where in its row it stands.

        The masks are made when a layer asks for them: one for each window.
        """
        self._used = max(self._used, max(places) + 1)
        self.reserve(self._used)
        self.runs = []
        for start in range(0, len(places), TOGETHER):
            rows = slice(start, min(start + TOGETHER, len(places)))
            seen = min(-(-(max(places[rows]) + 1) // ROUND) * ROUND, self.places)
            if self.runs and abs(self.runs[-1].seen - seen) < SIMILAR:
                before = self.runs.pop()
                rows, seen = slice(before.rows.start, rows.stop), max(before.seen, seen)
            self.runs.append(Run(rows, seen))
        self._position, self._at, self._masks = position, {}, {}

    def append(self, number: int, key: Tensor, value: Tensor) -> KeyValue:
        """Write the key and value of the new token, [live, heads, 1, width].

        Returns all keys and values of the layer, [live * heads, places, width], as views.
        """
        out = []
        heads = key.shape[1]
        if heads not in self._at:
            first = torch.arange(self.live * heads, device=key.device) * self.places
            self._at[heads] = first + self._position.repeat_interleave(heads)
        for whole, new in zip(self.layers[number], (key, value), strict=True):
            width = whole.shape[-1]
            whole.view(-1, width).index_copy_(0, self._at[heads], new.reshape(-1, width).to(whole.dtype))
            out.append(whole[: self.live].view(self.live * heads, self.places, width))
        return KeyValue(*out)

    def masks(self, window: int | None, dtype: torch.dtype) -> list[Tensor]:
        """Of each run [rows, 1, seen, 1]: 0 at places that the new token sees, −inf elsewhere. window: with itself."""
        if window not in self._masks:
            self._masks[window] = []
            for rows, seen in self.runs:
                place = torch.arange(seen, device=self._position.device)[None, :]
                hidden = place > self._position[rows, None]
                if window is not None:
                    hidden |= place <= self._position[rows, None] - window
                mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -math.inf)
                self._masks[window].append(mask[:, None, :, None])
        return self._masks[window]


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
    rows, heads, _, width = query.shape
    groups = key.shape[1]
    keys, values = rows_cache.append(int(layer.layer_idx), key, value)
    scale = width**-0.5 if scaling is None else scaling
    asked = (query * scale).reshape(rows * groups, heads // groups, width).transpose(1, 2).to(keys.dtype)
    out = []
    for run, hidden in zip(rows_cache.runs, rows_cache.masks(sliding_window, keys.dtype), strict=True):
        at = slice(run.rows.start * groups, run.rows.stop * groups)
        scores = torch.bmm(keys[at, : run.seen], asked[at])  # [rows * groups, seen, heads per group]
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores.view(-1, groups, run.seen, heads // groups).add_(hidden)
        weights = torch.softmax(scores, 1).to(values.dtype)
        out.append(torch.bmm(weights.transpose(1, 2), values[at, : run.seen]))
    together = out[0] if len(out) == 1 else torch.cat(out)  # [rows * groups, heads per group, width]
    return together.view(rows, 1, heads, -1), None


AttentionInterface.register(PROMPTS, _prompts)
AttentionInterface.register(TOKENS, _tokens)
