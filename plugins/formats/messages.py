"""Rows of `messages` (role, content), or of `conversations` (from, value): the last assistant turn is the answer.

A conversation that ends with the user has no answer and serves as a prompt. Earlier assistant turns are context.
"""

from collections.abc import Mapping
from typing import Any

from unified import DataFormat, Example, Settings, hookimpl
from unified_plugins.formats._rows import cell, messages


class MessagesSettings(Settings):
    """Nothing to set."""


def recognises(columns: frozenset[str]) -> bool:
    """A conversation, and no pair of answers beside it."""
    return bool(columns & {"messages", "conversations"}) and not columns & {"chosen", "rejected"}


def convert(row: Mapping[str, Any]) -> Example:
    """The conversation cut before its last turn. ValueError where nothing precedes the answer."""
    column = "conversations" if "messages" not in row and "conversations" in row else "messages"
    turns = messages(cell(row, column), column)
    if turns[-1]["role"] != "assistant":
        return Example(turns, columns=dict(row))
    if len(turns) == 1:
        raise ValueError(f"column '{column}' has an answer but no turn before it")
    return Example(turns[:-1], [turns[-1]["content"]], columns=dict(row))


@hookimpl
def unified_formats() -> list[DataFormat]:
    """Offer the format as `format: messages`."""
    return [DataFormat("messages", MessagesSettings, recognises=recognises, convert=convert)]
