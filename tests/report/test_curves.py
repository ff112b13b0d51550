"""Curves are thinned out so that nothing is lost but points: means, extremes and places, worked by hand."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unified.report.curves import NUMBERS, curves, frontier, places, points_for, thinned
from unified.report.names import missing, section_of, unit_of


def test_three_neighbours_become_their_mean_with_their_least_and_largest() -> None:
    # (1 + 5 + 3) / 3 = 3 between 1 and 5; of the last two, (9 + 0) / 2 = 4.5 between 0 and 9
    assert thinned([1, 5, 3, 9, 0], 3) == {"mean": [3, 4.5], "min": [1, 0], "max": [5, 9]}


def test_a_point_stands_at_the_mean_place_of_its_rows() -> None:
    rows = [{"step": s, "tokens": 10.0, "seconds": 0.5, "loss": float(s)} for s in (1, 2, 3, 4)]
    (group,) = (g for g in curves(rows, points=2)["groups"] if "loss" in g["series"])
    # steps 1, 2 and 3, 4; tokens 10, 20 and 30, 40; seconds 0.5, 1 and 1.5, 2
    assert group["axes"] == {"step": [1.5, 3.5], "tokens": [15, 35], "time": [0.75, 1.75]}
    assert group["series"]["loss"] == {"mean": [1.5, 3.5], "min": [1, 3], "max": [2, 4]}
    assert (group["per"], group["rows"]) == (2, 4)


def test_as_many_values_as_points_stay_as_they_are() -> None:
    (group,) = curves([{"step": s, "loss": s / 4} for s in (1, 2, 3)], points=3)["groups"]
    assert group["series"] == {"loss": [0.25, 0.5, 0.75]}
    assert group["per"] == 1


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(1, 40))
def test_the_extremes_of_a_thinned_curve_are_those_of_all_rows_and_no_mean_is_outside(
    values: list[float], per: int
) -> None:
    thin = thinned(values, per)
    assert min(thin["min"]) == pytest.approx(min(values), rel=1e-4)
    assert max(thin["max"]) == pytest.approx(max(values), rel=1e-4)
    slack = 1e-4 * max(map(abs, values))
    assert all(a - slack <= m <= b + slack for a, m, b in zip(thin["min"], thin["mean"], thin["max"], strict=True))
    assert len(thin["mean"]) == math.ceil(len(values) / per)


def test_one_peak_in_ten_thousand_rows_is_still_there() -> None:
    rows = [{"step": s, "grad_norm": 1000.0 if s == 7777 else 1.0} for s in range(1, 10_001)]
    (group,) = curves(rows)["groups"]
    assert max(group["series"]["grad_norm"]["max"]) == 1000
    assert len(group["series"]["grad_norm"]["mean"]) <= 1000


def test_a_metric_that_is_measured_seldom_is_not_thinned_out_with_the_others() -> None:
    rows = [{"step": s, "loss": 0.1} | ({"eval/loss": s / 8} if s % 4 == 0 else {}) for s in range(1, 13)]
    series = {name: group for group in curves(rows, points=6)["groups"] for name in group["series"]}
    assert series["loss"]["per"] == 2
    assert series["eval/loss"]["series"]["eval/loss"] == [0.5, 1, 1.5]
    assert series["eval/loss"]["axes"]["step"] == [4, 8, 12]


def test_values_that_are_not_finite_are_left_out_and_counted() -> None:
    rows = [
        {"step": 1, "loss": None},
        {"step": 2, "loss": math.nan},
        {"step": 3, "loss": math.inf},
        {"step": 4, "loss": 2},
    ]
    found = curves(rows)
    assert found["not_finite"] == {"loss": 3}
    assert found["groups"][0]["series"] == {"loss": [2]}


def test_an_axis_that_no_row_measures_is_none_and_an_evaluation_stands_where_the_step_before_it_ended() -> None:
    rows = [{"step": 1, "seconds": 2.0}, {"step": 2, "seconds": 3.0}, {"step": 2, "eval/loss": 1.0}]
    assert places(rows) == {"step": [1, 2, 2], "tokens": None, "time": [2, 5, 5]}


def test_a_frontier_takes_only_rows_that_have_both_and_is_thinned_by_means() -> None:
    rows = [{"step": s, "kl": float(s), "reward": 2.0 * s} for s in (1, 2, 3, 4)] + [{"step": 5, "kl": 9.0}]
    assert frontier(rows, points=2) == [
        {"kl": "kl", "reward": "reward", "per": 2, "step": [1.5, 3.5], "x": [1.5, 3.5], "y": [3, 7]}
    ]
    assert frontier([{"step": 1, "kl": 1.0}]) == []


def test_points_get_fewer_so_that_all_curves_of_a_page_together_stay_under_the_limit() -> None:
    assert points_for(10) == 1000
    for series in (60, 200, 900):
        assert 3 * series * points_for(series) <= NUMBERS
    assert points_for(100_000) == 20  # fewer would be no curve


def test_metrics_are_sorted_under_headings_and_have_their_units() -> None:
    named = {"reward": "Reward and accuracy", "eval/kl": "KL", "policy_kl": "KL", "gc_value/abs": "Coefficients",
             "completions/clipped_ratio": "Lengths, entropy, clipping",
             "tokens_per_second": "Speed", "grad_norm": "Loss and optimiser", "nonfinite/loss": "Left out",
             "eval/answers": "Other"}  # fmt: skip
    assert {name: section_of(name) for name in named} == named
    units = {"kl": "nats per token", "eval/kl": "nats per answer", "completions/mean_length": "tokens", "loss": ""}
    assert {name: unit_of(name) for name in units} == units


def test_what_was_not_measured_is_named() -> None:
    assert ["KL", "KL"] in missing(["loss", "reward"])
    assert [what for what, _ in missing(["kl", "reward", "gc/abs", "length", "clip_ratio", "entropy"])] == []


def test_thinning_does_not_depend_on_chance() -> None:
    order = random.Random(0)
    rows = [{"step": s, "loss": order.random()} for s in range(1, 5001)]
    assert curves(rows) == curves(list(rows))
