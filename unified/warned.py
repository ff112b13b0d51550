"""The warnings of a stage in its folder: one line of warnings.jsonl each, with what was seen and what to do about it.

Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unified.disk import space_for

WARNINGS = "warnings.jsonl"


@dataclass
class Told:
    """A kind of warning of a stage: what was seen the first time and what to do, how often, and in which steps."""

    kind: str
    message: str
    remedy: str
    times: int
    first: int
    last: int

    def as_dict(self) -> dict[str, Any]:
        """For a program."""
        return dict(vars(self))


def parted(text: str) -> tuple[str, str]:
    """A sign's message as (what was seen, what to do): its first sentence and the rest."""
    seen, _, remedy = text.partition(". ")
    return seen, remedy


def write_warning(
    folder: Path, *, stage: str, step: int, kind: str, message: str, values: Mapping[str, float], remedy: str
) -> None:
    """Add a line for a warning. UserError for a full disk."""
    row = {"stage": stage, "step": step, "kind": kind, "message": message, "values": dict(values), "remedy": remedy}
    with space_for(WARNINGS, folder), (folder / WARNINGS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_warnings(folder: Path) -> tuple[list[Told], int]:
    """The warnings of a stage by kind, in the order in which they came up, and how many lines cannot be read.

    Half a line at the end is being written just now, and counts as none.
    """
    found: dict[str, Told] = {}
    unreadable = 0
    try:
        lines = (folder / WARNINGS).read_bytes().splitlines(keepends=True)
    except OSError:
        return [], 0
    for line in lines:
        row = _row(line)
        if row is None:
            unreadable += line.endswith(b"\n")
            continue
        one = found.setdefault(row["kind"], Told(row["kind"], row["message"], row["remedy"], 0, row["step"], 0))
        one.times, one.last = one.times + 1, row["step"]
    return list(found.values()), unreadable


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        return None
    wanted: dict[str, type] = {"kind": str, "message": str, "remedy": str, "step": int}
    return row if isinstance(row, dict) and all(isinstance(row.get(k), of) for k, of in wanted.items()) else None
