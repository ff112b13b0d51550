"""Liger's own kernels, on a CPU: Triton's interpreter runs them with TRITON_INTERPRET=1, which must be set before.

Run by test_fused_logprob_installed in an environment that has them, and skipped in others.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from unified import fused_logprob
from unified.fused_logprob import Fused, Gradients, disagreement, fused_push, fused_read, load
from unified.logprob import _by_chunks, read_distribution, weighted_logprob

CPU, BF16 = torch.device("cpu"), torch.bfloat16
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("liger_kernel") is None,
    reason="needs liger_kernel and Triton's interpreter",
)
#: (tokens, width, words): one token; no power of two; chunks of 16 tokens in Liger (words / width = 8 parts of 100)
SHAPES = [(1, 8, 11), (37, 24, 331), (100, 32, 250)]


@pytest.fixture(scope="module")
def kernels() -> Fused:
    return load()


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a GPU."""
    monkeypatch.setattr(fused_logprob, "DEVICES", ("cpu",))
    monkeypatch.setattr(fused_logprob, "_found", {})
    yield
    assert [found is not None for found in fused_logprob._found.values()] == [True]


def inputs(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden, weight, target, and pushes from 1e-3 to 1e3 of both signs."""
    tokens, width, words = shape
    generator = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(tokens, width, generator=generator).to(BF16).to(dtype)
    weight = (torch.randn(words, width, generator=generator) * 0.5).to(BF16).to(dtype)
    target = torch.randint(0, words, (tokens,), generator=generator)
    push = torch.logspace(-3, 3, tokens) * torch.randn(tokens, generator=generator).sign()
    return hidden.requires_grad_(), weight.requires_grad_(), target, push


def right(hidden: Tensor, weight: Tensor, target: Tensor, push: Tensor) -> list[Tensor]:
    """logp and the gradients of Σ push · logp in float64, by the textbook."""
    h, w = (x.detach().double().requires_grad_() for x in (hidden, weight))
    logp = (h @ w.T).log_softmax(1)[torch.arange(len(target)), target]
    return [logp.detach(), *torch.autograd.grad((logp * push.double()).sum(), [h, w])]


def off(found: list[Tensor], wanted: list[Tensor]) -> list[float]:
    """Largest gap of logp in nats, and of a token's gradient and of the weight's as shares of their length."""
    logp, of_hidden, of_weight = (x.detach().double() for x in found)
    by_token = (of_hidden - wanted[1]).norm(dim=1) / wanted[1].norm(dim=1)
    return [
        float((logp - wanted[0]).abs().max()), float(by_token.max()),
        float((of_weight - wanted[2]).norm() / wanted[2].norm()),
    ]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_in_float32_log_probs_and_gradients_are_those_of_the_textbook(
    kernels: Fused, shape: tuple[int, int, int]
) -> None:
    hidden, weight, target, push = inputs(shape, torch.float32)
    wanted = right(hidden, weight, target, push)
    logp = fused_read(kernels, hidden, weight, target, torch.float32)
    read = [logp, *torch.autograd.grad((logp * push).sum(), [hidden, weight])]
    total, beside = fused_push(kernels, hidden, weight, target, push, torch.float32)
    pushed = [beside, *torch.autograd.grad(total, [hidden, weight])]
    for found in (read, pushed):
        assert max(off(found, wanted)) < 1e-5
    torch.testing.assert_close(total.double(), (push * wanted[0]).sum(), rtol=1e-5, atol=0)
    lacking = read[1].clone()
    lacking[-1] = 0  # a control: one token without a gradient
    assert off([read[0], lacking, read[2]], wanted)[1] == pytest.approx(1)


@pytest.mark.parametrize("parameters", [torch.float32, BF16])
@pytest.mark.parametrize("shape", SHAPES)
def test_in_bfloat16_they_are_taken_and_differ_by_rounding_as_the_chunks_do(
    taken: None, shape: tuple[int, int, int], parameters: torch.dtype, capsys: pytest.CaptureFixture[str]
) -> None:
    hidden, weight, target, push = inputs(shape, parameters)
    wanted = right(hidden, weight, target, push)
    logp = read_distribution(hidden, weight, None, target, dtype=BF16).logp
    assert (logp.dtype, type(logp.grad_fn).__name__) == (torch.float32, "NegBackward0")  # not the chunks
    read = [logp, *torch.autograd.grad((logp * push).sum(), [hidden, weight])]
    total, beside = weighted_logprob(hidden, weight, None, target, push, dtype=BF16)
    pushed = [beside, *torch.autograd.grad(total, [hidden, weight])]
    assert [g.dtype for g in (*read[1:], *pushed[1:])] == [parameters] * 4
    for found in (read, pushed):
        logp_off, *gradients_off = off(found, wanted)
        assert logp_off < 0.05  # logits up to 16: neighbouring numbers are 1/16 apart
        assert max(gradients_off) < 0.05
    assert capsys.readouterr().err == ""


def wrongly(kernels: Fused, change: Callable[[Tensor, Tensor], Tensor]) -> Fused:
    """The kernels asked for other targets."""

    def read(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        return kernels.read(hidden, weight, change(target, weight))

    def push(hidden: Tensor, weight: Tensor, target: Tensor, at: Tensor, learns: bool) -> Gradients:
        return kernels.push(hidden, weight, change(target, weight), at, learns)

    return Fused(read, push)


def test_the_look_accepts_the_kernels_and_refuses_the_same_kernels_asked_wrongly(kernels: Fused) -> None:
    assert disagreement(kernels, _by_chunks, CPU, BF16) is None
    assert "nats" in (disagreement(wrongly(kernels, lambda t, _: t.roll(1)), _by_chunks, CPU, BF16) or "")
    # one token of 96 is told to be ignored: its logp and its gradient are 0
    ignored = wrongly(kernels, lambda t, _: torch.where(torch.arange(len(t)) == 40, -100, t))
    assert "nats" in (disagreement(ignored, _by_chunks, CPU, BF16) or "")
    unsigned = Fused(kernels.read, lambda h, w, t, at, learns: kernels.push(h, w, t, at.abs(), learns))
    assert "200%" in (disagreement(unsigned, _by_chunks, CPU, BF16) or "")
