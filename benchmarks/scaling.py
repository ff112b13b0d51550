"""How the cost of our step grows: over tokens of a step, tokens of a row, answers to a prompt, vocabulary."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cases import SCALING, Case
from benchmarks.compare import Options, Side
from benchmarks.material import write

#: visits of every point
TURNS = 3


def measure_growth(
    home: Path,
    options: Options,
    *,
    points: Mapping[str, Sequence[tuple[int, Case]]] = SCALING,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Median CPU seconds of a step at every point; the points of a row take turns."""
    out: dict[str, Any] = {}
    for what, row in points.items():
        running: list[Side] = []
        try:
            for value, case in row:
                places = write(case, home / f"scaling-{len(out)}-{value}", case.rows * (TURNS + 1))
                running.append(Side("ours", case, places, options).ready())
                running[-1].ask("go 1")
            blocks = [[side.ask("go 1") for side in running] for _ in range(TURNS)]
        finally:
            for side in running:
                side.end()
        seconds = [statistics.median(b[i]["cpu"] for b in blocks) for i in range(len(row))]
        tokens = [block["tokens"] for block in blocks[0]]
        out[what] = [
            {"value": value, "seconds": s, "tokens": n} for (value, _), s, n in zip(row, seconds, tokens, strict=True)
        ]
        tell(f"  {what}: " + ", ".join(f"{p['value']}: {p['seconds']:.2f} s" for p in out[what]))
    return {"options": options.as_dict(), "points": out}
