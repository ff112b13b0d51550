"""Rows of `prompt`, `completion` (or `response`) and `label`: one answer, reward 1 where it is good and 0 where not."""

from collections.abc import Mapping
from typing import Any

from unified import DataFormat, Example, Field, Settings, hookimpl
from unified_plugins.formats._rows import cell, prompt, text

_LABELS = {"true": 1.0, "1": 1.0, "1.0": 1.0, "false": 0.0, "0": 0.0, "0.0": 0.0}


class UnpairedSettings(Settings):
    """How the prompt is rendered."""

    chat: bool = Field(False, description="a text prompt is a user's message for the chat template")


def recognises(columns: frozenset[str]) -> bool:
    """A prompt, one answer, and whether it is good."""
    return {"prompt", "label"} <= columns and bool(columns & {"completion", "response"})


def convert(row: Mapping[str, Any], settings: UnpairedSettings) -> Example:
    """One answer with its label as reward. ValueError for a label that is not true or false."""
    answer = text(row, "response" if "completion" not in row and "response" in row else "completion")
    label = str(cell(row, "label")).lower()
    if label not in _LABELS:
        raise ValueError(
            f"column 'label' must be true or false, not {row['label']!r}; for imitation: prompt_completion"
        )
    return Example(prompt(row, "prompt", chat=settings.chat), [answer], [_LABELS[label]], dict(row))


@hookimpl
def unified_formats() -> list[DataFormat]:
    """Offer the format as `format: unpaired`."""
    return [DataFormat("unpaired", UnpairedSettings, recognises=recognises, convert=convert)]
