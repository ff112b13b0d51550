"""Attention of a stream on a GPU: one kernel for all of its pieces, one more for all answers and their prompts.

The kernel is torch's own flash attention of sequences that lie one behind the other (Dao 2023, arXiv:2307.08691), which
also gives the log of the sum of the weights, so that both parts are joined as on a CPU (`unified.flash`). It is taken
only after it gave, on this device and for these shapes, the result and the gradients of the way that needs no kernel.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from unified.streams import Plan, Segment, plan_of

#: types of device and of numbers that the kernel is for
DEVICES, DTYPES = ("cuda",), (torch.bfloat16, torch.float16)
#: the trial: rows, and prompts with answers, of uneven lengths
TRIAL: tuple[Segment, ...] = (5, 70, (33, 4, 4, 90), 1, (2, 1, 1, 17))
#: what passes for rounding to bfloat16, as a share of the length of a result or gradient
ROUNDING = 2e-2
#: (query, key, value [1, heads, tokens, width], plan, scale) -> result of the same shape, differentiable
Reference = Callable[[Tensor, Tensor, Tensor, Plan, float | None], Tensor]


class Ends(NamedTuple):
    """Where sequences of queries and of keys end, [sequences + 1] int32 that begin with 0, and the longest of each."""

    queries: Tensor
    keys: Tensor
    longest_query: int
    longest_key: int


class Kernel(NamedTuple):
    """Attention of sequences, q [t, heads, width], k and v [s, heads of the keys, width].

    forward: (q, k, v, ends, causal, scale) -> result [t, heads, width]; log Σ exp(score) [heads, t] float32; a state.
    backward: (gradient of the result, q, k, v, result, log, ends, causal, scale, state) -> gradients of q, k and v,
    where the weights are exp(score − log) and the result is the one given, whatever forward gave.
    """

    forward: Callable[[Tensor, Tensor, Tensor, Ends, bool, float | None], tuple[Tensor, Tensor, Any]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]


def _forward(
    q: Tensor, k: Tensor, v: Tensor, ends: Ends, causal: bool, scale: float | None
) -> tuple[Tensor, Tensor, Any]:
    out, log, *state, _ = torch.ops.aten._flash_attention_forward(q, k, v, *ends, 0.0, causal, False, scale=scale)
    return out, log, state


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log: Tensor, ends: Ends, causal: bool,
    scale: float | None, state: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    backward = torch.ops.aten._flash_attention_backward
    of_q, of_k, of_v = backward(grad, q, k, v, out, log, *ends, 0.0, causal, *state, scale=scale)
    return of_q, of_k, of_v


FLASH = Kernel(_forward, _backward)


class _Sequences(NamedTuple):
    """all: of every piece by itself. families: of the answers of each family, and of their prompts.

    answers [a], prompts [p]: their slots in the stream; without a family both are empty.
    """

    all: Ends
    families: Ends
    answers: Tensor
    prompts: Tensor


@lru_cache(maxsize=64)
def _sequences(segments: tuple[Segment, ...], device: torch.device) -> _Sequences:
    """Asked once per layer for the same stream."""
    plan = plan_of(segments)
    pieces = [piece.length for piece in plan.pieces for _ in range(piece.number)]
    prompts, answers = ([family[i] for family in plan.families] for i in (0, 1))
    of_prompts, of_answers = ([s.stop - s.start for s in slots] for slots in (prompts, answers))
    return _Sequences(
        _ends(pieces, pieces, device),
        _ends(of_answers, of_prompts, device),
        torch.tensor([i for s in answers for i in range(s.start, s.stop)], dtype=torch.long, device=device),
        torch.tensor([i for s in prompts for i in range(s.start, s.stop)], dtype=torch.long, device=device),
    )


def _ends(queries: list[int], keys: list[int], device: torch.device) -> Ends:
    both = [torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32) for lengths in (queries, keys)]
    return Ends(both[0], both[1], max(queries, default=0), max(keys, default=0))


def varlen_of(
    query: Tensor, key: Tensor, value: Tensor, segments: tuple[Segment, ...], scale: float | None, kernel: Kernel
) -> Tensor:
    """[1, heads, tokens, width]: causal within a row, a prompt or an answer; answers see their prompt besides."""
    dtype = _product_dtype(query)
    q, k, v = (x[0].transpose(0, 1).to(dtype).contiguous() for x in (query, key, value))
    out: Tensor = _Varlen.apply(q, k, v, _sequences(segments, query.device), scale, kernel)
    return out.to(value.dtype).transpose(0, 1)[None]


def _product_dtype(query: Tensor) -> torch.dtype:
    kind = query.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype


class _Varlen(torch.autograd.Function):
    """With l the log of a part's sum of weights, the whole is Σ exp(l_part − l) out_part, l = log Σ exp(l_part)."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, at: _Sequences, scale: float | None, kernel: Kernel
    ) -> Tensor:
        out, log, state = kernel.forward(q, k, v, at.all, True, scale)
        behind = None
        if len(at.answers):
            asked, keys, values = q[at.answers], k[at.prompts], v[at.prompts]
            seen, beyond, behind = kernel.forward(asked, keys, values, at.families, False, scale)
            own = log[:, at.answers]
            both = torch.logaddexp(own, beyond)
            share, rest = ((part - both).exp().T[..., None] for part in (own, beyond))  # [answers' tokens, heads, 1]
            out[at.answers] = (share * out[at.answers] + rest * seen).to(out.dtype)
            log[:, at.answers] = both
        ctx.save_for_backward(q, k, v, out, log)
        ctx.settings = (at, scale, kernel, state, behind)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, k, v, out, log = ctx.saved_tensors
        at, scale, kernel, state, behind = ctx.settings
        grad = grad.contiguous()
        of_q, of_k, of_v = kernel.backward(grad, q, k, v, out, log, at.all, True, scale, state)
        if len(at.answers):
            asked = [x[at.answers] for x in (grad, q, out)]
            keys, values, own = k[at.prompts], v[at.prompts], log[:, at.answers].contiguous()
            more = kernel.backward(
                asked[0], asked[1], keys, values, asked[2], own, at.families, False, scale, behind
            )  # fmt: skip
            for mine, part, where in zip((of_q, of_k, of_v), more, (at.answers, at.prompts, at.prompts), strict=True):
                mine.index_add_(0, where, part)
        return of_q, of_k, of_v, None, None, None


_found: dict[tuple[Any, ...], bool] = {}


def trusted_kernel(query: Tensor, key: Tensor, value: Tensor, reference: Reference) -> Kernel | None:
    """The kernel, where it is for such tensors and agrees with `reference` on them; tried once for each shape of heads.

    None, said once, where it fails or differs; None without a word where it is not meant for such tensors.
    """
    dtype = _product_dtype(query)
    if (
        query.device.type not in DEVICES
        or dtype not in DTYPES
        or not query.shape[-1] == key.shape[-1] == value.shape[-1]
    ):
        return None
    heads = (query.shape[1], key.shape[1], query.shape[-1])
    sort = (query.device, dtype, heads)
    if sort not in _found:
        reason = why_not(FLASH, reference, query.device, dtype, heads)
        _found[sort] = reason is None
        if reason is not None:
            print(
                f"warning: attention of packed rows on {query.device} goes row by row, which is slower: {reason}",
                file=sys.stderr,
            )
    return FLASH if _found[sort] else None


def why_not(
    kernel: Kernel, reference: Reference, device: torch.device, dtype: torch.dtype, heads: tuple[int, int, int]
) -> str | None:
    """Why a kernel is not taken, in words; None where result and gradients are those of `reference` in float32.

    heads: of queries, of keys, and their width.
    """
    tokens = sum(s if isinstance(s, int) else sum(s) for s in TRIAL)
    generator = torch.Generator().manual_seed(0)
    sizes = [(1, n, tokens, heads[2]) for n in (heads[0], heads[1], heads[1], heads[0])]
    *given, push = (torch.randn(size, generator=generator).to(device, dtype) for size in sizes)
    try:
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            found = _pulled(lambda q, k, v: varlen_of(q, k, v, TRIAL, None, kernel), given, push)
            wide = [x.float() for x in given]
            right = _pulled(lambda q, k, v: reference(q, k, v, plan_of(TRIAL), None), wide, push.float())
    except Exception as error:  # whatever a driver or another torch raises: there is a way that does the same
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    names = ("result", "gradient of the query", "gradient of the key", "gradient of the value")
    for name, mine, true in zip(names, found, right, strict=True):
        off = float((mine.float() - true).norm() / true.norm())
        if not off <= ROUNDING:  # NaN is a difference too
            return f"the {name} by torch's kernel is off by {off:.1%}"
    return None


def _pulled(attend: Callable[..., Tensor], given: list[Tensor], push: Tensor) -> list[Tensor]:
    """Result, and gradients of Σ push · result."""
    leaves = [x.detach().requires_grad_() for x in given]
    out = attend(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, push)]
