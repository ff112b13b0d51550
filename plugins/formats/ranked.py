"""Rows of `prompt`, `responses` and `ranks` (0 is best): the reward of an answer is how many it is ranked above.

K answers of distinct ranks get K-1 ... 0; equal ranks get equal rewards. Source of the form: the OpenAssistant trees,
Köpf et al. 2023, arXiv:2304.07327.
"""

from collections.abc import Mapping
from typing import Any

from unified import DataFormat, Example, Field, Settings, hookimpl
from unified_plugins.formats._rows import cell, prompt, texts


class RankedSettings(Settings):
    """How the prompt is rendered."""

    chat: bool = Field(False, description="a text prompt is a user's message for the chat template")


def recognises(columns: frozenset[str]) -> bool:
    """A prompt and its ranked answers."""
    return {"prompt", "responses", "ranks"} <= columns


def convert(row: Mapping[str, Any], settings: RankedSettings) -> Example:
    """Answers in the order of the row. ValueError where ranks and answers do not fit each other."""
    answers, ranks = texts(cell(row, "responses"), "responses"), cell(row, "ranks")
    if not isinstance(ranks, list) or not all(isinstance(r, (int, float)) and not isinstance(r, bool) for r in ranks):
        raise ValueError("column 'ranks' must be a list of numbers, 0 for the best")
    if len(ranks) != len(answers):
        raise ValueError(f"there are {len(answers)} responses but {len(ranks)} ranks")
    rewards = [float(sum(other > mine for other in ranks)) for mine in ranks]
    return Example(prompt(row, "prompt", chat=settings.chat), answers, rewards, dict(row))


@hookimpl
def unified_formats() -> list[DataFormat]:
    """Offer the format as `format: ranked`."""
    return [DataFormat("ranked", RankedSettings, recognises=recognises, convert=convert)]
