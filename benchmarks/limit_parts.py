"""Pieces of the hand-written loop: packed attention, log-probs by chunks, and sampling with a preallocated cache.

Plain torch around a transformers model, which takes both attention functions by name. No part of `unified` is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from benchmarks.cases import Case

#: rows of one chunk of logits
CHUNK = 1024


def packed_attention(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **kw: Any) -> tuple[Tensor, None]:
    """Causal attention of each row of a stream, [1, heads, tokens, width]; `lengths` of the rows."""
    lengths, scale = kw["lengths"], kw.get("scaling")
    parts = zip(q.split(lengths, 2), k.split(lengths, 2), v.split(lengths, 2), strict=True)
    found = [F.scaled_dot_product_attention(*part, is_causal=True, scale=scale) for part in parts]
    cache = kw.get("cache")
    if cache is not None:
        cache.fill(module.layer_idx, k.split(lengths, 2), v.split(lengths, 2))
    return torch.cat(found, 2).transpose(1, 2), None


def single_attention(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **kw: Any) -> tuple[Tensor, None]:
    """One query per row against the cache, [rows, heads, 1, width]."""
    keys, values = kw["cache"].put(module.layer_idx, k, v)
    rows, heads, _, width = q.shape
    bias, seen = kw["bias"], kw["bias"].shape[1]
    flat = (rows * heads, -1, width)
    scores = torch.bmm(keys.view(flat)[:, :seen], q.reshape(rows * heads, width, 1)).mul_(kw["scaling"])
    weights = torch.softmax(scores.view(rows, heads, seen) + bias[:, None], 2)
    out = torch.bmm(weights.view(rows * heads, 1, seen), values.view(flat)[:, :seen])
    return out.view(rows, 1, heads, width), None


for _name, _function in (("bench_packed", packed_attention), ("bench_single", single_attention)):
    AttentionInterface.register(_name, _function)
    AttentionMaskInterface.register(_name, lambda *args, **kwargs: None)


class Cache:
    """Keys and values of rows, [rows, heads, longest, width] per layer."""

    def __init__(self, config: Any, rows: int, longest: int, copies: int, dtype: torch.dtype) -> None:
        heads, width = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
        shape = (rows, heads, longest, width)
        self.keys = [torch.zeros(shape, dtype=dtype) for _ in range(config.num_hidden_layers)]
        self.values = [torch.zeros(shape, dtype=dtype) for _ in range(config.num_hidden_layers)]
        self.copies, self.row, self.at = copies, torch.arange(rows), torch.zeros(rows, dtype=torch.long)

    def fill(self, layer: int, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """The prompts', each copied to its rows."""
        for i, (k, v) in enumerate(zip(keys, values, strict=True)):
            own = slice(i * self.copies, (i + 1) * self.copies)
            self.keys[layer][own, :, : k.shape[2]] = k
            self.values[layer][own, :, : v.shape[2]] = v

    def put(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """One token of every row."""
        self.keys[layer][self.row, :, self.at] = k[:, :, 0].to(self.keys[layer].dtype)
        self.values[layer][self.row, :, self.at] = v[:, :, 0].to(self.values[layer].dtype)
        return self.keys[layer], self.values[layer]

    def keep(self, index: Tensor) -> None:
        """Only these rows."""
        self.keys, self.values = ([x.index_select(0, index) for x in y] for y in (self.keys, self.values))
        self.row = torch.arange(len(index))


@torch.no_grad()
def sample(
    model: Any, prompts: list[list[int]], copies: int, new: int, ends: Sequence[int]
) -> list[tuple[list[int], Tensor]]:
    """`copies` answers of at most `new` tokens to each prompt with their log-probs; prompts are read once each."""
    lengths = [len(p) for p in prompts]
    rows = len(prompts) * copies
    cache = Cache(model.config, rows, max(lengths) + new, copies, model.dtype)
    hidden = stream(model, [t for p in prompts for t in p], lengths, cache=cache)
    hidden = hidden[torch.tensor(lengths).cumsum(0) - 1].repeat_interleave(copies, 0)
    at = torch.tensor(lengths).repeat_interleave(copies)
    tokens, logp = torch.zeros(rows, new, dtype=torch.long), torch.zeros(rows, new)
    count, live, alive = torch.zeros(rows, dtype=torch.long), torch.arange(rows), torch.ones(rows, dtype=torch.bool)
    end = torch.tensor(list(ends))
    model.config._attn_implementation = "bench_single"
    for t in range(new):
        z = model.lm_head(hidden).float()
        log_all = z.logsumexp(-1, keepdim=True)
        token = ((z - log_all).exp() / torch.empty_like(z).exponential_()).argmax(-1)
        tokens[live, t], logp[live, t] = token, (z.gather(1, token[:, None]) - log_all)[:, 0]
        count[live] += alive
        alive = alive & ~torch.isin(token, end)
        number = int(alive.sum())
        if number == 0 or t == new - 1:
            break
        if number <= 0.75 * len(live):
            index = alive.nonzero()[:, 0]
            live, at, token, alive = live[index], at[index], token[index], alive[index]
            cache.keep(index)
        cache.at = at
        bias = torch.zeros(len(live), int(at.max()) + 1, dtype=model.dtype)
        bias.masked_fill_(torch.arange(bias.shape[1]) > at[:, None], -torch.inf)
        inputs = {"input_ids": token[:, None], "position_ids": at[:, None], "use_cache": False}
        hidden = model.model(**inputs, cache=cache, bias=bias).last_hidden_state[:, 0]
        at = at + 1
    numbers = count.tolist()
    return [(tokens[i, :n].tolist(), logp[i, :n]) for i, n in enumerate(numbers)]


def stream(model: Any, ids: list[int], lengths: list[int], **more: Any) -> Tensor:
    """Hidden states [tokens, hidden] of rows one behind the other."""
    model.config._attn_implementation = "bench_packed"
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    inputs = {"input_ids": torch.tensor(ids)[None], "position_ids": positions, "use_cache": False}
    return model.model(**inputs, lengths=lengths, **more).last_hidden_state[0]


class LogProb(torch.autograd.Function):
    """log softmax(h wᵀ)[target], chunk by chunk; the backward pass makes the logits again."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, w: Tensor, target: Tensor) -> Tensor:
        low = w.to(h.dtype)
        out, total = torch.empty(len(h)), torch.empty(len(h))
        for start in range(0, len(h), CHUNK):
            at = slice(start, start + CHUNK)
            z = (h[at] @ low.T).float()
            total[at] = z.logsumexp(1)
            out[at] = z.gather(1, target[at, None])[:, 0] - total[at]
        ctx.save_for_backward(h, w, target, total)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        h, w, target, total = ctx.saved_tensors
        low, dh, dw = w.to(h.dtype), torch.empty_like(h), torch.zeros_like(w)
        for start in range(0, len(h), CHUNK):
            at = slice(start, start + CHUNK)
            z = (h[at] @ low.T).float().sub_(total[at, None]).exp_().mul_(-grad[at, None])
            z.scatter_add_(1, target[at, None], grad[at, None])
            z = z.to(h.dtype)
            dh[at] = z @ low
            dw += z.T @ h[at]
        return dh, dw, None


class KnownPush(torch.autograd.Function):
    """-Σ coefficient · log p, with coefficients known before: both gradients are made in the forward pass."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, w: Tensor, target: Tensor, push: Tensor) -> Tensor:
        low, dh, dw = w.to(h.dtype), torch.empty_like(h), torch.zeros_like(w)
        loss = h.new_zeros((), dtype=torch.float32)
        for start in range(0, len(h), CHUNK):
            at = slice(start, start + CHUNK)
            z = (h[at] @ low.T).float()
            total = z.logsumexp(1, keepdim=True)
            loss -= (push[at] * (z.gather(1, target[at, None]) - total)[:, 0]).sum()
            z.sub_(total).exp_().mul_(push[at, None]).scatter_add_(1, target[at, None], -push[at, None])
            z = z.to(h.dtype)
            dh[at] = z @ low
            dw += z.T @ h[at]
        ctx.save_for_backward(dh, dw)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        dh, dw = ctx.saved_tensors
        return dh * grad.to(dh.dtype), dw * grad, None, None


def logprob_step(case: Case, objective: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> Callable[[], int]:
    """Forward and backward of Σ push · logp of `rows` tokens, objective(hidden, weight, target, push); the tokens."""
    vocabulary, hidden = case.size[:2]
    g = torch.Generator().manual_seed(case.seed)
    h = torch.randn(case.rows, hidden, generator=g)
    w = torch.nn.Parameter(torch.randn(vocabulary, hidden, generator=g) * 0.05)
    target = torch.randint(0, vocabulary, (case.rows,), generator=g)
    push = torch.randn(case.rows, generator=g) / case.rows

    def step() -> int:
        w.grad = None
        at = h.clone().requires_grad_()
        objective(at, w, target, push).backward()
        return case.rows

    return step
