"""Attention of a stream by the flash kernel for CPUs, piece by piece."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from unified.precision import plain_float32
from unified.streams import Plan, part_of

#: longest rows, in tokens, whose attention is computed in float32 where the rest is in half precision
SHORT = 512


def has_flash(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernel that also gives the log of the sum of the weights is there for these tensors."""
    known = hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")
    return known and query.device.type == "cpu" and query.shape[-1] == key.shape[-1] == value.shape[-1]


def flash_of(query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float | None) -> Tensor:
    """[1, heads, tokens, width] of all, causal within a row or answer, answers with their prompt before them."""
    dtype = _inner_dtype(query, short=plan.longest <= SHORT)
    out: Tensor = _Stream.apply(query, key, value, plan, scale, dtype)
    return out


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
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float | None, dtype: torch.dtype
    ) -> Tensor:
        q, k, v = (x.to(dtype) for x in (query, key, value))
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        out = torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        total = torch.empty((*q.shape[:3], 1), dtype=wide)  # [1, heads, tokens, 1], l
        for piece in plan.pieces:
            found, log = flash(*(part_of(x, piece) for x in (q, k, v)), 0.0, True, scale=scale)
            part_of(out, piece).copy_(found)
            part_of(total, piece)[..., 0].copy_(log)
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
            given = [part_of(x, piece) for x in (grad, q, k, v, out, total)]
            found = backward(*given[:5], given[5][..., 0], 0.0, True, scale=scale)
            for mine, part in zip(grads, found, strict=True):
                part_of(mine, piece).copy_(part)
        for prompt, answers in plan.families:
            places = (answers, answers, prompt, prompt, answers, answers)
            given = [x[:, :, at] for x, at in zip((grad, q, k, v, out, total), places, strict=True)]
            found = backward(*given[:5], given[5][..., 0], 0.0, False, scale=scale)
            for mine, part, at in zip(grads, found, (answers, prompt, prompt), strict=True):
                mine[:, :, at] += part
        return *(g.to(x.dtype) for g, x in zip(grads, (query, key, value), strict=True)), None, None, None
