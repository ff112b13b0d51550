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
from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from unified.precision import plain_float32

NAME = "unified"
#: the length of a row, or of a prompt and of each of its answers
Segment = int | tuple[int, ...]
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
    plan = _plan(tuple(segments))
    if plan.families and dropout:
        raise NotImplementedError("dropout would drop a shared prompt for all of its answers at once")
    windowed = sliding_window is not None and sliding_window < plan.longest
    if not windowed and not dropout and softcap is None and _has_flash(query, key, value):
        dtype = _inner_dtype(query, short=plan.longest <= SHORT)
        return _Stream.apply(query, key, value, plan, scaling, dtype).transpose(1, 2), None
    outputs = []
    for piece in plan.pieces:
        q, k, v = (_rows(x[:, :, piece.at], piece.number, piece.length) for x in (query, key, value))
        if piece.prompt is not None:
            before = (x[:, :, piece.prompt].expand(piece.number, -1, -1, -1) for x in (key, value))
            k, v = (torch.cat(both, 2) for both in zip(before, (k, v), strict=True))
        out = _segment(q, k, v, scaling, dropout, sliding_window, softcap)
        outputs.append(out.transpose(1, 2).reshape(1, piece.number * piece.length, q.shape[1], -1))
    return torch.cat(outputs, 1), None


#: longest rows, in tokens, whose attention is computed in float32 where the rest is in half precision
SHORT = 512


class _Piece(NamedTuple):
    """Slots of a number of rows, prompts or answers of one length, and of the prompt that they see besides."""

    at: slice
    number: int
    length: int
    prompt: slice | None


class _Plan(NamedTuple):
    """All pieces of a stream in order, (prompt, answers) of every family, and tokens of the longest row."""

    pieces: tuple[_Piece, ...]
    families: tuple[tuple[slice, slice], ...]
    longest: int


@lru_cache(maxsize=64)
def _plan(segments: tuple[Segment, ...]) -> _Plan:
    """Where everything lies; asked once per layer for the same stream."""
    pieces: list[_Piece] = []
    families, at, longest = [], 0, 0

    def add(length: int, count: int, prompt: slice | None) -> None:
        nonlocal at
        pieces.append(_Piece(slice(at, at + count * length), count, length, prompt))
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
    return _Plan(tuple(pieces), tuple(families), longest)


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


def _rows(x: Tensor, count: int, length: int) -> Tensor:
    """[1, heads, count * length, width] -> a view [count, heads, length, width]."""
    return x[0].unflatten(1, (count, length)).transpose(0, 1)


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


def _has_flash(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernel that also gives the log of the sum of the weights is there for these tensors."""
    known = hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")
    return known and query.device.type == "cpu" and query.shape[-1] == key.shape[-1] == value.shape[-1]


def _inner_dtype(query: Tensor, *, short: bool) -> torch.dtype:
    """The type that autocast gives attention, or that of the queries; float32 for short rows in half precision.

    The kernel for CPUs packs half precision into blocks that short rows do not fill. Measured on one thread, forward
    and backward of 2048 tokens, bfloat16 against float32: 32 and 8 ms in rows of 32, 39 and 16 in rows of 128, 55 and
    52 in rows of 512.
    """
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    return torch.float32 if short and dtype in (torch.bfloat16, torch.float16) else dtype


class _Stream(torch.autograd.Function):
    """Attention of a stream, without a tensor of its own for every row, and without copies of shared prompts.

    Every piece attends to itself, then all answers of a family at once to their prompt; with l the log of the sum of
    exp(score) of each part, the whole is Σ exp(l_part − l) out_part, l = log Σ exp(l_part). The gradient of a part is
    that of attention whose weights are exp(score − l) and whose result is the whole, which is what the backward pass of
    the kernel computes when it is given the whole and l (Dao 2023, arXiv:2307.08691, section 3.1).

    Measured on one thread of a CPU in float32 (8 answers of 64 behind 256 tokens, width 256 to 512), forward and
    backward of a layer: 11 to 25 ms; 14 to 29 with the prompt's keys copied to each answer, 27 to 59 with one mask over
    the stream, 41 to 78 without sharing.
    """

    @staticmethod
    @plain_float32()
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: _Plan, scale: float | None, dtype: torch.dtype
    ) -> Tensor:
        q, k, v = (x.to(dtype) for x in (query, key, value))
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        out = torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        total = torch.empty((*q.shape[:3], 1), dtype=wide)  # [1, heads, tokens, 1], l
        for piece in plan.pieces:
            found, log = flash(*(_part(x, piece) for x in (q, k, v)), 0.0, True, scale=scale)
            _part(out, piece).copy_(found)
            _part(total, piece)[..., 0].copy_(log)
        for prompt, answers in plan.families:
            found, log = flash(q[:, :, answers], k[:, :, prompt], v[:, :, prompt], 0.0, False, scale=scale)
            own, seen = total[:, :, answers], log[..., None]
            both = torch.logaddexp(own, seen)
            out[:, :, answers] = (own - both).exp() * out[:, :, answers] + (seen - both).exp() * found
            total[:, :, answers] = both
        out = out.to(value.dtype)
        ctx.save_for_backward(query, key, value, out, total)  # as they came: half the size where `dtype` is wider
        ctx.settings = (plan, scale, dtype)
        return out

    @staticmethod
    @once_differentiable
    @plain_float32()
    def backward(ctx: Any, grad: Tensor) -> Any:
        query, key, value, out, total = ctx.saved_tensors
        plan, scale, dtype = ctx.settings
        q, k, v, out, grad = (x.to(dtype) for x in (query, key, value, out, grad))
        backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        grads = [torch.empty_like(x) for x in (q, k, v)]
        for piece in plan.pieces:
            given = [_part(x, piece) for x in (grad, q, k, v, out, total)]
            found = backward(*given[:5], given[5][..., 0], 0.0, True, scale=scale)
            for mine, part in zip(grads, found, strict=True):
                _part(mine, piece).copy_(part)
        for prompt, answers in plan.families:
            places = (answers, answers, prompt, prompt, answers, answers)
            given = [x[:, :, at] for x, at in zip((grad, q, k, v, out, total), places, strict=True)]
            found = backward(*given[:5], given[5][..., 0], 0.0, False, scale=scale)
            for mine, part, at in zip(grads, found, (answers, prompt, prompt), strict=True):
                mine[:, :, at] += part
        return *(g.to(x.dtype) for g, x in zip(grads, (query, key, value), strict=True)), None, None, None


def _part(x: Tensor, piece: _Piece) -> Tensor:
    """A view [count, heads, length, width] of a piece of [1, heads, tokens, width]."""
    return _rows(x[:, :, piece.at], piece.number, piece.length)


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
