"""Log-probs of given tokens by Liger's kernels, on a GPU where the package `liger_kernel` is installed.

Product, softmax and gradient are those of `LigerFusedLinearCrossEntropyFunction` (Hsu et al. 2024, arXiv:2410.10989,
section 3.2). They are taken only after they gave, on this device, what our own function gives for two small problems.
Nothing of the package is imported before it is to be used. cut-cross-entropy 25.1.1 is not among them: it sums the
gradient of hidden states in bfloat16, block by block of the vocabulary, and in an order that changes from run to run.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

PACKAGE = "liger_kernel"
#: types of device that the kernels are for; a test that runs them in Triton's interpreter names another
DEVICES = ("cuda",)
#: (hidden [n, h], weight [v, h], target [n]) -> logp [n], differentiable
Reading = Callable[[Tensor, Tensor, Tensor], Tensor]


class Gradients(NamedTuple):
    """Of Σ push · logp, in the types of hidden states and weight; None where they were not asked for. logp: [n]."""

    logp: Tensor
    hidden: Tensor | None
    weight: Tensor | None


class Trial(NamedTuple):
    """hidden [96, 128], weight [1000, 128], target [96], push [96], and what passes for rounding to bfloat16.

    logp_gap: of a log-prob, nats. gradient_gap: of a gradient as a share of its length, of any token and of the weight.
    """

    name: str
    hidden: Tensor
    weight: Tensor
    target: Tensor
    push: Tensor
    logp_gap: float
    gradient_gap: float


class Fused(NamedTuple):
    """Kernels for hidden states [n, h] and a weight [v, h] of one type, bfloat16.

    read: logp [n] float32, differentiable. push: (hidden, weight, target, push [n], whether the weight learns) -> logp
    and gradients from logits that are computed once.
    """

    read: Reading
    push: Callable[[Tensor, Tensor, Tensor, Tensor, bool], Gradients]


def applies(hidden: Tensor, weight: Tensor | None, bias: Tensor | None, temperature: float, dtype: torch.dtype) -> bool:
    """Whether the kernels compute what is asked: bfloat16 on a GPU, a whole weight, no bias, temperature 1, tokens."""
    return (
        hidden.device.type in DEVICES
        and dtype == torch.bfloat16
        and weight is not None
        and type(weight) in (Tensor, nn.Parameter)  # a shared-out one is no plain memory
        and bias is None
        and temperature == 1.0
        and len(hidden) > 0
    )


_found: dict[tuple[torch.device, torch.dtype], Fused | None] = {}


def trusted(device: torch.device, dtype: torch.dtype, ours: Reading) -> Fused | None:
    """The kernels, where they are installed and agree with `ours` on this device; looked at once, refused aloud."""
    if (device, dtype) not in _found:
        _found[device, dtype] = _looked_at(device, dtype, ours)
    return _found[device, dtype]


def _looked_at(device: torch.device, dtype: torch.dtype, ours: Reading) -> Fused | None:
    if importlib.util.find_spec(PACKAGE) is None:
        return None
    try:
        fused = load()
        reason = disagreement(fused, ours, device, dtype)
    except Exception as error:  # whatever a strange version or driver raises: there is a function that does the same
        fused, reason = None, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    if reason is None:
        return fused
    print(
        f"warning: log-probs on {device} are computed without {PACKAGE}, which is installed: {reason} "
        "(another version of it may do; without the package there is no such line)",
        file=sys.stderr,
    )
    return None


def load() -> Fused:
    """Liger's kernels. Whatever importing the package raises, AttributeError where it has other names."""
    module: Any = importlib.import_module(f"{PACKAGE}.ops.fused_linear_cross_entropy")
    function, forward = module.LigerFusedLinearCrossEntropyFunction, module.fused_linear_cross_entropy_forward
    wide = torch.float32  # the weight's gradient is summed so, and rounded once

    def read(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        with torch.cuda.device_of(hidden):  # Triton starts kernels on the current device; on a CPU this does nothing
            # no bias, no weights of classes, ignored index, no z-loss, no smoothing, no reduction, no cap
            return -function.apply(hidden, weight, target, None, None, -100, 0.0, 0.0, "none", None, False, wide)[0]

    def push(hidden: Tensor, weight: Tensor, target: Tensor, at: Tensor, learns: bool) -> Gradients:
        with torch.cuda.device_of(hidden):
            loss, _, _, _, of_hidden, of_weight, _ = forward(
                hidden, weight, target, reduction="none", accum_dtype=wide, token_grad_output=-at,
                compute_gradients=True, weight_requires_grad=learns,
            )  # fmt: skip
        return Gradients(-loss, of_hidden, of_weight)

    return Fused(read, push)


def disagreement(fused: Fused, ours: Reading, device: torch.device, dtype: torch.dtype) -> str | None:
    """What the kernels compute otherwise than `ours` in float32, with numbers; None where they agree.

    Two problems of 96 tokens over 1000 words: coefficients from 1e-6 to 1e4, and coefficients of 1e4 for tokens of
    probability 0.9999, whose gradients a filter of small probabilities would drop.
    """
    for trial in _trials():
        given = [x.to(device=device, dtype=dtype) for x in (trial.hidden, trial.weight)]
        target, push = trial.target.to(device), trial.push.to(device)
        right = _pulled(ours, [x.float() for x in given], target, push)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            pushed = fused.push(given[0], given[1], target, push, True)
        for way, found in (("backward", _pulled(fused.read, given, target, push)), ("forward", pushed)):
            if (gap := _gap(found, right, trial)) is not None:
                return f"{gap} ({trial.name}; gradients made in the {way} pass)"
    return None


def _pulled(read: Reading, given: list[Tensor], target: Tensor, push: Tensor) -> Gradients:
    with torch.enable_grad(), torch.autocast(target.device.type, enabled=False):
        hidden, weight = (x.detach().requires_grad_() for x in given)
        logp = read(hidden, weight, target)
        return Gradients(logp.detach(), *torch.autograd.grad((logp * push).sum(), [hidden, weight]))


def _trials() -> list[Trial]:
    """The same each time."""
    generator = torch.Generator().manual_seed(0)
    tokens, width, words = 96, 128, 1000
    weight = torch.randn(words, width, generator=generator) / width**0.5  # rows of length 1
    target = torch.randint(0, words, (tokens,), generator=generator)
    hidden = torch.randn(tokens, width, generator=generator) * 2
    sign = torch.where(torch.arange(tokens) % 3 == 0, -1.0, 1.0)
    # a logit of 18 beside 999 others around 0: 1 − p is about 999 / e^18 = 1.5e-5
    sure = weight[target] / weight[target].square().sum(1, keepdim=True) * 18
    sure = sure + torch.randn(tokens, width, generator=generator) * 0.1
    uneven = sign * torch.logspace(-6, 4, tokens)
    # bfloat16 numbers are 1/32 apart from 4 to 8 and 1/8 apart above 16: half of it is p, or 1 − p, off by rounding
    return [
        Trial("coefficients from 1e-6 to 1e4", hidden, weight, target, uneven, 0.1, 0.05),
        Trial("coefficients of 1e4 for sure tokens", sure, weight, target, sign * 1e4, 0.01, 0.2),
    ]


def _gap(found: Gradients, right: Gradients, trial: Trial) -> str | None:
    """The first difference that is no rounding: of log-probs, of a token's gradient, or of the weight's."""
    assert found.hidden is not None
    assert found.weight is not None
    assert right.hidden is not None
    assert right.weight is not None
    by_token = (found.hidden.float() - right.hidden).norm(dim=1) / right.hidden.norm(dim=1)
    whole = (found.weight.float() - right.weight).norm() / right.weight.norm()
    for what, gap, most in (
        ("log-probs differ by up to {:.2g} nats", (found.logp - right.logp).abs().max(), trial.logp_gap),
        ("the gradient of a token's hidden state is off by {:.0%}", by_token.max(), trial.gradient_gap),
        ("the gradient of the head's weight is off by {:.0%}", whole, trial.gradient_gap),
    ):
        if not gap <= most:  # NaN is a difference too
            return what.format(gap.item())
    return None


def fused_read(fused: Fused, hidden: Tensor, weight: Tensor, target: Tensor, dtype: torch.dtype) -> Tensor:
    """logp [n] float32, differentiable; gradients come back in the types of hidden states and weight.

    The weight's gradient is rounded to `dtype` once, as torch's autocast does it for a linear layer.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        return fused.read(hidden.to(dtype), weight.to(dtype), target)


def fused_push(
    fused: Fused, hidden: Tensor, weight: Tensor, target: Tensor, push: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Σ push · logp, differentiable, and logp [n] without gradient; rounding as in `fused_read`."""
    total, logp = _Pushed.apply(hidden, weight, target, push, dtype, fused)
    return total, logp


class _Pushed(torch.autograd.Function):
    """The gradient is made in the forward pass and scaled in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, push: Tensor, dtype: torch.dtype, fused: Fused
    ) -> tuple[Tensor, Tensor]:
        at = push.float()
        of_hidden, of_weight = ctx.needs_input_grad[:2]
        with torch.autocast(hidden.device.type, enabled=False):
            h, w = hidden.to(dtype), weight.to(dtype)
            made = fused.push(h, w, target, at, of_weight) if of_hidden or of_weight else None
            logp = fused.read(h, w, target) if made is None else made.logp
        ctx.grads = [
            g.to(like.dtype) if needed and made is not None and g is not None else None
            for g, like, needed in zip(made[1:] if made else (None, None), (hidden, weight), (of_hidden, of_weight),
                                       strict=True)
        ]  # fmt: skip
        ctx.mark_non_differentiable(logp)
        return (at * logp).sum(), logp

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        made, ctx.grads = ctx.grads, None
        return *(None if g is None else g.mul_(grads[0].to(g.dtype)) for g in made), None, None, None, None
