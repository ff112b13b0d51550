"""Rows of `prompt`, `completion` (or `response`) and `label`: one answer, reward 1 where it is good and 0 where not.

A conversation may stand in `messages` or `conversations` instead; its last turn is the answer.
"""

from collections.abc import Mapping
from typing import Any

from unified import DataFormat, Example, Field, Settings, hookimpl
from unified_plugins.formats._rows import answer, cell, first, messages, prompt

_LABELS = {"true": 1.0, "1": 1.0, "1.0": 1.0, "false": 0.0, "0": 0.0, "0.0": 0.0}


class UnpairedSettings(Settings):
    """How the prompt is rendered."""

    chat: bool = Field(False, description="a text prompt is a user's message for the chat template")


def recognises(columns: frozenset[str], row: Mapping[str, Any]) -> bool:
    """A prompt, one answer, and whether it is good; beside a conversation a label that is true or false."""
    if "label" not in columns or columns & {"chosen", "rejected"}:
        return False
    if columns & {"completion", "response"}:
        return "prompt" in columns
    return bool(columns & {"messages", "conversations"}) and isinstance(row.get("label"), bool)


def convert(row: Mapping[str, Any], settings: UnpairedSettings) -> Example:
    """One answer with its label as reward. ValueError for a label that is not true or false."""
    label = str(cell(row, "label")).lower()
    if label not in _LABELS:
        raise ValueError(
            f"column 'label' must be true or false, not {row['label']!r}; for imitation: prompt_completion"
        )
    reward = [_LABELS[label]]
    if "completion" not in row and "response" not in row and (column := first(row, "messages", "conversations")) in row:
        turns = messages(cell(row, column), column)
        if turns[-1]["role"] != "assistant" or len(turns) == 1:
            raise ValueError(f"column '{column}' must end with an answer of the assistant to turns before it")
        return Example(turns[:-1], [answer(turns[-1:], column)], reward, dict(row))
    column = first(row, "completion", "response")
    judged = answer(cell(row, column), column)
    chat = settings.chat or not isinstance(judged, str)
    return Example(prompt(row, "prompt", chat=chat), [judged], reward, dict(row))


@hookimpl
def unified_formats() -> list[DataFormat]:
    """Offer the format as `format: unpaired`."""
    return [DataFormat("unpaired", UnpairedSettings, recognises=recognises, convert=convert)]
