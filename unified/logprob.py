"""Log-probs of given tokens from hidden states, without ever holding [tokens, vocabulary].

Forward and backward visit the tokens in chunks; the backward pass computes the logits of all but the last chunk again
instead of keeping them. On a GPU kernels of another package may do the same: see `fused_logprob`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from unified.fused_logprob import Fused, applies, fused_push, fused_read, trusted

#: numbers in one chunk of logits on a CPU, and on other devices: a product of fewer than some 300 tokens waits for the
#: head's weight there (989 TFLOP/s and 3.35 TB/s, NVIDIA H100 data sheet, 2023)
CHUNK_NUMBERS, CHUNK_ELSEWHERE = 16_777_216, 67_108_864
#: numbers of it that are read at a time on a CPU, 4 MiB in float32, and of a product that is added to a gradient
PIECE_NUMBERS = 1_048_576


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


def chunk_rows(hidden: Tensor, weight: Tensor | None, numbers: int | None = None) -> int:
    """Tokens of one chunk of at most so many logits; without a number, of what is kept for the device."""
    if numbers is None:
        numbers = CHUNK_NUMBERS if hidden.device.type == "cpu" else CHUNK_ELSEWHERE
    return max(1, numbers // (hidden.shape[1] if weight is None else weight.shape[0]))


def chunk_of_logits(hidden: Tensor, weight: Tensor | None, bias: Tensor | None, temperature: float) -> Tensor:
    """[chunk, vocab] logits over temperature, in float32 or float64; without a weight `hidden` holds the logits."""
    z = hidden if weight is None else hidden @ weight.T
    z = z.float() if z.dtype in (torch.bfloat16, torch.float16) else z
    if bias is not None:
        z = z + bias.to(z.dtype)
    return z if temperature == 1.0 else z / temperature


class _Chunk:
    """Logits of some tokens in the type of the product, which are read, and replaced by their gradients, in pieces.

    A product of many tokens reads the weight once for all of them; what is made of each logit in float32 is small
    enough for a cache.
    """

    def __init__(self, at: slice, logits: Tensor, *, given: bool) -> None:
        self.at, self.logits, self.given = at, logits, given

    def pieces(self) -> Iterator[tuple[slice, slice]]:
        """(tokens among all, tokens of the chunk)."""
        rows, vocab = self.logits.shape
        step = max(1, PIECE_NUMBERS // vocab) if self.logits.device.type == "cpu" else rows
        for start in range(0, rows, step):
            own = slice(start, min(start + step, rows))
            yield slice(self.at.start + own.start, self.at.start + own.stop), own

    @property
    def is_read_in_place(self) -> bool:
        """Whether its logits are spoiled, or are not its own, when they have been read."""
        return self.given or self.logits.dtype not in (torch.bfloat16, torch.float16)

    def read(self, own: slice, bias: Tensor | None, temperature: float) -> Tensor:
        """[piece, vocab] logits over temperature in float32 or float64, to be changed at will."""
        z = self.logits[own]
        z = z.float() if z.dtype in (torch.bfloat16, torch.float16) else z.clone() if self.given else z
        if bias is not None:
            z += bias.to(z.dtype)
        return z if temperature == 1.0 else z.div_(temperature)


def _chunks(h: Tensor, w: Tensor | None, rows: int, last: _Chunk | None = None) -> Iterator[_Chunk]:
    """Of all tokens, `last` first, which is there; without a weight `h` holds the logits, which stay as they are."""
    end = len(h)
    if last is not None:
        end = last.at.start
        yield last
        last = None
    for start in range(0, end, rows):
        at = slice(start, min(start + rows, end))
        yield _Chunk(at, h[at] if w is None else h[at] @ w.T, given=w is None)


class _Gradients:
    """Gradients of what the logits are made of, gathered chunk by chunk; None where nobody asks for one."""

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        needed: tuple[bool, ...],
        dtype: torch.dtype,
        wide: torch.dtype,
    ) -> None:
        self.likes = (hidden, weight, bias)
        self.h, self.w = hidden.to(dtype), None if weight is None else weight.to(dtype)
        self.hidden = torch.empty_like(hidden) if needed[0] else None
        self.weight = None if weight is None or not needed[1] else torch.empty_like(weight, dtype=wide)
        self.bias = None if bias is None or not needed[2] else torch.zeros_like(bias, dtype=wide)
        self.fresh = True  # nothing stands in the weight's gradient
        if self.weight is not None and not len(hidden):
            self.weight.zero_()

    def put(self, chunk: _Chunk, tokens: slice, own: slice, d: Tensor) -> None:
        """d: [piece, vocab], the gradient of a piece's logits, which takes their place."""
        if self.bias is not None:
            self.bias += d.sum(0)
        if not chunk.given:
            chunk.logits[own] = d
        elif self.hidden is not None:
            self.hidden[tokens] = d.to(self.hidden.dtype)

    def add(self, chunk: _Chunk) -> None:
        """What follows from a chunk whose pieces have all been put."""
        if self.w is None:
            return
        if self.hidden is not None:
            self.hidden[chunk.at] = (chunk.logits @ self.w).to(self.hidden.dtype)
        if self.weight is not None:
            _add_product(self.weight, chunk.logits, self.h[chunk.at], first=self.fresh)
            self.fresh = False

    def all(self) -> tuple[Tensor | None, ...]:
        """Of hidden states, weight and bias, in the types of these."""
        made = (self.hidden, self.weight, self.bias)
        return tuple(
            None if g is None or like is None else g.to(like.dtype) for g, like in zip(made, self.likes, strict=True)
        )


def _add_product(total: Tensor, d: Tensor, h: Tensor, *, first: bool) -> None:
    """total [vocab, hidden] += d.T @ h, or = for the first, in parts: the product beside the total stays small."""
    words = chunk_rows(h, None, PIECE_NUMBERS if h.device.type == "cpu" else CHUNK_ELSEWHERE)
    for start in range(0, len(total), words):
        part = slice(start, start + words)
        if total.dtype == h.dtype:
            total[part].addmm_(d[:, part].T, h, beta=0 if first else 1)
        elif first:
            total[part] = d[:, part].T @ h
        else:
            total[part] += d[:, part].T @ h


def _summed(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """z [piece, vocab] becomes z less its largest; gives exp of that, its sum, and log Σ exp(z), [piece] each."""
    top = z.amax(1, keepdim=True)
    e = z.sub_(top).exp()
    total = e.sum(1)
    return e, total, top[:, 0] + total.log()


class _LinearLogProb(torch.autograd.Function):
    """Gradient of logp: onehot − p. Gradient of the entropy: −p (log p + H).

    The last chunk in half precision stays for the backward pass, which begins with it and would make one as large.
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

        def read(tokens: slice, z: Tensor) -> None:  # a scope of its own: nothing of a piece outlives it
            chosen = z.gather(1, target[tokens, None])[:, 0]
            e, total, lse[tokens] = _summed(z)
            logp[tokens] = chosen - lse[tokens]
            if entropy:
                ent[tokens] = total.log() - z.mul_(e).sum(1) / total
            if collision:
                pairs[tokens] = e.square_().sum(1).log() - 2 * total.log()

        with torch.autocast(hidden.device.type, enabled=False):
            h, w = hidden.to(dtype), None if weight is None else weight.to(dtype)
            ctx.last = None
            for chunk in _chunks(h, w, rows):
                for tokens, own in chunk.pieces():
                    read(tokens, chunk.read(own, bias, temperature))
                if chunk.at.stop == len(target) and any(ctx.needs_input_grad) and not chunk.is_read_in_place:
                    ctx.last = chunk
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
            made = _Gradients(hidden, weight, bias, ctx.needs_input_grad, dtype, lse.dtype)
            chunks = _chunks(made.h, made.w, rows, ctx.last)
            ctx.last = None
            for chunk in chunks:
                for tokens, own in chunk.pieces():
                    made.put(chunk, tokens, own, pushed(tokens, chunk.read(own, bias, temperature)))
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
        c = push.to(wide)

        def read_and_push(tokens: slice, z: Tensor) -> Tensor:
            chosen = z.gather(1, target[tokens, None])[:, 0]
            e, total, lse = _summed(z)
            logp[tokens] = chosen - lse
            at = c[tokens, None] / temperature
            return e.mul_(-at / total[:, None]).scatter_add_(1, target[tokens, None], at)

        with torch.autocast(hidden.device.type, enabled=False):
            made = _Gradients(hidden, weight, bias, ctx.needs_input_grad, dtype, wide)
            for chunk in _chunks(made.h, made.w, rows):
                for tokens, own in chunk.pieces():
                    made.put(chunk, tokens, own, read_and_push(tokens, chunk.read(own, bias, temperature)))
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
