"""Rows of `prompt` and `completion` (or `response`): the answer continues the prompt, as both stand there."""

from collections.abc import Mapping
from typing import Any

from unified import DataFormat, Example, Field, Settings, hookimpl
from unified_plugins.formats._rows import prompt, text


class PromptCompletionSettings(Settings):
    """How the prompt is rendered."""

    chat: bool = Field(False, description="a text prompt is a user's message for the chat template")


def recognises(columns: frozenset[str]) -> bool:
    """A prompt and one answer, without a label of its own."""
    return "prompt" in columns and bool(columns & {"completion", "response"}) and "label" not in columns


def convert(row: Mapping[str, Any], settings: PromptCompletionSettings) -> Example:
    """One answer; a prompt that is a list of messages goes through the chat template."""
    answer = text(row, "response" if "completion" not in row and "response" in row else "completion")
    return Example(prompt(row, "prompt", chat=settings.chat), [answer], columns=dict(row))


@hookimpl
def unified_formats() -> list[DataFormat]:
    """Offer the format as `format: prompt_completion`."""
    return [DataFormat("prompt_completion", PromptCompletionSettings, recognises=recognises, convert=convert)]
