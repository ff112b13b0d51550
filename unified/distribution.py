"""The `logits` head: a divergence of whole next-token distributions, without ever holding [tokens, vocabulary].

A term that pushes `logits` gives a function of one chunk of logits. The head is −loss of each token, so that raising it
lowers the loss; its gradient goes through −∂loss/∂logits of the chunk. Forward and backward visit the tokens in chunks,
and the backward pass computes the logits of student and teacher again instead of keeping them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from unified.chunks import chunk_of_logits, chunk_rows
from unified.errors import PluginError, UserError
from unified.parts import Algorithm
from unified.registry import call_named
from unified.settings import Settings

#: log-probs of a chunk by the teacher: all [n, vocab], or (ids [n, k], logp [n, k]) of its k likeliest tokens
TeacherChunk = Tensor | tuple[Tensor, Tensor] | None


@dataclass(frozen=True)
class Divergence:
    """What a term that pushes `logits` computes from a chunk.

    top_k: of the teacher's likeliest tokens that are stored before learning; 0: the teacher runs beside the policy.
    stored: those of the tokens of one forward, (ids [n, k], logp [n, k]).
    """

    algorithm: Algorithm
    settings: Settings
    stored: tuple[Tensor, Tensor] | None = None

    @property
    def top_k(self) -> int:
        """How many of the teacher's likeliest tokens the function wants; 0 for all."""
        return top_k(self.algorithm, self.settings)

    @property
    def runs_teacher(self) -> bool:
        """Whether the teacher is asked in the same forward."""
        return asks_teacher(self.algorithm) and not self.top_k

    def stored_chunk(self, part: slice) -> TeacherChunk:
        """The stored log-probs of a slice of the tokens, (ids, logp); None without a teacher."""
        return None if self.stored is None else (self.stored[0][part], self.stored[1][part])

    def with_stored(self, ids: Tensor, logp: Tensor) -> Divergence:
        """The same with the stored log-probs of one forward, cut to the `top_k` that this one wants."""
        return replace(self, stored=(ids[:, : self.top_k], logp[:, : self.top_k]))

    def __call__(self, logits: Tensor, teacher: TeacherChunk) -> tuple[Tensor, Tensor | None]:
        """loss [n], and −∂loss/∂logits [n, vocab] where the function gives it. PluginError for wrong shapes."""
        name = self.algorithm.name
        assert self.algorithm.distribution is not None
        try:
            given = call_named(self.algorithm.distribution, logits=logits, teacher=teacher, settings=self.settings)
        except (UserError, PluginError):
            raise
        except Exception as error:
            raise PluginError(f"distribution of algorithm '{name}' raised {type(error).__name__}: {error}") from error
        loss, coefficient = given if isinstance(given, tuple) else (given, None)
        if not isinstance(loss, Tensor) or loss.shape != logits.shape[:1]:
            shape = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise PluginError(f"distribution of algorithm '{name}' gave a loss {shape} for logits {list(logits.shape)}")
        if coefficient is not None and coefficient.shape != logits.shape:
            raise PluginError(
                f"distribution of algorithm '{name}' gave a coefficient {list(coefficient.shape)} "
                f"for logits {list(logits.shape)}"
            )
        return loss, coefficient

    def coefficient(self, logits: Tensor, teacher: TeacherChunk) -> Tensor:
        """−∂loss/∂logits [n, vocab]: the closed form, or autograd of the loss on the detached chunk."""
        given = self(logits, teacher)[1]
        return self.slope(logits, teacher) if given is None else given

    def slope(self, logits: Tensor, teacher: TeacherChunk) -> Tensor:
        """−∂loss/∂logits [n, vocab] by autograd of the loss."""
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self(leaf, teacher)[0].sum(), leaf)
        return -slope


def asks_teacher(algorithm: Algorithm) -> bool:
    """Whether the function of the distribution names the teacher."""
    return algorithm.distribution is not None and "teacher" in inspect.signature(algorithm.distribution).parameters


def needs_teacher(algorithm: Algorithm, settings: Settings) -> bool:
    """Whether an algorithm compares the policy with a teacher: by its distribution, or on the sampled tokens."""
    read = algorithm.names_read(settings) | algorithm.names_credited(settings)
    pushes = "logits" in algorithm.aggregations(settings)
    return "teacher_logp" in read or (pushes and asks_teacher(algorithm))


def top_k(algorithm: Algorithm, settings: Settings) -> int:
    """How many of the teacher's likeliest tokens are stored before learning; 0: it runs beside the policy."""
    return int(call_named(algorithm.top_k, settings=settings)) if algorithm.top_k else 0


def divergence(
    hidden: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    function: Divergence,
    teacher: Callable[[slice], TeacherChunk],
    *,
    temperature: float = 1.0,
    dtype: torch.dtype | None = None,
    chunk_numbers: int | None = None,
) -> Tensor:
    """−loss of every token, differentiable in the student.

    Args:
        hidden: [tokens, hidden]; the logits themselves [tokens, vocab] where weight is None. weight: [vocab, hidden].
        bias: [vocab] or None.
        function: the divergence of a chunk; teacher: its log-probs of the tokens of a slice, without gradient.
        temperature: divides the logits; positive.
        dtype: of the matrix products; without, that of `hidden`.
        chunk_numbers: largest number of logits of one model held at once; see `token_logprobs`.
    Returns:
        [tokens], float32, or float64 for float64 input.
    Raises:
        PluginError: the function raised, gave a wrong shape, or a loss that is not finite.
    """
    rows = chunk_rows(hidden, weight, chunk_numbers)
    value: Tensor = _Divergence.apply(hidden, weight, bias, function, teacher, temperature, dtype or hidden.dtype, rows)
    return value


def log_prob_chunks(
    hidden: Tensor, weight: Tensor | None, bias: Tensor | None, temperature: float, dtype: torch.dtype | None = None
) -> Callable[[slice], Tensor]:
    """A function from a slice of the tokens to their log-probs [n, vocab], without gradient; see `divergence`."""
    dtype = dtype or hidden.dtype
    at, matrix = hidden.detach().to(dtype), None if weight is None else weight.detach().to(dtype)

    @torch.no_grad()
    def chunk(part: slice) -> Tensor:
        with torch.autocast(at.device.type, enabled=False):
            return chunk_of_logits(at[part], matrix, bias, temperature).log_softmax(-1)

    return chunk


def likeliest(
    chunks: Callable[[slice], Tensor], tokens: int, k: int, *, chunk_tokens: int = 64
) -> tuple[Tensor, Tensor]:
    """(ids, log-probs), each [tokens, k], of the k likeliest tokens of every distribution, likeliest first."""
    logp = (chunks(slice(i, i + chunk_tokens)) for i in range(0, max(tokens, 1), chunk_tokens))
    found = [x.topk(min(k, x.shape[1]), -1) for x in logp]
    return torch.cat([f.indices for f in found]), torch.cat([f.values for f in found])


class _Divergence(torch.autograd.Function):
    """Gradient of the head by the logits: the function's coefficient."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor | None, bias: Tensor | None, function: Divergence,
        teacher: Callable[[slice], TeacherChunk], temperature: float, dtype: torch.dtype, rows: int,
    ) -> Tensor:  # fmt: skip
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        value = torch.empty(len(hidden), dtype=wide, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            h, w = hidden.to(dtype), None if weight is None else weight.to(dtype)
            for start in range(0, len(hidden), rows):
                part = slice(start, start + rows)
                value[part] = -function(chunk_of_logits(h[part], w, bias, temperature), teacher(part))[0]
        if not torch.isfinite(value).all():
            raise PluginError(f"distribution of algorithm '{function.algorithm.name}' gave a loss that is not finite")
        ctx.save_for_backward(hidden, weight, bias)
        ctx.settings = (function, teacher, temperature, dtype, rows)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        hidden, weight, bias = ctx.saved_tensors
        function, teacher, temperature, dtype, rows = ctx.settings
        grad_h = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_w = grad_b = None
        if weight is not None and ctx.needs_input_grad[1]:
            grad_w = torch.zeros(weight.shape, dtype=grad.dtype, device=weight.device)
        if bias is not None and ctx.needs_input_grad[2]:
            grad_b = torch.zeros_like(bias, dtype=grad.dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            h, w = hidden.to(dtype), None if weight is None else weight.to(dtype)
            for start in range(0, len(hidden), rows):
                part = slice(start, start + rows)
                z = chunk_of_logits(h[part], w, bias, temperature)
                d = function.coefficient(z, teacher(part)) * (grad[part, None] / temperature)  # [chunk, vocab]
                if grad_b is not None:
                    grad_b += d.sum(0)
                d = d.to(dtype)
                if grad_h is not None:
                    grad_h[part] = (d if w is None else d @ w).to(hidden.dtype)
                if grad_w is not None:
                    grad_w += (d.T @ h[part]).to(grad_w.dtype)
        grad_w = None if grad_w is None else grad_w.to(weight.dtype)
        grad_b = None if grad_b is None else grad_b.to(bias.dtype)
        return grad_h, grad_w, grad_b, None, None, None, None, None
