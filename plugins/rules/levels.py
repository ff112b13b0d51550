"""Ratios of a token, or of its whole answer: three readings of one log-ratio, and where a share of the highest lies."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

#: token: each token's own; mean: the geometric mean of the answer's tokens; product: of the whole answer
Level = Literal["token", "mean", "product"]


def at_level(log_ratio: Tensor, loss_mask: Tensor, level: str) -> Tensor:
    """The log-ratio of the token, the mean over its answer's tokens, or their sum.

    log_ratio: [batch, time] nats, 0 outside loss_mask [batch, time] bool. Returns [batch, time] nats, the same at
    every token of an answer for "mean" and "product".
    """
    if level == "token":
        return log_ratio
    whole = torch.where(loss_mask, log_ratio, 0.0).sum(1, keepdim=True)  # [batch, 1]
    if level == "mean":
        whole = whole / loss_mask.sum(1, keepdim=True).clamp(min=1)
    return whole.expand(log_ratio.shape)


def answer_mean(x: Tensor, loss_mask: Tensor) -> Tensor:
    """[batch, time]: the mean of x over the loss tokens of its answer, at each of them."""
    return at_level(x, loss_mask, "mean")


def cut_above(x: Tensor, number: int) -> Tensor:
    """A bound that the `number` largest of x (and what equals the last of them) lie above, and no other.

    x: [n]. Returns a number halfway to the next smaller one, so that rounding moves nobody across: -inf where all lie
    above it, +inf where number is 0 or x is empty.
    """
    if not x.numel() or number < 1:
        return torch.full((), torch.inf, dtype=x.dtype, device=x.device)
    last = x.topk(min(number, x.numel())).values[-1]
    below = x[x < last]
    if not below.numel():
        return torch.full((), -torch.inf, dtype=x.dtype, device=x.device)
    return (last + below.max()) / 2
