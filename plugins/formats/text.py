"""Rows of plain `text`: the whole of it is the answer to an empty prompt, as in pre-training, or to its first words."""

import re
from collections.abc import Mapping
from typing import Any

from unified import DataFormat, Example, Field, Settings, hookimpl
from unified_plugins.formats._rows import CONTENT, cell, said


class TextSettings(Settings):
    """What a recipe may set."""

    prompt_words: int = Field(0, ge=0, description="so many words from the start are the prompt, the rest the answer")


def recognises(columns: frozenset[str]) -> bool:
    """A text, and no other column that may belong to it; rows with a parent are messages of a conversation."""
    return columns & CONTENT == {"text"} and "parent_id" not in columns


def convert(row: Mapping[str, Any], settings: TextSettings) -> Example:
    """Without `prompt_words` the prompt is empty: a tokenizer that begins texts with a token of its own puts it there.

    Raises ValueError for a text that has no word left for the answer.
    """
    whole = said(cell(row, "text"), "text")
    if not settings.prompt_words:
        return Example("", [whole], columns=dict(row))
    words = re.match(rf"\s*(?:\S+\s+){{{settings.prompt_words}}}", whole)
    if words is None:
        raise ValueError(f"the text has no more than the {settings.prompt_words} words of `prompt_words`")
    prompt = words.group().rstrip()
    said(whole[len(prompt) :], "text")
    return Example(prompt, [whole[len(prompt) :]], columns=dict(row))


@hookimpl
def unified_formats() -> list[DataFormat]:
    """Offer the format as `format: text`."""
    return [DataFormat("text", TextSettings, recognises=recognises, convert=convert)]
