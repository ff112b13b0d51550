"""Log-probs of given tokens from hidden states, without ever holding [tokens, vocabulary].

Forward and backward visit the tokens in chunks; the backward pass computes the logits of a chunk again instead of
keeping them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

#: numbers in one chunk of logits; 16 MiB in float32
CHUNK_NUMBERS = 4_194_304


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    dtype: torch.dtype | None = None,
    chunk_numbers: int = CHUNK_NUMBERS,
) -> tuple[Tensor, Tensor | None]:
    """log softmax(hidden @ weight.T + bias, divided by temperature) of the target tokens, differentiable.

    Args:
        hidden: [tokens, hidden]. weight: [vocab, hidden]. bias: [vocab] or None. target: [tokens] int.
        temperature: divides the logits; positive.
        entropy: also give the entropy of each distribution.
        dtype: of the matrix products (bfloat16 under autocast); without, that of `hidden`. Sums are at least float32.
        chunk_numbers: largest number of logits held at once.
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
    chunk_numbers: int = CHUNK_NUMBERS,
) -> Readings:
    """`token_logprobs` of shapes that fit, together with further statistics of the same chunks of logits.

    Without a weight `hidden` holds the logits themselves, [tokens, vocab]. collision: also give log Σ p².
    """
    rows = max(1, chunk_numbers // (hidden.shape[1] if weight is None else weight.shape[0]))
    asked = (entropy, collision)
    return Readings(
        *_LinearLogProb.apply(hidden, weight, bias, target, temperature, asked, dtype or hidden.dtype, rows)
    )


def weighted_logprob(
    hidden: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    target: Tensor,
    push: Tensor,
    *,
    temperature: float = 1.0,
    dtype: torch.dtype | None = None,
    chunk_numbers: int = CHUNK_NUMBERS,
) -> tuple[Tensor, Tensor]:
    """Σ push · logp of `read_distribution`, for pushes that are known before: logits are computed once, not twice.

    The gradient is made with each chunk of logits, in the forward pass, and only scaled in the backward pass.

    Args:
        push: [tokens], what stands before the gradient of each logp; the others as in `read_distribution`.
    Returns:
        The sum, differentiable, and logp [tokens] in nats without gradient.
    """
    rows = max(1, chunk_numbers // (hidden.shape[1] if weight is None else weight.shape[0]))
    total, logp = _WeightedLogProb.apply(hidden, weight, bias, target, push, temperature, dtype or hidden.dtype, rows)
    return total, logp


def chunk_of_logits(hidden: Tensor, weight: Tensor | None, bias: Tensor | None, temperature: float) -> Tensor:
    """[chunk, vocab] logits over temperature, in float32 or float64; without a weight `hidden` holds the logits."""
    z = hidden if weight is None else hidden @ weight.T
    z = z.float() if z.dtype in (torch.bfloat16, torch.float16) else z
    if bias is not None:
        z = z + bias.to(z.dtype)
    return z if temperature == 1.0 else z / temperature


class _LinearLogProb(torch.autograd.Function):
    """Gradient of logp: onehot − p. Gradient of the entropy: −p (log p + H)."""

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
        with torch.autocast(hidden.device.type, enabled=False):
            h, w = hidden.to(dtype), None if weight is None else weight.to(dtype)
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            logp = torch.empty(len(target), dtype=wide, device=hidden.device)
            lse, ent, pairs = torch.empty_like(logp), torch.zeros_like(logp), torch.zeros_like(logp)
            for start in range(0, len(target), rows):
                part = slice(start, start + rows)
                z = chunk_of_logits(h[part], w, bias, temperature)
                lse[part] = z.logsumexp(1)
                logp[part] = z.gather(1, target[part, None])[:, 0] - lse[part]
                if entropy:
                    ent[part] = lse[part] - (z.sub(lse[part, None]).exp() * z).sum(1)
                if collision:
                    pairs[part] = (2 * z).logsumexp(1) - 2 * lse[part]
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
        with torch.autocast(hidden.device.type, enabled=False):
            h, w = hidden.to(dtype), None if weight is None else weight.to(dtype)
            grad_h = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
            grad_w = (
                torch.zeros(weight.shape, dtype=lse.dtype, device=weight.device) if ctx.needs_input_grad[1] else None
            )
            grad_b = torch.zeros_like(bias, dtype=lse.dtype) if bias is not None and ctx.needs_input_grad[2] else None
            for start in range(0, len(target), rows):
                part = slice(start, start + rows)
                z = chunk_of_logits(h[part], w, bias, temperature)
                log_p = z - lse[part, None] if w is None else z.sub_(lse[part, None])
                p = log_p.exp()
                d = p * -grad_logp[part, None]
                d.scatter_add_(1, target[part, None], grad_logp[part, None].to(d.dtype))
                if entropy:
                    d -= grad_entropy[part, None] * p * (log_p + ent[part, None])
                d = d / temperature
                if grad_b is not None:
                    grad_b += d.sum(0)
                d = d.to(dtype)
                if grad_h is not None:
                    grad_h[part] = (d if w is None else d @ w).to(hidden.dtype)
                if grad_w is not None:
                    grad_w += (d.T @ h[part]).to(grad_w.dtype)
        grad_b = None if grad_b is None else grad_b.to(bias.dtype)
        grad_w = None if grad_w is None else grad_w.to(weight.dtype)
        return grad_h, grad_w, grad_b, None, None, None, None, None


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
        with torch.autocast(hidden.device.type, enabled=False):
            h, w = hidden.to(dtype), None if weight is None else weight.to(dtype)
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            logp = torch.empty(len(target), dtype=wide, device=hidden.device)
            c = push.to(wide)
            grad_h = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
            grad_w = (
                torch.zeros(w.shape, dtype=wide, device=w.device) if ctx.needs_input_grad[1] and w is not None else None
            )
            grad_b = torch.zeros_like(bias, dtype=wide) if bias is not None and ctx.needs_input_grad[2] else None
            for start in range(0, len(target), rows):
                part = slice(start, start + rows)
                z = chunk_of_logits(h[part], w, bias, temperature)
                lse = z.logsumexp(1)
                logp[part] = z.gather(1, target[part, None])[:, 0] - lse
                p = z.sub(lse[:, None]).exp_() if w is None else z.sub_(lse[:, None]).exp_()
                d = p.mul_(-c[part, None] / temperature)
                d.scatter_add_(1, target[part, None], (c[part, None] / temperature).to(d.dtype))
                if grad_b is not None:
                    grad_b += d.sum(0)
                d = d.to(dtype)
                if grad_h is not None:
                    grad_h[part] = (d if w is None else d @ w).to(hidden.dtype)
                if grad_w is not None:
                    grad_w += (d.T @ h[part]).to(wide)
        ctx.grads = (
            grad_h,
            None if grad_w is None or weight is None else grad_w.to(weight.dtype),
            None if grad_b is None or bias is None else grad_b.to(bias.dtype),
        )
        ctx.mark_non_differentiable(logp)
        return (c * logp).sum(), logp

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        made, ctx.grads = ctx.grads, None
        return *(None if g is None else g.mul_(grads[0].to(g.dtype)) for g in made), None, None, None, None, None
