"""Columns that a reward reads: told before anything is sampled where no row has them, else where a row lacks one."""

from __future__ import annotations

from collections.abc import Collection

from unified import Problem, PromptGroup, did_you_mean


def lacking(column: str, columns: Collection[str] | None, *, key: str = "column") -> list[Problem]:
    """The problem that no row of the data has a column; [] where one has it, or the rows are not known yet (None).

    key: the setting that names the column.
    """
    if columns is None or column in columns:
        return []
    near = did_you_mean(column, columns)
    hints = [f"did you mean '{near}'?"] if near else []
    return [Problem(f"no row of the data has a column '{column}'", (key,), (*hints, listed(columns)))]


def listed(columns: Collection[str]) -> str:
    """What there is, for a hint."""
    return f"the data have: {', '.join(sorted(columns)) or 'no columns'}"


def nothing_in(group: PromptGroup, column: str, what: str = "right answer") -> None:
    """Say why the answers of a row are missing."""
    if group.answers:
        held = "holds no" if group.columns.get(column) is not None else "is not there or empty, so that there is no"
        group.reasons.append(f"column '{column}' of the row {held} {what}")
