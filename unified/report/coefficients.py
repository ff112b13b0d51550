"""The bins of coefficients through time: neighbouring rows added up, and shares of each sum."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unified.histogram import is_row
from unified.report.read import read_metrics

#: shares are whole numbers of so many parts
PARTS = 1000


def read_coefficients(path: Path, *, columns: int) -> tuple[list[dict[str, Any]], int]:
    """Of every metric of a coefficients.jsonl at most `columns` histograms through time, and lines that are unreadable.

    Each: {"name", "first": steps, "last": steps, "numbers": tokens, "shares": [[bin, thousandths, bin, ...], ...]}; a
    share that is not 0 is 1 at least.
    """
    found = read_metrics(path)
    rows = found.rows
    names = dict.fromkeys(name for row in rows for name in row if name != "step")
    whole = {name: [row for row in rows if is_row(row, name)] for name in names}
    broken = sum(not all(is_row(row, name) for name in row if name != "step") for row in rows)
    return [_metric(name, kept, columns) for name, kept in whole.items() if kept], found.unreadable + broken


def _metric(name: str, rows: Sequence[dict[str, Any]], columns: int) -> dict[str, Any]:
    per = math.ceil(len(rows) / columns)
    parts = [rows[i : i + per] for i in range(0, len(rows), per)]
    sums = [_added(part, name) for part in parts]
    return {
        "name": name,
        "first": [part[0]["step"] for part in parts],
        "last": [part[-1]["step"] for part in parts],
        "numbers": [sum(counts.values()) for counts in sums],
        "shares": [_shares(counts) for counts in sums],
    }


def _added(rows: Sequence[dict[str, Any]], name: str) -> Counter[int]:
    counts: Counter[int] = Counter()
    for row in rows:
        counts.update(dict(row[name]))
    return counts


def _shares(counts: Counter[int]) -> list[int]:
    total = sum(counts.values())
    return [
        n for index in sorted(counts) if counts[index] for n in (index, max(1, round(PARTS * counts[index] / total)))
    ]
