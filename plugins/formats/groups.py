"""Rows of `prompt`, `answers` and `rewards`: any number of answers to one prompt, judged or not; what stages write.

All other columns stay, for reward functions.
"""

from collections.abc import Mapping
from typing import Any

from unified import DataFormat, Example, Field, Settings, hookimpl
from unified_plugins.formats._rows import answer, cell, prompt

OWN = frozenset({"prompt", "answers", "rewards"})
#: where a row was read, which is not where it is written
PLACE = frozenset({"file", "row"})


class GroupsSettings(Settings):
    """How the prompt is rendered."""

    chat: bool = Field(False, description="a text prompt is a user's message for the chat template")


def recognises(columns: frozenset[str]) -> bool:
    """A prompt and a list of its answers."""
    return {"prompt", "answers"} <= columns


def convert(row: Mapping[str, Any], settings: GroupsSettings) -> Example:
    """Answers in the order of the row. ValueError where rewards and answers do not fit each other."""
    answers, rewards = cell(row, "answers"), row.get("rewards")
    if not isinstance(answers, list) or not all(isinstance(a, (str, list)) for a in answers):
        raise ValueError("column 'answers' must be a list of texts, or of lists of messages")
    answers = [a if isinstance(a, str) else answer(a, "answers") for a in answers]
    if rewards is not None:
        numbers = isinstance(rewards, list) and all(
            isinstance(r, (int, float)) and not isinstance(r, bool) for r in rewards
        )
        if not numbers:
            raise ValueError("column 'rewards' must be a list of numbers, one for each answer")
        if len(rewards) != len(answers):
            raise ValueError(f"there are {len(answers)} answers but {len(rewards)} rewards")
        rewards = [float(r) for r in rewards]
    columns = {key: value for key, value in row.items() if key not in OWN}
    return Example(prompt(row, "prompt", chat=settings.chat), list(answers), rewards, columns)


def row_of(example: Example) -> dict[str, Any]:
    """The row that reads as this example; `rewards` is left out where nothing was judged."""
    judged = {} if example.rewards is None else {"rewards": list(example.rewards)}
    columns = {key: value for key, value in example.columns.items() if key not in OWN | PLACE}
    return {"prompt": example.prompt, "answers": list(example.answers), **judged, **columns}


@hookimpl
def unified_formats() -> list[DataFormat]:
    """Offer the format as `format: groups`."""
    return [DataFormat("groups", GroupsSettings, recognises=recognises, convert=convert)]
