"""Matching by rank over a whole step: the k-th smallest of one list with the k-th smallest of another.

This is the optimal transport between two sets of numbers for every convex cost of their difference. The lists are those
of the whole step; a row finds itself in them by a key that does not change while the step is computed, so that rounding
in the forward does not send it to its neighbour's partner.
"""

from __future__ import annotations

import torch
from torch import Tensor


def partners(x: Tensor, other: Tensor) -> Tensor:
    """For each of x [n] the number of `other` [n] that has the same rank; [n]."""
    out = torch.empty_like(other)
    out[x.argsort()] = other.sort().values
    return out


def look_up(key: Tensor, x: Tensor, *, keys: Tensor, xs: Tensor, values: Tensor) -> Tensor:
    """Which of the values [n] belongs to each of x [m]: that of the same key, among several that of the nearest x.

    key [m] and keys [n] do not change while the step is computed; x and xs do, by rounding. Rows that agree in both
    share the mean of their values. Returns [m]. Raises ValueError where there is nothing to look up in.
    """
    if not keys.numel():
        if not key.numel():
            return x
        raise ValueError("the statistics of the step hold no pair, but this batch has one")
    apart = (key.double()[:, None] - keys.double()[None, :]).abs()  # [m, n]
    same = apart <= apart.amin(1, keepdim=True) + 1e-9 * (1 + key.double().abs())[:, None]  # sums in another order
    beside = torch.where(same, (x.double()[:, None] - xs.double()[None, :]).abs(), torch.inf)
    near = (beside == beside.amin(1, keepdim=True)).to(values.dtype)
    return near @ values / near.sum(1)
