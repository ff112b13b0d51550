"""Rows of a `prompt` alone: for answers that are sampled."""

from collections.abc import Mapping
from typing import Any

from unified import DataFormat, Example, Field, Settings, hookimpl
from unified_plugins.formats._rows import CONTENT, prompt


class PromptsSettings(Settings):
    """How the prompt is rendered."""

    chat: bool = Field(False, description="a text prompt is a user's message for the chat template")


def recognises(columns: frozenset[str]) -> bool:
    """A prompt and no column that may be its answer."""
    return columns & CONTENT == {"prompt"}


def convert(row: Mapping[str, Any], settings: PromptsSettings) -> Example:
    """No answers; all columns stay, for reward functions."""
    return Example(prompt(row, "prompt", chat=settings.chat), columns=dict(row))


@hookimpl
def unified_formats() -> list[DataFormat]:
    """Offer the format as `format: prompts`."""
    return [DataFormat("prompts", PromptsSettings, recognises=recognises, convert=convert)]
