"""Rows of `instruction`, `input` (may be empty or absent) and `output`: a user's message and its answer, or answers.

An `output` that is a list is ranked, the best first: K answers get the rewards K-1 ... 0, [chosen, rejected] 1 and 0.
`history` holds the turns before, [question, answer] each, and `system` opens the conversation. `context` and `response`
may stand for input and output.
"""

from collections.abc import Mapping
from typing import Any

from unified import DataFormat, Example, Field, Settings, hookimpl
from unified_plugins.formats._rows import cell, first, instructed, said, texts


class InstructionSettings(Settings):
    """How the instruction is rendered."""

    chat: bool = Field(
        True, description="the instruction is a user's message; if not, plain text that ends in a line break"
    )


def recognises(columns: frozenset[str]) -> bool:
    """An instruction and its output, and no other pair of answers."""
    answered = columns & {"output", "response"}
    return "instruction" in columns and bool(answered) and not columns & {"chosen", "rejected", "prompt"}


def convert(row: Mapping[str, Any], settings: InstructionSettings) -> Example:
    """One answer, or two and more that are ranked. ValueError for an answer that says nothing, or a ranking of one."""
    prompt = instructed(row, chat=settings.chat)
    column = first(row, "output", "response")
    output = cell(row, column)
    if not isinstance(output, list):
        return Example(prompt, [said(output, column)], columns=dict(row))
    answers = texts(output, column, fewest=2)
    return Example(prompt, list(answers), [float(k) for k in reversed(range(len(answers)))], dict(row))


@hookimpl
def unified_formats() -> list[DataFormat]:
    """Offer the format as `format: instruction`."""
    return [DataFormat("instruction", InstructionSettings, recognises=recognises, convert=convert)]
