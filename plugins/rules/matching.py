"""Matching by rank over a whole step: the k-th smallest of one list with the k-th smallest of another.

This is the optimal transport between two sets of numbers for every convex cost of their difference. The lists are those
of the whole step, the lookup is by a key that does not change while the step is computed, so that rounding in the
forward cannot send a row to its neighbour's partner.
"""

from __future__ import annotations

import torch
from torch import Tensor


def partners(x: Tensor, other: Tensor) -> Tensor:
    """For each of x [n] the number of `other` [n] that has the same rank; [n]."""
    out = torch.empty_like(other)
    out[x.argsort()] = other.sort().values
    return out


def look_up(key: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """[m]: the value [n] whose key [n] is nearest to each of `key` [m]; rows with the same key share a mean value.

    Raises ValueError where there is nothing to look up in.
    """
    if not keys.numel():
        if not key.numel():
            return key
        raise ValueError("the statistics of the step hold no pair, but this batch has one")
    apart = (key.double()[:, None] - keys.double()[None, :]).abs()  # [m, n]
    near = (apart == apart.amin(1, keepdim=True)).to(values.dtype)
    return near @ values / near.sum(1)
