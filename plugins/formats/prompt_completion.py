"""Rows of `prompt` and `completion` (or `response`): the answer continues the prompt, as both stand there.

Both may be text or messages; a completion of several messages is trained on where the assistant speaks.
"""

from collections.abc import Mapping
from typing import Any

from unified import DataFormat, Example, Field, Settings, hookimpl
from unified_plugins.formats._rows import answer, cell, first, prompt


class PromptCompletionSettings(Settings):
    """How the prompt is rendered."""

    chat: bool = Field(False, description="a text prompt is a user's message for the chat template")


def recognises(columns: frozenset[str]) -> bool:
    """A prompt and one answer, without a label of its own."""
    return "prompt" in columns and bool(columns & {"completion", "response"}) and "label" not in columns


def convert(row: Mapping[str, Any], settings: PromptCompletionSettings) -> Example:
    """One answer; a prompt that is a list of messages goes through the chat template."""
    column = first(row, "completion", "response")
    continued = answer(cell(row, column), column)
    chat = settings.chat or not isinstance(continued, str)
    return Example(prompt(row, "prompt", chat=chat), [continued], columns=dict(row))


@hookimpl
def unified_formats() -> list[DataFormat]:
    """Offer the format as `format: prompt_completion`."""
    return [DataFormat("prompt_completion", PromptCompletionSettings, recognises=recognises, convert=convert)]
