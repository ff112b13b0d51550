"""The attention function that models use here: padded rows as sdpa does it, rows of a stream each on its own.

It is registered with transformers under the name "unified", so no model is rewritten. A stream [1, heads, tokens,
width] arrives with `segments`, what lies in it in order: the length of a row, or (prompt, answer, answer, ...), the
lengths of a prompt and of the answers behind it, which see the prompt and themselves. Runs of equal length are computed
together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from unified.flash import flash_of, has_flash
from unified.streams import Plan, Segment, plan_of, rows_of
from unified.varlen import trusted_kernel, varlen_of

NAME = "unified"
#: kinds of layers, as configurations name them, whose attention is told apart by `sliding_window` alone
KNOWN_LAYERS = ("full_attention", "sliding_attention")
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
    segments: Sequence[Segment] | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query [batch, heads, time, width]; key, value with their own number of heads; result [batch, time, heads, width].

    segments: what lies in the stream; None for padded rows with a mask. sliding_window: tokens a query may see, itself
    included, counted by position in its row; in padded rows the mask holds it. softcap: bound of the scores (Gemma 2).
    Raises NotImplementedError for terms of the scores that are not computed here (attention sinks, learned biases), for
    layers of a stream that look at other tokens than these, and for dropout behind a shared prompt.
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
    _check_layer(module, sliding_window)
    plan = plan_of(tuple(segments))
    if plan.families and dropout:
        raise NotImplementedError("dropout would drop a shared prompt for all of its answers at once")
    windowed = sliding_window is not None and sliding_window < plan.longest
    if windowed or dropout or softcap is not None:
        return _by_pieces(query, key, value, plan, scaling, dropout, sliding_window, softcap).transpose(1, 2), None
    if has_flash(query, key, value):
        return flash_of(query, key, value, plan, scaling).transpose(1, 2), None
    kernel = trusted_kernel(query, key, value, _by_pieces)
    if kernel is not None:
        return varlen_of(query, key, value, tuple(segments), scaling, kernel).transpose(1, 2), None
    return _by_pieces(query, key, value, plan, scaling).transpose(1, 2), None


def _by_pieces(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: Plan,
    scaling: float | None,
    dropout: float = 0.0,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """[1, heads, tokens, width] by torch's own attention, piece by piece; a prompt's keys are copied to each answer."""
    outputs = []
    for piece in plan.pieces:
        q, k, v = (rows_of(x[:, :, piece.at], piece.number, piece.length) for x in (query, key, value))
        if piece.prompt is not None:
            before = (x[:, :, piece.prompt].expand(piece.number, -1, -1, -1) for x in (key, value))
            k, v = (torch.cat(both, 2) for both in zip(before, (k, v), strict=True))
        out = _segment(q, k, v, scaling, dropout, window, softcap)
        outputs.append(out.transpose(0, 1).reshape(1, q.shape[1], piece.number * piece.length, -1))
    return torch.cat(outputs, 2)


def _check_layer(module: nn.Module, window: int | None) -> None:
    """A layer whose mask says more than causality and a window that is passed on cannot be computed without its mask.

    A stream has no mask: a chunked layer, or a sliding one that does not tell its window, would see too much.
    """
    config = getattr(module, "config", None)
    kinds, place = getattr(config, "layer_types", None), getattr(module, "layer_idx", None)
    if not kinds or place is None or place >= len(kinds):
        return
    if kinds[place] not in KNOWN_LAYERS or (kinds[place] == "sliding_attention" and window is None):
        raise NotImplementedError(f"layer {place} has {kinds[place]}, which a stream without a mask does not compute")


def _segment(
    q: Tensor, k: Tensor, v: Tensor, scaling: float | None, dropout: float, window: int | None, softcap: float | None
) -> Tensor:
    """Causal attention of rows; keys may begin before the first query, and end where the queries end."""
    queries, keys = q.shape[2], k.shape[2]
    if softcap is not None:
        return _capped(q, k, v, _causal(queries, keys, window, q.device), scaling, softcap, dropout)
    plain = queries == keys and (window is None or window >= keys)
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=None if plain else _causal(queries, keys, window, q.device),
        is_causal=plain,
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
