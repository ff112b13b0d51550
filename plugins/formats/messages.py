"""Rows of `messages` (role, content), or of `conversations` (from, value): the answer is what the assistant says.

The turns before the first one of the assistant are the prompt, all from there on the answer, of which the assistant's
turns are learned; with `train_on: last` the prompt reaches to the last turn. A conversation that does not end with the
assistant has no answer and serves as a prompt. Turns may call tools (`tool_calls`, `function_call`) and hold what these
gave (`tool`, `observation`); `tools`, JSON schemas or their JSON text, go to the chat template.
"""

from collections.abc import Mapping
from typing import Any, Literal

from unified import DataFormat, Example, Field, Settings, hookimpl
from unified_plugins.formats._rows import answer, cell, first, messages, tools, with_system


class MessagesSettings(Settings):
    """What is learned of a conversation."""

    train_on: Literal["all", "last"] = Field(
        "all", description="all turns of the assistant behind the first of the user, or the last alone"
    )
    join_turns: bool = Field(
        False, description="turns of one role that follow each other become one, with an empty line between them"
    )


def recognises(columns: frozenset[str], row: Mapping[str, Any]) -> bool:
    """A conversation, and no pair of answers and no label, true or false, beside it."""
    judged = columns & {"chosen", "rejected"} or isinstance(row.get("label"), bool)
    return bool(columns & {"messages", "conversations"}) and not judged


def convert(row: Mapping[str, Any], settings: MessagesSettings) -> Example:
    """The conversation cut before its answer. ValueError where nothing precedes it."""
    column = first(row, "messages", "conversations")
    turns = messages(cell(row, column), column)
    if settings.join_turns:
        turns = _joined(turns)
    turns = with_system(row, turns)
    schemas = tools(row)
    columns = {key: value for key, value in row.items() if key != "tools"} | ({"tools": schemas} if schemas else {})
    if turns[-1]["role"] != "assistant":
        return Example(turns, columns=columns)
    if len(turns) == 1:
        raise ValueError(f"column '{column}' has an answer but no turn before it")
    begin = len(turns) - 1 if settings.train_on == "last" else _first_answer(turns)
    return Example(turns[:begin], [answer(turns[begin:], column)], columns=columns)


def _first_answer(turns: list[dict[str, Any]]) -> int:
    """The first turn of the assistant with another's turn before it; a greeting that opens belongs to the prompt."""
    asked = next((i for i, turn in enumerate(turns) if turn["role"] != "assistant"), None)
    if asked is None:
        raise ValueError("nobody but the assistant speaks, so there is no turn to answer")
    return next(i for i in range(asked, len(turns)) if turns[i]["role"] == "assistant")


def _joined(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Turns of one role in one; those with more than a content (tool calls, results) stay as they are."""
    out: list[dict[str, Any]] = []
    for turn in turns:
        plain = out and set(turn) == set(out[-1]) == {"role", "content"}
        if plain and turn["role"] == out[-1]["role"] != "tool":
            out[-1] = {"role": turn["role"], "content": f"{out[-1]['content']}\n\n{turn['content']}"}
        else:
            out.append(turn)
    return out


@hookimpl
def unified_formats() -> list[DataFormat]:
    """Offer the format as `format: messages`."""
    return [DataFormat("messages", MessagesSettings, recognises=recognises, convert=convert)]
