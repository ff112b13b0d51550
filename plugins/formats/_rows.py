"""What the formats share: reading the cells of a row, with errors that name the column."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: names of columns that carry a prompt or an answer; a format that needs only one column steps back before them
CONTENT = frozenset(
    ("prompt", "question", "instruction", "text", "messages", "conversations", "transcript", "answer", "answers",
     "completion", "response", "responses", "output", "chosen", "rejected", "code", "solution", "target", "label",
     "summary")
)  # fmt: skip

_ROLES = {"human": "user", "user": "user", "prompter": "user", "gpt": "assistant", "assistant": "assistant",
          "system": "system", "tool": "tool", "function": "tool", "observation": "tool"}  # fmt: skip


def cell(row: Mapping[str, Any], column: str) -> Any:
    """What stands in a column. Raises ValueError where the row has no such column, or nothing in it."""
    if column not in row:
        raise ValueError(f"no column '{column}'")
    if row[column] is None:
        raise ValueError(f"column '{column}' is empty")
    return row[column]


def text(row: Mapping[str, Any], column: str) -> str:
    """The text of a column; a whole number reads without its fraction (51.0 is "51"). Raises ValueError for lists."""
    value = cell(row, column)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (str, int, float)):
        return str(value)
    raise ValueError(f"column '{column}' must be text, not {type(value).__name__}")


def messages(value: Any, column: str) -> list[dict[str, str]]:
    """Turns as {"role", "content"}, from that form or {"from", "value"}. Raises ValueError that names the column."""
    turns = [value] if isinstance(value, Mapping) else value
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"column '{column}' must be a list of messages")
    out = []
    for turn in turns:
        role = turn.get("role", turn.get("from")) if isinstance(turn, Mapping) else None
        content = turn.get("content", turn.get("value")) if isinstance(turn, Mapping) else None
        if role not in _ROLES or not isinstance(content, str):
            raise ValueError(
                f"column '{column}': a message needs `role` and `content` (or `from` and `value`), got {turn!r}"
            )
        out.append({"role": _ROLES[str(role)], "content": content})
    return out


def prompt(row: Mapping[str, Any], column: str, *, chat: bool) -> str | list[dict[str, str]]:
    """A prompt that is text or messages; with `chat`, text becomes the one message of a user."""
    value = cell(row, column)
    if isinstance(value, (list, Mapping)):
        return messages(value, column)
    said = text(row, column)
    return [{"role": "user", "content": said}] if chat else said
