"""Rows of a prompt and answers with scores: the reward of an answer is its score.

The answers stand in `completions`, objects with `response` and the score, as in UltraFeedback; or as texts in
`responses`, with numbers in `scores`. Source of the form: Cui et al. 2023, arXiv:2310.01377.
"""

import math
from collections.abc import Mapping
from typing import Any

from unified import DataFormat, Example, Field, Settings, hookimpl
from unified_plugins.formats._rows import ASKED, asked_in, cell, said, texts


class ScoredSettings(Settings):
    """Which score is the reward."""

    score: str = Field(
        "overall_score", description="key of each completion; `annotations`: the mean rating over its aspects"
    )
    response: str = Field("response", description="key of each completion that holds its text")
    chat: bool = Field(False, description="a text `prompt` is a user's message for the chat template")


def recognises(columns: frozenset[str], row: Mapping[str, Any]) -> bool:
    """A prompt, and completions that are objects, or responses and scores."""
    if not columns & set(ASKED) or columns & {"chosen", "rejected"}:
        return False
    given = row.get("completions")
    listed = isinstance(given, list) and bool(given) and all(isinstance(one, Mapping) for one in given)
    return listed or {"responses", "scores"} <= columns


def convert(row: Mapping[str, Any], settings: ScoredSettings) -> Example:
    """Answers in the order of the row. ValueError for an answer without text or score: neither may be guessed."""
    if "completions" in row:
        answers, rewards = _completions(cell(row, "completions"), settings)
    else:
        answers = texts(cell(row, "responses"), "responses")
        scores = cell(row, "scores")
        if not isinstance(scores, list) or len(scores) != len(answers):
            raise ValueError(f"column 'scores' must be a list of {len(answers)} numbers, one for each response")
        rewards = [_number(score, f"scores[{i}]") for i, score in enumerate(scores)]
    return Example(asked_in(row, chat=settings.chat), list(answers), rewards, dict(row))


def _completions(given: Any, settings: ScoredSettings) -> tuple[list[str], list[float]]:
    if not isinstance(given, list) or not given or not all(isinstance(one, Mapping) for one in given):
        raise ValueError("column 'completions' must be a list of objects, each with a text and its score")
    answers, rewards = [], []
    for i, one in enumerate(given):
        where = f"completions[{i}]"
        answers.append(said(one.get(settings.response), f"{where}.{settings.response}"))
        if settings.score == "annotations":
            rewards.append(_mean_rating(one.get("annotations"), f"{where}.annotations"))
            continue
        if settings.score not in one:
            has = [name for name, value in one.items() if isinstance(value, (int, float)) or name == "annotations"]
            raise ValueError(f"{where} has no '{settings.score}'; `score` of the format may be: {', '.join(has)}")
        rewards.append(_number(one[settings.score], f"{where}.{settings.score}"))
    return answers, rewards


def _mean_rating(annotations: Any, where: str) -> float:
    """The mean over aspects with a number as `Rating`; aspects that were not rated ("N/A") do not count."""
    aspects = annotations.values() if isinstance(annotations, Mapping) else []
    ratings = [one.get("Rating") if isinstance(one, Mapping) else one for one in aspects]
    numbers = [_number(rating, where) for rating in ratings if rating not in (None, "N/A")]
    if not numbers:
        raise ValueError(f"column '{where}' holds no rating")
    return math.fsum(numbers) / len(numbers)


def _number(value: Any, column: str) -> float:
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not math.isfinite(number):
        raise ValueError(f"column '{column}' must be a number, not {value!r}")
    return number


@hookimpl
def unified_formats() -> list[DataFormat]:
    """Offer the format as `format: scored`."""
    return [DataFormat("scored", ScoredSettings, recognises=recognises, convert=convert)]
