"""Rows with a label for each step of an answer: for `source: step_ends`, which trains a process reward model.

The steps stand in `completions` or `steps`, their labels (true, false or in [0, 1]) in `labels`; or `mistake_index`
counts the steps before the first wrong one, null where none is wrong: labels are 1 before it and 0 from it on. The
prompt stands in `prompt`, `question` or `input`. The answer is the steps, each with the separator behind it.

Sources of the forms: Uesato et al. 2022, arXiv:2211.14275; Tyen et al. 2023, arXiv:2311.08516 (`mistake_index`).
"""

from collections.abc import Mapping
from typing import Any

from unified import DataFormat, Example, Field, Settings, hookimpl
from unified_plugins.formats._rows import ASKED, asked_in, cell, first


class StepsSettings(Settings):
    """How the steps become one answer."""

    separator: str = Field("\n", description="text behind every step")
    chat: bool = Field(False, description="a text `prompt` is a user's message for the chat template")


def recognises(columns: frozenset[str], row: Mapping[str, Any]) -> bool:
    """A prompt, a list of texts and their labels."""
    steps = row.get(first(row, "completions", "steps"))
    listed = isinstance(steps, list) and all(isinstance(one, str) for one in steps)
    return listed and bool(columns & {"labels", "mistake_index"}) and bool(columns & set(ASKED))


def convert(row: Mapping[str, Any], settings: StepsSettings) -> Example:
    """One answer, with the columns `labels` (a number for each step) and `step_ends`.

    `step_ends` says where the text of each step ends, in characters of the answer: behind its last character that is
    not white space, or, for a step of white space alone, behind its separator. ValueError where labels and steps do not
    fit each other, or no step says anything.
    """
    column = first(row, "completions", "steps")
    steps = cell(row, column)
    if not isinstance(steps, list) or not all(isinstance(one, str) for one in steps):
        raise ValueError(f"column '{column}' must be a list of texts, one for each step")
    if not any(one.strip() for one in steps):
        raise ValueError(f"column '{column}' is empty: no step says anything")
    labels = _labels(row, len(steps))
    ends, place = [], 0
    for step in steps:
        behind = place + len(step) + len(settings.separator)
        ends.append(place + len(step.rstrip()) if step.strip() else behind)
        place = behind
    answer = "".join(step + settings.separator for step in steps)
    columns = {**row, "labels": labels, "step_ends": ends}
    return Example(asked_in(row, chat=settings.chat), [answer], columns=columns)


def _labels(row: Mapping[str, Any], steps: int) -> list[float]:
    if "labels" in row or "mistake_index" not in row:
        labels = cell(row, "labels")
        if not isinstance(labels, list) or not all(isinstance(x, (bool, int, float)) and 0 <= x <= 1 for x in labels):
            raise ValueError("column 'labels' must be a list of true, false or numbers from 0 to 1")
        if len(labels) != steps:
            raise ValueError(f"there are {steps} steps but {len(labels)} labels")
        return [float(label) for label in labels]
    first_wrong = row["mistake_index"]
    if first_wrong is None:
        return [1.0] * steps
    if isinstance(first_wrong, float) and first_wrong.is_integer():
        first_wrong = int(first_wrong)
    if not isinstance(first_wrong, int) or isinstance(first_wrong, bool) or not 0 <= first_wrong < steps:
        raise ValueError(f"column 'mistake_index' must be null or from 0 to {steps - 1}, not {row['mistake_index']!r}")
    return [1.0] * first_wrong + [0.0] * (steps - first_wrong)


@hookimpl
def unified_formats() -> list[DataFormat]:
    """Offer the format as `format: steps`."""
    return [DataFormat("steps", StepsSettings, recognises=recognises, convert=convert)]
