"""The attention function that models use here: padded rows as sdpa does it, packed rows each on its own.

It is registered with transformers under the name "unified", so no model is rewritten. Packed rows arrive as one stream
[1, heads, tokens, width] with `segments`, the lengths of the rows in order; runs of equal length are computed together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "unified"
_packed: ContextVar[bool] = ContextVar("unified_packed", default=False)


@contextmanager
def packed_masks() -> Iterator[None]:
    """While a packed forward is set up, build no [tokens, tokens] mask: segments say all there is to say."""
    token = _packed.set(True)
    try:
        yield
    finally:
        _packed.reset(token)


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    return None if _packed.get() else sdpa_mask(*args, **kwargs)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    segments: Sequence[int] | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query [batch, heads, time, width]; key, value with their own number of heads; result [batch, time, heads, width].

    segments: lengths of the packed rows; None for padded rows with a mask. sliding_window: tokens a query may see,
    itself included; in padded rows the mask holds it. softcap: bound of the scores (Gemma 2).
    Raises NotImplementedError for terms of the scores that are not computed here (attention sinks, learned biases).
    """
    unknown = [name for name in ("s_aux", "position_bias") if kwargs.get(name) is not None]
    if unknown:
        raise NotImplementedError(f"{type(module).__name__} needs {unknown[0]}, which this attention does not compute")
    if segments is None:
        if softcap is None:
            return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
        causal = attention_mask is None and query.shape[2] > 1
        mask = _causal(query.shape[2], key.shape[2], None, query.device) if causal else attention_mask
        return _capped(query, key, value, mask, scaling, softcap, dropout).transpose(1, 2).contiguous(), None
    outputs, start = [], 0
    for length, run in groupby(segments):
        count = len(list(run))
        q, k, v = (_rows(x[:, :, start : start + count * length], count, length) for x in (query, key, value))
        out = _segment(q, k, v, scaling, dropout, sliding_window, softcap)
        outputs.append(out.transpose(1, 2).reshape(1, count * length, q.shape[1], -1))
        start += count * length
    return torch.cat(outputs, 1), None


def _rows(x: Tensor, count: int, length: int) -> Tensor:
    """[1, heads, count * length, width] -> [count, heads, length, width]."""
    return x.reshape(x.shape[1], count, length, x.shape[3]).transpose(0, 1)


def _segment(
    q: Tensor, k: Tensor, v: Tensor, scaling: float | None, dropout: float, window: int | None, softcap: float | None
) -> Tensor:
    length = q.shape[2]
    windowed = window is not None and window < length
    if softcap is not None:
        return _capped(q, k, v, _causal(length, length, window, q.device), scaling, softcap, dropout)
    mask = _causal(length, length, window, q.device) if windowed else None
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        is_causal=not windowed,
        scale=scaling,
        dropout_p=dropout,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def _causal(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """[queries, keys] bool, True where a query may look; the last query stands at the last key."""
    back = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)[None, :]
    seen = back >= 0
    return seen if window is None else seen & (back < window)


def _capped(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None, softcap: float, dropout: float
) -> Tensor:
    """Attention with softcap * tanh(score / softcap); [batch, heads, time, width]."""
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scores = (q @ k.transpose(2, 3)) * (scaling if scaling is not None else q.shape[-1] ** -0.5)
    scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        if mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask[..., : k.shape[2]], torch.finfo(scores.dtype).min)
        else:
            scores = scores + mask[..., : k.shape[2]]
    return F.dropout(torch.softmax(scores, -1).to(q.dtype), dropout) @ v


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, _mask)
