"""Coefficients in bins: half decades of |GC| on each side of zero, and a line for each collected batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from unified.histogram import (
    BINS,
    COEFFICIENTS,
    EDGES,
    ZERO,
    bin_name,
    counted,
    is_row,
    sides,
    taken,
    write_coefficients,
)


def bin_of(value: float) -> int:
    ((index, number),) = counted(torch.tensor([value], dtype=torch.float64))
    assert number == 1
    return index


def test_bins_are_half_decades_on_each_side_of_exact_zero() -> None:
    assert [round(edge, 5) for edge in EDGES[:3]] == [0.001, 0.00316, 0.01]
    assert bin_of(0.0) == ZERO
    # 1 is the 7th edge (10^-3, 10^-2.5, ... 10^0), and passed by itself: class 7
    assert (bin_of(1.0), bin_of(0.99), bin_of(3.1), bin_of(3.2)) == (ZERO + 8, ZERO + 7, ZERO + 8, ZERO + 9)
    assert bin_of(1e-30) == ZERO + 1
    assert bin_of(float("inf")) == BINS - 1
    assert sides()[bin_of(0.5)] == "0.316 to 1"
    assert sides()[bin_of(-2.0)] == "−3.16 to −1"
    assert len(sides()) == len(set(sides())) == BINS


@pytest.mark.parametrize("value", [1e-9, 0.001, 0.5, 1.0, 42.0, 5e4])
def test_the_bin_of_the_opposite_lies_on_the_other_side_of_zero(value: float) -> None:
    assert bin_of(-value) == 2 * ZERO - bin_of(value)


def test_every_number_is_counted_once_and_what_is_no_number_in_no_bin() -> None:
    values = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) * 10
    values[0, 0] = float("nan")
    assert sum(number for _, number in counted(values)) == 149
    assert counted(torch.zeros(0)) == []


def test_bins_leave_the_metrics_and_stand_in_a_line_of_their_own(tmp_path: Path) -> None:
    metrics = {"loss": 0.5, bin_name("gc", 9): 4.0, bin_name("a/gc_value", 14): 2.0, bin_name("gc", 8): 1.0}
    bins = taken(metrics)
    assert metrics == {"loss": 0.5}
    write_coefficients(tmp_path, 7, bins)
    write_coefficients(tmp_path, 8, {})  # a batch that pushed nothing has no line
    (row,) = map(json.loads, (tmp_path / COEFFICIENTS).read_text().splitlines())
    assert row == {"step": 7, "gc": [[8, 1], [9, 4]], "a/gc_value": [[14, 2]]}
    assert is_row(row, "gc")


@pytest.mark.parametrize("wrong", [None, 3, [1], [[1]], [[1, "2"]], [[BINS, 1]], [[1, -1]], [[True, 1]]])
def test_what_is_no_list_of_bins_is_known(wrong: object) -> None:
    assert not is_row({"gc": wrong}, "gc")
