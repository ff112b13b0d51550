"""What the formats share: reading the cells of a row, with errors that name the column."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

#: names of columns that carry a prompt or an answer; a format that needs only one column steps back before them
CONTENT = frozenset(
    ("prompt", "question", "instruction", "text", "messages", "conversations", "transcript", "answer", "answers",
     "completion", "completions", "response", "responses", "output", "chosen", "rejected", "code", "solution", "target",
     "label", "labels", "steps", "scores", "summary", "canonical_solution")
)  # fmt: skip
#: where a prompt stands, the first that is there: as it is, or said by a user
ASKED = ("prompt", "conversations", "messages", "instruction", "question", "input")
#: what a system message may stand in, for prompts that are messages
SYSTEM = ("system", "system_prompt")

_ROLES = {"human": "user", "user": "user", "prompter": "user", "gpt": "assistant", "assistant": "assistant",
          "system": "system", "developer": "system", "tool": "tool", "function": "tool", "observation": "tool",
          "function_call": "assistant"}  # fmt: skip


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
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"column '{column}' must be text, not {type(value).__name__}")


def said(value: Any, column: str) -> str:
    """A text that says something. Raises ValueError that names the column: empty, nothing but white space, no text."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, (str, int, float)) or isinstance(value, bool):
        kind = "is empty" if value is None else f"must be text, not {type(value).__name__}"
        raise ValueError(f"column '{column}' {kind}")
    if not str(value).strip():
        raise ValueError(f"column '{column}' is empty: an answer must say something")
    return str(value)


def texts(value: Any, column: str, *, fewest: int = 1) -> list[str]:
    """A list of texts that each say something. Raises ValueError that names the column, and the one that is wrong."""
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"column '{column}' must be a list of texts")
    if len(value) < fewest:
        raise ValueError(f"column '{column}' has {len(value)} answers, {fewest} or more are needed")
    return [said(one, f"{column}[{i}]") for i, one in enumerate(value)]


def answer(value: Any, column: str) -> Any:
    """An answer: text, or the turns that continue a conversation, of which one by the assistant is its text.

    Raises ValueError that names the column: it says nothing, or does not begin with the assistant.
    """
    if not isinstance(value, (list, Mapping)):
        return said(value, column)
    turns = messages(value, column)
    if turns[0]["role"] != "assistant":
        raise ValueError(f"column '{column}' must begin with a turn of the assistant, not of '{turns[0]['role']}'")
    if len(turns) == 1 and set(turns[0]) == {"role", "content"}:
        return said(turns[0]["content"], column)
    return turns


def messages(value: Any, column: str) -> list[dict[str, Any]]:
    """Turns as {"role", "content", ...}, from that form or {"from", "value"}; what is None in a message is left out.

    A content that is a list of text parts becomes their text; none at all, beside `tool_calls`, becomes "". The
    arguments of tool calls become objects. A turn from `function_call` (value: JSON with `name` and `arguments`) is one
    of the assistant with tool calls. Raises ValueError that names the column.
    """
    turns = [value] if isinstance(value, Mapping) else value
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"column '{column}' must be a list of messages")
    return [_message(turn, column) for turn in turns]


def _message(turn: Any, column: str) -> dict[str, Any]:
    what = f"column '{column}': a message needs `role` and `content` (or `from` and `value`), got {turn!r}"
    if not isinstance(turn, Mapping):
        raise ValueError(what)
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    calls = turn.get("tool_calls")
    if role == "function_call":
        calls, content = _loaded(content, column), None
    if not isinstance(role, str) or role not in _ROLES:
        raise ValueError(what)
    if isinstance(content, list):
        content = _joined(content, column)
    if content is None and calls:
        content = ""
    if not isinstance(content, str):
        raise ValueError(what)
    named = {"role", "from", "content", "value", "tool_calls"}
    others = {key: value for key, value in turn.items() if key not in named and value is not None}
    out = {"role": _ROLES[role], "content": content, **others}
    return {**out, "tool_calls": _calls(calls, column)} if calls else out


def _joined(parts: list[Any], column: str) -> str:
    """The text of the parts of a content."""
    for part in parts:
        kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"column '{column}': a content may have parts of text alone, not of '{kind}'")
    return "".join(part["text"] for part in parts)


def _calls(calls: Any, column: str) -> list[dict[str, Any]]:
    """Tool calls as {"type": "function", "function": {"name", "arguments"}, ...}, arguments as objects."""
    out = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ValueError(f"column '{column}': a tool call needs the `name` of a function, got {call!r}")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            arguments = _loaded(arguments or "{}", column)
        given = {key: call[key] for key in ("id", "type") if call.get(key) is not None}
        out.append({"type": "function", **given, "function": {"name": function["name"], "arguments": arguments or {}}})
    return out


def _loaded(value: Any, column: str) -> Any:
    """JSON text as what it stands for."""
    try:
        return json.loads(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"column '{column}': a tool call must be JSON, got {value!r}") from error


def tools(row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The JSON schemas of the column `tools`, a list or its JSON text; None where there are none.

    What files with fixed columns fill in as null is left out. A function without its wrapping gets it. Raises
    ValueError where the column has anything else.
    """
    value = row.get("tools")
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError("column 'tools' must be a list of JSON schemas, or its JSON text") from error
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise ValueError("column 'tools' must be a list of JSON schemas, or its JSON text")
    return [_without_null(t if "function" in t else {"type": "function", "function": t}) for t in value]


def _without_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_null(inner) for key, inner in value.items() if inner is not None}
    return [_without_null(inner) for inner in value] if isinstance(value, list) else value


def prompt(row: Mapping[str, Any], column: str, *, chat: bool) -> str | list[dict[str, str]]:
    """A prompt that is text or messages; with `chat`, text becomes the one message of a user.

    A column of SYSTEM that says something stands before messages, unless these have a system message of their own.
    """
    value = cell(row, column)
    if isinstance(value, (list, Mapping)):
        return with_system(row, messages(value, column))
    asked = text(row, column)
    return with_system(row, [{"role": "user", "content": asked}]) if chat else asked


def with_system(row: Mapping[str, Any], turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """The turns behind the row's system message, where it has one. Raises ValueError where that is not text."""
    for column in SYSTEM:
        if row.get(column) and turns[0]["role"] != "system":
            return [{"role": "system", "content": text(row, column)}, *turns]
    return turns


def conversation(row: Mapping[str, Any], asked: str, *, chat: bool) -> str | list[dict[str, str]]:
    """A prompt behind the turns of `history`, [question, answer] each; without `chat` one text, a line for each turn.

    Raises ValueError where the history is anything else.
    """
    past = row.get("history") or []
    fits = isinstance(past, list) and all(
        isinstance(turn, (list, tuple)) and len(turn) == 2 and all(isinstance(one, str) for one in turn)
        for turn in past
    )
    if not fits:
        raise ValueError("column 'history' must be a list of [question, answer], both texts")
    lines = [one for turn in past for one in turn] + [asked]
    if not chat:
        return "".join(f"{line}\n" for line in lines)
    turns = [{"role": "assistant" if i % 2 else "user", "content": line} for i, line in enumerate(lines)]
    return with_system(row, turns)


def instructed(row: Mapping[str, Any], *, chat: bool) -> str | list[dict[str, str]]:
    """The instruction of a row; its `input` (or `context`), where there is one, stands below after an empty line."""
    asked = text(row, "instruction")
    for column in ("input", "context"):
        if row.get(column):
            asked = f"{asked}\n\n{text(row, column)}"
    return conversation(row, asked, chat=chat)


def asked_in(row: Mapping[str, Any], *, chat: bool, but: str = "") -> str | list[dict[str, str]]:
    """The prompt of a row, in the first column of ASKED that has one. Raises ValueError where none has.

    A `prompt` is text as it stands, unless `chat`; an instruction, question or input is always said by a user.
    """
    for column in ASKED:
        if column == but or row.get(column) is None:
            continue
        if column == "instruction":
            return instructed(row, chat=True)
        if column in ("question", "input"):
            return conversation(row, text(row, column), chat=True)
        return prompt(row, column, chat=chat)
    raise ValueError("no column " + " or ".join(f"'{column}'" for column in ASKED if column != but))


def first(row: Mapping[str, Any], *columns: str) -> str:
    """The first of these columns that the row has, else the first of all, for an error that names it."""
    return next((column for column in columns if column in row), columns[0])
