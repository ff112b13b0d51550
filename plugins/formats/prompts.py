"""Rows of a `prompt` alone: for answers that are sampled. Columns such as `answer` or `solution` are for the reward.

To imitate them, `columns: {completion: answer}` makes them answers.
"""

from collections.abc import Mapping
from typing import Any

from unified import DataFormat, Example, Field, Settings, hookimpl
from unified_plugins.formats._rows import CONTENT, cell, prompt, said

#: what a verifier compares with; beside a prompt it is no answer to imitate unless `columns` says so
TRUTH = frozenset({"answer", "solution", "target"})


class PromptsSettings(Settings):
    """How the prompt is rendered."""

    chat: bool = Field(False, description="a text prompt is a user's message for the chat template")


def recognises(columns: frozenset[str], row: Mapping[str, Any]) -> bool:
    """A prompt that is no tree of replies, and no column that may be its answer, other than for a verifier."""
    asked = row.get("prompt")
    return (columns & CONTENT) - TRUTH == {"prompt"} and not (isinstance(asked, Mapping) and "replies" in asked)


def convert(row: Mapping[str, Any], settings: PromptsSettings) -> Example:
    """No answers; all columns stay, for reward functions. ValueError for a prompt that says nothing."""
    if not isinstance(cell(row, "prompt"), (list, Mapping)):
        said(row["prompt"], "prompt")
    return Example(prompt(row, "prompt", chat=settings.chat), columns=dict(row))


@hookimpl
def unified_formats() -> list[DataFormat]:
    """Offer the format as `format: prompts`."""
    return [DataFormat("prompts", PromptsSettings, recognises=recognises, convert=convert)]
