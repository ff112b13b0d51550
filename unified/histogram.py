"""How coefficients lie: counted in bins of |GC| by half decades on each side of zero, a line of coefficients.jsonl a
collected batch. Imports no torch.

Bins are numbered from the most negative to the most positive; ZERO holds exact zeros. Of `EDGES` a magnitude passes as
many as its class says: class 0 is below 0.001, class 13 is 1,000 and more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unified.disk import space_for

if TYPE_CHECKING:
    from torch import Tensor

COEFFICIENTS = "coefficients.jsonl"
EDGES = tuple(10.0 ** (k / 2) for k in range(-6, 7))
#: the bin of exact zeros; so many bins lie on each side of it
ZERO = len(EDGES) + 1
BINS = 2 * ZERO + 1
_NAME = re.compile(r"(.+)/bin/(\d+)")


def counted(values: Tensor) -> list[tuple[int, int]]:
    """(bin, how many) of every bin that holds some of the values, of any shape. What is no number is in none."""
    import torch

    values = values.detach().flatten()
    values = values[~torch.isnan(values)]
    edges = torch.tensor(EDGES, dtype=values.dtype, device=values.device)
    classes = torch.bucketize(values.abs(), edges, right=True)
    bins = ZERO + torch.sign(values).long() * (classes + 1)
    numbers = torch.bincount(bins, minlength=BINS).tolist()
    return [(i, number) for i, number in enumerate(numbers) if number]


def bin_name(metric: str, index: int) -> str:
    """What the sum of a bin is called among the sums of a collected batch."""
    return f"{metric}/bin/{index}"


def taken(metrics: dict[str, float]) -> dict[str, dict[int, int]]:
    """The bins, by metric, which are no metrics and leave them."""
    found: dict[str, dict[int, int]] = {}
    for name in [name for name in metrics if _NAME.fullmatch(name)]:
        metric, index = _NAME.fullmatch(name).groups()  # type: ignore[union-attr]
        found.setdefault(metric, {})[int(index)] = round(metrics.pop(name))
    return found


def write_coefficients(folder: Path, step: int, bins: Mapping[str, Mapping[int, int]]) -> None:
    """Add a line: {"step": ..., metric: [[bin, how many], ...]}. UserError for a full disk."""
    if not bins:
        return
    row = {"step": step, **{metric: sorted(map(list, counts.items())) for metric, counts in bins.items()}}
    with space_for(COEFFICIENTS, folder), (folder / COEFFICIENTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def sides() -> list[str]:
    """Every bin in words, in their order: "−1000 and less", ..., "−0.001 to 0", "0", "0 to 0.001", ..."""
    marks = [f"{float(f'{edge:.3g}'):g}" for edge in EDGES]
    above = [f"{low} to {high}" for low, high in pairwise(["0", *marks])]
    below = [f"−{high} to {'−' if low != '0' else ''}{low}" for low, high in pairwise(["0", *marks])]
    return [f"−{marks[-1]} and less", *reversed(below), "0", *above, f"{marks[-1]} and more"]


def is_row(row: Mapping[str, Any], metric: str) -> bool:
    """Whether a row that was read holds bins of a metric as they are written."""
    pairs = row.get(metric)
    return isinstance(pairs, list) and all(
        isinstance(p, list) and len(p) == 2 and all(type(n) is int for n in p) and 0 <= p[0] < BINS and p[1] >= 0
        for p in pairs
    )
