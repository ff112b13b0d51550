"""Curves with few points: of neighbouring rows the mean, the least and the largest, so that no peak gets lost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from unified.report.read import is_number, number

#: points of one curve at most
POINTS = 1000
#: columns of a row that say where it stands, and are no metric
PLACES = ("step", "iteration")
#: numbers of all curves of a page together, 6 to 9 bytes each: 2 MB hold them with all the rest
NUMBERS = 150_000

Row = Mapping[str, Any]


def points_for(series: int) -> int:
    """Points of one curve where a page holds so many series: `POINTS`, or fewer to keep it small (20 at least)."""
    return max(20, min(POINTS, NUMBERS // max(3 * series, 1)))


def metric_names(rows: Sequence[Row]) -> list[str]:
    """Every metric of some rows, in the order in which they appear."""
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(row))
    return [n for n in names if n not in PLACES]


def places(rows: Sequence[Row]) -> dict[str, list[float] | None]:
    """Where each row stands on the axes: its step, and tokens and seconds summed up to it; None where none has any."""
    out: dict[str, list[float] | None] = {"step": [float(row["step"]) for row in rows]}
    for axis, column in (("tokens", "tokens"), ("time", "seconds")):
        total, sums, known = 0.0, [], False
        for row in rows:
            value = row.get(column)
            if is_number(value):
                total, known = total + float(value or 0.0), True
            sums.append(total)
        out[axis] = sums if known else None
    return out


def curves(rows: Sequence[Row], *, points: int = POINTS) -> dict[str, Any]:
    """Every metric of some rows, thinned out where it has more than `points` values.

    Metrics that stand in the same rows share their axes and make a group: {"rows", "per", "axes": {"step", "tokens",
    "time"}, "series": {name: [value, ...] or {"mean", "min", "max"}}}. `per`: rows that one point is made of (the last
    may have fewer); a place on an axis is the mean of its rows. not_finite: values by metric that were NaN or infinite.
    """
    present: dict[tuple[int, ...], list[str]] = {}
    lost: dict[str, int] = {}
    for name in metric_names(rows):
        at = tuple(i for i, row in enumerate(rows) if is_number(row.get(name)))
        bad = sum(name in row and (row[name] is None or _is_not_finite(row[name])) for row in rows)
        if bad:
            lost[name] = bad
        if at:
            present.setdefault(at, []).append(name)
    where = places(rows)
    groups = [_group(rows, at, names, where, points) for at, names in present.items()]
    return {"groups": groups, "not_finite": lost}


def thinned(values: Sequence[float], per: int) -> dict[str, list[float | int]]:
    """Mean, least and largest of each `per` neighbours.

    >>> thinned([1, 5, 3, 9], 2)
    {'mean': [3, 6], 'min': [1, 3], 'max': [5, 9]}
    """
    parts = [values[i : i + per] for i in range(0, len(values), per)]
    return {
        "mean": [number(sum(p) / len(p)) for p in parts],
        "min": [number(min(p)) for p in parts],
        "max": [number(max(p)) for p in parts],
    }


def _group(
    rows: Sequence[Row], at: Sequence[int], names: Sequence[str], where: Mapping[str, list[float] | None], points: int
) -> dict[str, Any]:
    per = math.ceil(len(at) / points)
    axes: dict[str, list[float | int] | None] = {}
    for axis, values in where.items():
        axes[axis] = None if values is None else [number(v, 7) for v in _means([values[i] for i in at], per)]
    series: dict[str, Any] = {}
    for name in names:
        values = [float(rows[i][name]) for i in at]
        series[name] = [number(v) for v in values] if per == 1 else thinned(values, per)
    return {"rows": len(at), "per": per, "axes": axes, "series": series}


def _means(values: Sequence[float], per: int) -> list[float]:
    parts = [values[i : i + per] for i in range(0, len(values), per)]
    return [sum(p) / len(p) for p in parts]


def frontier(rows: Sequence[Row], *, points: int = 200) -> list[dict[str, Any]]:
    """KL to the reference against reward, where a row has both: in training, and on held-out prompts.

    Each: {"kl", "reward": names of the metrics, "per", "step", "x", "y"}, means of `per` rows a point.
    """
    out = []
    for kl, reward in (("kl", "reward"), ("eval/kl", "eval/reward")):
        both = [row for row in rows if is_number(row.get(kl)) and is_number(row.get(reward))]
        if both:
            per = math.ceil(len(both) / points)
            one: dict[str, Any] = {"kl": kl, "reward": reward, "per": per}
            for key, column in (("step", "step"), ("x", kl), ("y", reward)):
                one[key] = [number(v) for v in _means([float(row[column]) for row in both], per)]
            out.append(one)
    return out


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
