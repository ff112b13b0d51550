"""Files of a stage as they are: half a line at the end, a line that is no JSON, a step that was done twice."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from unified.errors import UserError

_STEP = re.compile(rb'^\{"step": ?(\d+)[,}]')


@dataclass
class Metrics:
    """The lines of metrics.jsonl.

    rows: in the order of their steps. unreadable: lines that are no JSON object with a step, without an unfinished last
    one. replaced: rows of steps that came again later (a run that went on from an older checkpoint).
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    unreadable: int = 0
    replaced: int = 0


def read_metrics(path: Path) -> Metrics:
    """Every row of a metrics.jsonl; an empty result where there is no such file."""
    found = Metrics()
    for _, line, whole in _lines(path):
        row = _object(line)
        step = row.get("step") if row is not None else None
        if row is None or not is_number(step):
            found.unreadable += whole
            continue
        while found.rows and found.rows[-1]["step"] > step:
            found.rows.pop()
            found.replaced += 1
        found.rows.append(row)
    return found


def read_samples(path: Path, *, steps: int, characters: int, longest: int) -> tuple[list[list[Any]], dict[str, int]]:
    """Some samples of a samples.jsonl: those of at most `steps` steps, evenly spread, with the first and the last.

    characters: of all texts together; there are fewer steps where they would be longer. longest: of one text.
    Returns: [[step, prompt, answer, reward, finish], ...] in the order of the file, and counts: lines and steps in the
    file, lines that are unreadable, texts that were cut.
    """
    places: dict[int, list[int]] = {}
    counts = {"lines": 0, "steps": 0, "unreadable": 0, "cut": 0}
    for at, line, whole in _lines(path):
        step = _step_of(line)
        if step is None:
            counts["unreadable"] += whole
        else:
            places.setdefault(step, []).append(at)
            counts["lines"] += 1
    counts["steps"] = len(places)
    while places:
        kept = spread(sorted(places), steps)
        rows, cut = _samples_at(path, [p for step in kept for p in places[step]], longest)
        if len(kept) <= 1 or sum(len(r[1]) + len(r[2]) for r in rows) <= characters:
            counts["cut"] = cut
            return rows, counts
        steps = len(kept) // 2
    return [], counts


def spread(values: list[int], number: int) -> list[int]:
    """At most `number` of the values, evenly spread, with the first and the last; of one the last."""
    if len(values) <= number:
        return values
    if number <= 1:
        return values[-1:]
    return [values[round(i * (len(values) - 1) / (number - 1))] for i in range(number)]


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value of a row is a finite number, and not a truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none."""
    try:
        return _object(path.read_bytes()) or {}
    except OSError:
        return {}


def tail(path: Path, characters: int) -> str:
    """The end of a text file; "" where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")[-characters:].strip()
    except OSError:
        return ""


def _lines(path: Path) -> Iterator[tuple[int, bytes, bool]]:
    """(place, line, whether it has its end) of a file that may be growing; nothing where there is none.

    UserError for a file that is there and cannot be opened.
    """
    try:
        file = path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", "see who may read it") from error
    at = 0
    with file:
        for line in file:
            if line.strip():
                yield at, line, line.endswith(b"\n")
            at += len(line)


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        data = json.loads(line.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _step_of(line: bytes) -> int | None:
    found = _STEP.match(line)
    if found and line.rstrip().endswith(b"}"):
        return int(found[1])
    row = _object(line)
    step = row.get("step") if row is not None else None
    return int(step) if step is not None and is_number(step) else None


def _samples_at(path: Path, places: list[int], longest: int) -> tuple[list[list[Any]], int]:
    """The samples at these places of the file, with texts cut to `longest`, and how many texts were."""
    rows: list[list[Any]] = []
    cut = 0
    with path.open("rb") as file:
        for place in places:
            file.seek(place)
            row: Mapping[str, Any] = _object(file.readline()) or {}
            texts = [_text(row.get(key)) for key in ("prompt", "answer")]
            cut += sum(len(t) > longest for t in texts)
            short = [t if len(t) <= longest else f"{t[:longest]} … ({len(t):,} characters)" for t in texts]
            reward = row.get("reward")
            finish = row.get("finish")
            shown = number(reward) if is_number(reward) else None
            rows.append([row.get("step"), *short, shown, None if finish is None else _text(finish)])
    return rows, cut


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def number(value: float, digits: int = 5) -> float | int:
    """A number with so many significant digits, an integer where it is one: what a page needs of it."""
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short
