"""Attention of a stream in two calls of a kernel for sequences: the layout, the join, and which kernel is taken.

The kernel itself needs a GPU. Here one that does what its contract says, in plain products, stands in its place; that
torch's own takes these arguments is asked of its description of shapes.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.test_shared_attention import SEGMENTS, seen, streams
from unified import varlen
from unified.attention import _by_pieces
from unified.varlen import FLASH, Ends, Kernel, _sequences, _Varlen, trusted_kernel, varlen_of, why_not

CPU = torch.device("cpu")


def sequences(ends: Ends) -> list[tuple[slice, slice]]:
    q, k = (x.tolist() for x in (ends.queries, ends.keys))
    assert ends.longest_query == max(b - a for a, b in pairwise(q))
    assert ends.longest_key == max(b - a for a, b in pairwise(k))
    return [(slice(*a), slice(*b)) for a, b in zip(pairwise(q), pairwise(k), strict=True)]


def scores_of(q: Tensor, k: Tensor, causal: bool, scale: float | None) -> Tensor:
    """[heads, queries, keys]."""
    scores = torch.einsum("qhd,khd->hqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return scores.masked_fill(~torch.ones_like(scores, dtype=torch.bool).tril(), -torch.inf) if causal else scores


def repeated(q: Tensor, x: Tensor) -> Tensor:
    return x.repeat_interleave(q.shape[1] // x.shape[1], 1)


def forward(q: Tensor, k: Tensor, v: Tensor, ends: Ends, causal: bool, scale: float | None) -> tuple[Any, ...]:
    out, log = torch.empty_like(q), q.new_empty(q.shape[1], len(q))
    for at, seen_at in sequences(ends):
        scores = scores_of(q[at], repeated(q, k)[seen_at], causal, scale)
        log[:, at] = scores.logsumexp(-1)
        out[at] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), repeated(q, v)[seen_at])
    return out, log, "a state"


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log: Tensor, ends: Ends, causal: bool,
    scale: float | None, state: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Of weights exp(score − log) and the result as they are given: ds = p (grad · v − grad · out)."""
    assert state == "a state"
    groups = q.shape[1] // k.shape[1]
    wide_k, wide_v = repeated(q, k), repeated(q, v)
    of_q, of_k, of_v = torch.zeros_like(q), torch.zeros_like(wide_k), torch.zeros_like(wide_v)
    for at, seen_at in sequences(ends):
        p = (scores_of(q[at], wide_k[seen_at], causal, scale) - log[:, at, None]).exp()
        own = (grad[at] * out[at]).sum(-1).T[..., None]
        ds = p * (torch.einsum("qhd,khd->hqk", grad[at], wide_v[seen_at]) - own)
        ds = ds * (q.shape[-1] ** -0.5 if scale is None else scale)
        of_q[at] += torch.einsum("hqk,khd->qhd", ds, wide_k[seen_at])
        of_k[seen_at] += torch.einsum("hqk,qhd->khd", ds, q[at])
        of_v[seen_at] += torch.einsum("hqk,qhd->khd", p, grad[at])
    return of_q, of_k.unflatten(1, (-1, groups)).sum(2), of_v.unflatten(1, (-1, groups)).sum(2)


PLAIN = Kernel(forward, backward)


@pytest.mark.parametrize("segments", [*SEGMENTS, (4, 4, 7)], ids=str)
@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_two_calls_of_the_kernel_are_attention_under_a_mask_written_token_by_token(
    segments: tuple[Any, ...], heads: int, scale: float | None
) -> None:
    mask = seen(segments)
    q, k, v = inputs = streams(len(mask), heads)
    out = varlen_of(*inputs, segments, scale, PLAIN)  # type: ignore[call-arg]
    scores = q @ k.repeat_interleave(4 // heads, 1).mT * (scale or 8**-0.5)
    wanted = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v.repeat_interleave(4 // heads, 1)
    torch.testing.assert_close(out, wanted, atol=1e-12, rtol=0)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    mine, theirs = (torch.autograd.grad((x * weight).sum(), inputs) for x in (out, wanted))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


@pytest.mark.parametrize("segments", [(4, 4, 7), SEGMENTS[1]], ids=str)
def test_torchs_kernel_takes_the_arguments_and_gives_the_shapes_that_are_wanted(segments: tuple[Any, ...]) -> None:
    tokens = len(seen(segments))
    q, k, v = (torch.empty(tokens, n, 8, device="meta", dtype=torch.bfloat16, requires_grad=True) for n in (4, 2, 2))
    out = _Varlen.apply(q, k, v, _sequences(segments, q.device), None, FLASH)
    assert (out.shape, out.dtype) == (q.shape, torch.bfloat16)
    grads = torch.autograd.grad(out, (q, k, v), torch.empty_like(out))
    assert [(g.shape, g.dtype) for g in grads] == [(x.shape, x.dtype) for x in (q, k, v)]


# --- which kernel is taken ---


def wrong_log(*given: Any) -> Any:
    """Weights by the sum of its own part, not of the whole."""
    grad, q, k, v, out, _, ends, causal, scale, state = given
    return backward(grad, q, k, v, out, forward(q, k, v, ends, causal, scale)[1], ends, causal, scale, state)


def leaking(q: Tensor, k: Tensor, v: Tensor, ends: Ends, causal: bool, scale: float | None) -> Any:
    """All sequences as one."""
    whole = Ends(ends.queries[[0, -1]], ends.keys[[0, -1]], len(q), len(k))
    return forward(q, k, v, whole, causal, scale)


def raising(*_: Any) -> Any:
    raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.\nmore")


def nan(*given: Any) -> Any:
    out, log, state = forward(*given)
    return out * torch.nan, log, state


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        (Kernel(forward, wrong_log), "the gradient of the query by torch's kernel is off by"),
        (Kernel(leaking, backward), "the result by torch's kernel is off by"),
        (Kernel(nan, backward), "the result by torch's kernel is off by nan"),
        (Kernel(raising, backward), "RuntimeError: FlashAttention only supports Ampere GPUs or newer."),
    ],
)
def test_a_kernel_that_computes_something_else_is_refused_with_the_reason(kernel: Kernel, said: str) -> None:
    reason = why_not(kernel, _by_pieces, CPU, torch.bfloat16, (4, 2, 8))
    assert reason is not None
    assert reason.startswith(said)
    assert "\n" not in reason


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads", [(4, 2, 8), (3, 3, 16), (4, 1, 64)])
def test_a_kernel_that_is_right_up_to_rounding_is_taken(dtype: torch.dtype, heads: tuple[int, int, int]) -> None:
    assert why_not(PLAIN, _by_pieces, CPU, dtype, heads) is None


def test_the_kernel_is_tried_once_for_each_shape_of_heads_and_its_refusal_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(varlen, "DEVICES", ("cpu",))
    monkeypatch.setattr(varlen, "_found", {})
    for kernel, taken in ((PLAIN, True), (Kernel(raising, backward), False)):
        monkeypatch.setattr(varlen, "FLASH", kernel)
        varlen._found.clear()
        q, k, v = (x.bfloat16() for x in streams(6, 2))
        assert [trusted_kernel(q, k, v, _by_pieces) is kernel for _ in range(3)] == [taken] * 3
        said = capsys.readouterr().err
        assert said.count("\n") == (not taken)
        assert taken or "goes row by row, which is slower: RuntimeError: FlashAttention only supports" in said
        assert trusted_kernel(q, k[:, :1], v[:, :1], _by_pieces) is (kernel if taken else None)
        assert len(varlen._found) == 2
    assert trusted_kernel(q.float(), k.float(), v.float(), _by_pieces) is None  # not made for float32
    with torch.autocast("cpu", torch.bfloat16):
        assert (trusted_kernel(q.float(), k.float(), v.float(), _by_pieces) is None) is (not taken)


def test_on_a_cpu_the_kernel_for_gpus_is_not_even_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "_found", {})
    q, k, v = (x.bfloat16() for x in streams(6, 2))
    assert trusted_kernel(q, k, v, _by_pieces) is None
    assert varlen._found == {}
