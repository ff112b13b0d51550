"""Kernels for log-probs are taken where they compute what is asked, and only if they agree with our own function."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unified import fused_logprob
from unified.fused_logprob import Fused, Gradients, applies, disagreement, trusted
from unified.logprob import _by_chunks, read_distribution, weighted_logprob

CPU, BF16 = torch.device("cpu"), torch.bfloat16
Change = Callable[[Tensor], Tensor]


def same(x: Tensor) -> Tensor:
    return x


def filtered(d: Tensor) -> Tensor:
    """What cut-cross-entropy's default does: |softmax − onehot| below 2⁻¹² is dropped, before any coefficient."""
    return torch.where(d.abs() < 2**-12, 0.0, d)


class Stand(torch.autograd.Function):
    """A kernel in plain torch; `change` is what it does to softmax − onehot [n, v]."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, change: Change) -> Tensor:
        p = (hidden @ weight.T).float().softmax(1)
        rows = torch.arange(len(target))
        logp = p[rows, target].log()
        p[rows, target] -= 1
        ctx.save_for_backward(hidden, weight)
        ctx.d = change(p)
        return logp

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        hidden, weight = ctx.saved_tensors
        d = (-grads[0][:, None] * ctx.d).to(hidden.dtype)
        return d @ weight, (d.float().T @ hidden.float()).to(weight.dtype), None, None


def standing_in(change: Change = same, *, logp: Change = same, pushed: Change = same) -> Fused:
    """Kernels that are right but for `change` of softmax − onehot, `logp`, or `pushed` of the forward's gradients."""

    def read(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        return logp(Stand.apply(hidden, weight, target, change))

    def push(hidden: Tensor, weight: Tensor, target: Tensor, at: Tensor, learns: bool) -> Gradients:
        with torch.enable_grad():
            h, w = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
            made = read(h, w, target)
            of_hidden, of_weight = torch.autograd.grad((made * at).sum(), [h, w])
        return Gradients(made.detach(), of_hidden, pushed(of_weight) if learns else None)

    return Fused(read, push)


def gap(fused: Fused) -> str | None:
    return disagreement(fused, _by_chunks, CPU, BF16)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """As on a GPU with the package installed; what was found is forgotten before and after."""
    monkeypatch.setattr(fused_logprob, "DEVICES", ("cpu",))
    monkeypatch.setattr(fused_logprob, "_found", {})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "liger_kernel" else None)
    return monkeypatch


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden [7, 16], weight [11, 16] and push [7] of float32 numbers that bfloat16 holds, and target [7]."""
    generator = torch.Generator().manual_seed(3)
    hidden, weight = (torch.randn(n, 16, generator=generator).to(BF16).to(dtype).requires_grad_() for n in (7, 11))
    return hidden, weight, torch.arange(7), torch.randn(7, generator=generator)


# --- when they are taken ---


def test_they_apply_to_bfloat16_products_with_a_whole_weight_and_nothing_else_asked(
    on_cpu: pytest.MonkeyPatch,
) -> None:
    hidden, weight, *_ = inputs()
    right: dict[str, Any] = {"hidden": hidden, "weight": weight, "bias": None, "temperature": 1.0, "dtype": BF16}
    assert applies(**right)
    assert applies(**{**right, "weight": nn.Parameter(weight.detach())})
    for wrong in (
        {"weight": None}, {"bias": torch.zeros(11)}, {"temperature": 0.7}, {"dtype": torch.float32},
        {"dtype": torch.float16}, {"hidden": hidden[:0]}, {"hidden": hidden.to("meta")},
        {"weight": weight.detach().as_subclass(type("Shared", (Tensor,), {}))},
    ):  # fmt: skip
        assert not applies(**{**right, **wrong}), wrong
    on_cpu.undo()
    assert not applies(**right)  # a CPU


def test_on_a_cpu_nothing_is_looked_for_and_no_kernel_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_logprob, "_looked_at", lambda *_: pytest.fail("looked for on a CPU"))
    hidden, weight, target, push = inputs()
    read_distribution(hidden, weight, None, target, dtype=BF16)
    weighted_logprob(hidden, weight, None, target, push, dtype=BF16)
    assert not {"triton", "liger_kernel"} & sys.modules.keys() or "torch._inductor" in sys.modules


@pytest.mark.parametrize("more", [{"entropy": True}, {"collision": True}, {"temperature": 0.7}])
def test_further_statistics_and_another_temperature_are_read_by_chunks(
    on_cpu: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    on_cpu.setattr(fused_logprob, "load", lambda: pytest.fail("taken"))
    hidden, weight, target, _ = inputs()
    assert read_distribution(hidden, weight, None, target, dtype=BF16, **more).logp.shape == (7,)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_taken_they_give_the_same_numbers_and_gradients_in_the_types_of_the_parameters(
    on_cpu: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    asked = []

    def counted() -> Fused:
        asked.append(1)
        return standing_in()

    hidden, weight, target, push = inputs(dtype)
    made = {}
    for way in ("chunks", "kernels"):
        on_cpu.setattr(fused_logprob, "load", counted)
        on_cpu.setattr(fused_logprob, "DEVICES", ("cpu",) if way == "kernels" else ())
        logp = read_distribution(hidden, weight, None, target, dtype=BF16).logp
        total, beside = weighted_logprob(hidden, weight, None, target, push, dtype=BF16)
        assert not beside.requires_grad
        of_read = torch.autograd.grad((logp * push).sum(), [hidden, weight])
        made[way] = [logp, total, beside, *of_read, *torch.autograd.grad(total * 3, [hidden, weight])]
        assert [g.dtype for g in made[way][3:]] == [dtype] * 4
        torch.testing.assert_close(made[way][5], 3 * made[way][3], rtol=0.02, atol=0.02)
    assert asked == [1]  # the second call remembers what the first found
    for ours, theirs in zip(made["chunks"], made["kernels"], strict=True):
        assert float((ours - theirs).detach().float().norm() / ours.detach().float().norm()) < 0.01


def test_a_frozen_weight_gets_no_gradient_and_without_gradients_there_is_only_logp(on_cpu: pytest.MonkeyPatch) -> None:
    wanted = []

    def watched() -> Fused:
        inner = standing_in()

        def push(*given: Any) -> Gradients:
            wanted.append(given[4])
            return inner.push(*given)

        return Fused(inner.read, push)

    on_cpu.setattr(fused_logprob, "load", watched)
    hidden, weight, target, push = inputs()
    total, _ = weighted_logprob(hidden, weight.detach(), None, target, push, dtype=BF16)
    total.backward()
    assert wanted[-1] is False
    assert hidden.grad is not None
    before = len(wanted)
    total, logp = weighted_logprob(hidden.detach(), weight.detach(), None, target, push, dtype=BF16)
    assert len(wanted) == before
    torch.testing.assert_close(total, (push * logp).sum())


# --- when they are refused ---


def test_kernels_that_are_right_agree() -> None:
    assert gap(standing_in()) is None


def test_a_filter_of_small_probabilities_is_seen_where_tokens_are_sure_and_coefficients_large() -> None:
    said = gap(standing_in(filtered))
    assert said is not None
    assert "off by 100% (coefficients of 1e4 for sure tokens" in said  # nothing is left of it


def wrong_by_token(d: Tensor) -> Tensor:
    """One token of the 96 has no gradient."""
    return torch.where(torch.arange(len(d))[:, None] == 5, 0.0, d)


@pytest.mark.parametrize(
    ("fused", "said"),
    [
        (standing_in(logp=lambda x: x - 0.2), "log-probs differ by up to 0.2"),
        (standing_in(logp=lambda x: x * torch.nan), "log-probs differ by up to nan"),
        (standing_in(lambda d: -d), "hidden state is off by 200%"),
        (standing_in(wrong_by_token), "hidden state is off by 100%"),
        (standing_in(lambda d: d * 1.1), "hidden state is off by 10%"),
        (standing_in(pushed=torch.zeros_like), "weight is off by 100% .* in the forward pass"),
    ],
)
def test_wrong_kernels_are_refused_with_what_is_wrong(fused: Fused, said: str) -> None:
    found = gap(fused)
    assert found is not None
    assert re.search(said, found), found


def test_refused_kernels_are_told_once_and_the_chunks_are_taken(
    on_cpu: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_cpu.setattr(fused_logprob, "load", lambda: standing_in(filtered))
    hidden, weight, target, push = inputs()
    logp = read_distribution(hidden, weight, None, target, dtype=BF16).logp
    weighted_logprob(hidden, weight, None, target, push, dtype=BF16)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("warning: log-probs on cpu are computed without liger_kernel, which is installed: the g")
    on_cpu.undo()
    assert torch.equal(logp, read_distribution(hidden, weight, None, target, dtype=BF16).logp)


@pytest.mark.parametrize("error", [ImportError("libcuda.so.1: no such file\nmore"), AttributeError("renamed")])
def test_a_package_that_cannot_be_loaded_is_refused_with_its_first_line(
    on_cpu: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def broken() -> Fused:
        raise error

    on_cpu.setattr(fused_logprob, "load", broken)
    assert trusted(CPU, BF16, _by_chunks) is None
    said = capsys.readouterr().err
    assert f"{type(error).__name__}: {str(error).splitlines()[0]} (" in said
    assert len(said.splitlines()) == 1


def test_without_the_package_nothing_is_said(on_cpu: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    on_cpu.setattr(importlib.util, "find_spec", lambda name: None)
    assert trusted(CPU, BF16, _by_chunks) is None
    assert capsys.readouterr() == ("", "")


def test_the_look_leaves_random_numbers_and_parameters_as_they_were(on_cpu: pytest.MonkeyPatch) -> None:
    on_cpu.setattr(fused_logprob, "load", standing_in)
    torch.manual_seed(4)
    before = torch.get_rng_state()
    with torch.no_grad():  # log-probs of a reference are asked for first
        assert trusted(CPU, BF16, _by_chunks) is not None
    assert torch.equal(torch.get_rng_state(), before)
