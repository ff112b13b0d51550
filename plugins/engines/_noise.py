"""Noise that is a function of (seed of the answer, number of the token), so that no batch or process has a part in it.

Source: the output function of SplitMix64, Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators",
figure 17 (the variant "Mix13" of its constants), at any place of its sequence and not in order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # the odd number next to 2^64 / golden ratio: what the state grows by
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_30, _27, _31, _11, _1 = (np.uint64(n) for n in (30, 27, 31, 11, 1))


def uniform(seeds: NDArray[np.uint64], numbers: NDArray[np.uint64]) -> NDArray[np.float64]:
    """One number in [0, 1) for each (seed, number), a multiple of 2^-53; both arguments and the result are [rows]."""
    with np.errstate(over="ignore"):  # the sums and products are meant modulo 2^64
        bits: NDArray[np.uint64] = _mix(_mix(seeds) + (numbers + _1) * _GOLDEN) >> _11
        return bits.astype(np.float64) * 2.0**-53


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection of the 64-bit numbers that changes about half of the bits where one changes."""
    x = (x ^ (x >> _30)) * _FIRST
    x = (x ^ (x >> _27)) * _SECOND
    return x ^ (x >> _31)
