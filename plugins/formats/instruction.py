"""Rows of `instruction`, `input` (may be empty or absent) and `output`: a user's message and its answer."""

from collections.abc import Mapping
from typing import Any

from unified import DataFormat, Example, Field, Settings, hookimpl
from unified_plugins.formats._rows import text


class InstructionSettings(Settings):
    """How the instruction is rendered."""

    chat: bool = Field(
        True, description="the instruction is a user's message; if not, plain text that ends in a line break"
    )


def recognises(columns: frozenset[str]) -> bool:
    """An instruction and its output."""
    return {"instruction", "output"} <= columns


def convert(row: Mapping[str, Any], settings: InstructionSettings) -> Example:
    """The input, where there is one, stands below the instruction after an empty line."""
    asked = text(row, "instruction")
    if row.get("input"):
        asked = f"{asked}\n\n{text(row, 'input')}"
    prompt = [{"role": "user", "content": asked}] if settings.chat else f"{asked}\n"
    return Example(prompt, [text(row, "output")], columns=dict(row))


@hookimpl
def unified_formats() -> list[DataFormat]:
    """Offer the format as `format: instruction`."""
    return [DataFormat("instruction", InstructionSettings, recognises=recognises, convert=convert)]
