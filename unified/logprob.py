"""Log-probs of given tokens from hidden states, without ever holding [tokens, vocabulary].

Forward and backward visit the tokens in chunks; the backward pass computes the logits of all but the last chunk again
instead of keeping them. On a GPU kernels of another package may do the same: see `fused_logprob`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from unified.chunks import Gradients, Scratch, chunk_rows, chunks_of
from unified.fused_logprob import Fused, applies, fused_push, fused_read, trusted


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    dtype: torch.dtype | None = None,
    chunk_numbers: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """log softmax(hidden @ weight.T + bias, divided by temperature) of the target tokens, differentiable.

    Args:
        hidden: [tokens, hidden]. weight: [vocab, hidden]. bias: [vocab] or None. target: [tokens] int.
        temperature: divides the logits; positive.
        entropy: also give the entropy of each distribution.
        dtype: of the matrix products (bfloat16 under autocast); without, that of `hidden`. Sums are at least float32.
        chunk_numbers: largest number of logits held at once; without, as many as the device is quick with.
    Returns:
        logp [tokens] in nats, and entropy [tokens] in nats or None; float32, or float64 for float64 input.
    Raises:
        ValueError: the shapes do not fit (the message shows them), or the temperature is not positive.
    """
    if hidden.shape[0] != target.shape[0] or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden is {list(hidden.shape)}, target {list(target.shape)}, weight {list(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias is {list(bias.shape)} but weight is {list(weight.shape)}; bias must be [vocab]")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be positive")
    read = read_distribution(
        hidden, weight, bias, target, temperature=temperature, entropy=entropy, dtype=dtype, chunk_numbers=chunk_numbers
    )
    return read.logp, read.entropy if entropy else None


class Readings(NamedTuple):
    """What one pass over the vocabulary reads of each token's distribution, [tokens] nats each.

    logp: of the target. entropy: differentiable. collision_logp: log Σ p², without gradient. Zeros where not asked for.
    """

    logp: Tensor
    entropy: Tensor
    collision_logp: Tensor


def read_distribution(
    hidden: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    target: Tensor,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    collision: bool = False,
    dtype: torch.dtype | None = None,
    chunk_numbers: int | None = None,
) -> Readings:
    """`token_logprobs` of shapes that fit, together with further statistics of the same chunks of logits.

    Without a weight `hidden` holds the logits themselves, [tokens, vocab]. collision: also give log Σ p².
    """
    if not (entropy or collision) and weight is not None:
        fused = _fused(hidden, weight, bias, temperature, dtype)
        if fused is not None:
            logp = fused_read(fused, hidden, weight, target, dtype or hidden.dtype)
            return Readings(logp, torch.zeros_like(logp), torch.zeros_like(logp))
    rows = chunk_rows(hidden, weight, chunk_numbers)
    asked = (entropy, collision)
    return Readings(
        *_LinearLogProb.apply(hidden, weight, bias, target, temperature, asked, dtype or hidden.dtype, rows)
    )


def _fused(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, dtype: torch.dtype | None
) -> Fused | None:
    """Kernels that compute what is asked and agreed with the function here; None: the chunks."""
    product = dtype or hidden.dtype
    if not applies(hidden, weight, bias, temperature, product):
        return None
    return trusted(hidden.device, product, _by_chunks)


def _by_chunks(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """logp [tokens] of small inputs by the function here, in their own type."""
    logp: Tensor = _LinearLogProb.apply(hidden, weight, None, target, 1.0, (False, False), hidden.dtype, len(target))[0]
    return logp


def weighted_logprob(
    hidden: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    target: Tensor,
    push: Tensor,
    *,
    temperature: float = 1.0,
    dtype: torch.dtype | None = None,
    chunk_numbers: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Σ push · logp of `read_distribution`, for pushes that are known before: logits are computed once, not twice.

    The gradient is made with each chunk of logits, in the forward pass, and only scaled in the backward pass.

    Args:
        push: [tokens], what stands before the gradient of each logp; the others as in `read_distribution`.
    Returns:
        The sum, differentiable, and logp [tokens] in nats without gradient.
    """
    fused = None if weight is None else _fused(hidden, weight, bias, temperature, dtype)
    if fused is not None and weight is not None:
        return fused_push(fused, hidden, weight, target, push, dtype or hidden.dtype)
    rows = chunk_rows(hidden, weight, chunk_numbers)
    total, logp = _WeightedLogProb.apply(hidden, weight, bias, target, push, temperature, dtype or hidden.dtype, rows)
    return total, logp


def _summed(z: Tensor, scratch: Scratch) -> tuple[Tensor, Tensor, Tensor]:
    """z [piece, vocab] becomes z less its largest; gives exp of that, its sum, and log Σ exp(z), [piece] each."""
    top = z.amax(1, keepdim=True)
    e = torch.exp(z.sub_(top), out=scratch.like("exp", z))
    total = e.sum(1)
    return e, total, top[:, 0] + total.log()


class _LinearLogProb(torch.autograd.Function):
    """Gradient of logp: onehot − p. Gradient of the entropy: −p (log p + H).

    The last chunk and the weight in half precision stay for the backward pass, which would begin by making them again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        target: Tensor,
        temperature: float,
        asked: tuple[bool, bool],
        dtype: torch.dtype,
        rows: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        entropy, collision = asked
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        logp = torch.empty(len(target), dtype=wide, device=hidden.device)
        lse, ent, pairs = torch.empty_like(logp), torch.zeros_like(logp), torch.zeros_like(logp)
        scratch = Scratch()

        def read(tokens: slice, z: Tensor) -> None:  # a scope of its own: nothing of a piece outlives it
            chosen = z.gather(1, target[tokens, None])[:, 0]
            e, total, lse[tokens] = _summed(z, scratch)
            logp[tokens] = chosen - lse[tokens]
            if entropy:
                ent[tokens] = total.log() - z.mul_(e).sum(1) / total
            if collision:
                pairs[tokens] = e.square_().sum(1).log() - 2 * total.log()

        with torch.autocast(hidden.device.type, enabled=False):
            h, w = hidden.to(dtype), None if weight is None else weight.to(dtype)
            ctx.last = (None, None)
            for chunk in chunks_of(h, w, rows):
                for tokens, own in chunk.pieces():
                    read(tokens, chunk.read(own, bias, temperature, scratch))
                if chunk.at.stop == len(target) and any(ctx.needs_input_grad) and chunk.stays:
                    ctx.last = (chunk, w)
                del chunk  # before the next one is made
        ctx.save_for_backward(hidden, weight, bias, target, lse, ent)
        ctx.settings = (temperature, entropy, dtype, rows)
        ctx.mark_non_differentiable(pairs)
        return logp, ent, pairs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        hidden, weight, bias, target, lse, ent = ctx.saved_tensors
        temperature, entropy, dtype, rows = ctx.settings
        grad_logp, grad_entropy, _ = grads
        scratch = Scratch()

        def pushed(tokens: slice, z: Tensor) -> Tensor:
            log_p = z.sub_(lse[tokens, None])
            p = log_p.exp() if entropy else log_p.exp_()
            if entropy:
                at_entropy = grad_entropy[tokens, None] * p * (log_p + ent[tokens, None])
            d = p.mul_(-grad_logp[tokens, None])
            d.scatter_add_(1, target[tokens, None], grad_logp[tokens, None].to(d.dtype))
            if entropy:
                d -= at_entropy
            return d if temperature == 1.0 else d.div_(temperature)

        with torch.autocast(hidden.device.type, enabled=False):
            last, cast = ctx.last
            made = Gradients(hidden, weight, bias, ctx.needs_input_grad, dtype, lse.dtype, cast)
            chunks = chunks_of(made.h, made.w, rows, last)
            ctx.last, last = (None, None), None
            for chunk in chunks:
                for tokens, own in chunk.pieces():
                    made.put(chunk, tokens, own, pushed(tokens, chunk.read(own, bias, temperature, scratch)))
                made.add(chunk)
                del chunk
        return *made.all(), None, None, None, None, None


class _WeightedLogProb(torch.autograd.Function):
    """Gradient of Σ c logp: c (onehot − p) by the logits, made while they are there."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        target: Tensor,
        push: Tensor,
        temperature: float,
        dtype: torch.dtype,
        rows: int,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        logp = torch.empty(len(target), dtype=wide, device=hidden.device)
        c, scratch = push.to(wide), Scratch()

        def read_and_push(tokens: slice, z: Tensor) -> Tensor:
            chosen = z.gather(1, target[tokens, None])[:, 0]
            e, total, lse = _summed(z, scratch)
            logp[tokens] = chosen - lse
            at = c[tokens, None] / temperature
            return e.mul_(-at / total[:, None]).scatter_add_(1, target[tokens, None], at)

        with torch.autocast(hidden.device.type, enabled=False):
            made = Gradients(hidden, weight, bias, ctx.needs_input_grad, dtype, wide)
            for chunk in chunks_of(made.h, made.w, rows):
                for tokens, own in chunk.pieces():
                    made.put(chunk, tokens, own, read_and_push(tokens, chunk.read(own, bias, temperature, scratch)))
                made.add(chunk)
                del chunk
        ctx.grads = made.all()
        ctx.mark_non_differentiable(logp)
        return (c * logp).sum(), logp

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        made, ctx.grads = ctx.grads, None
        return *(None if g is None else g.mul_(grads[0].to(g.dtype)) for g in made), None, None, None, None, None
