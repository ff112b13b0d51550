"""Tools of an environment: their schemas for the chat template, calls in what the assistant wrote, their results."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unified import UserError

Tool = Callable[..., Any] | Mapping[str, Any]
#: what stands between the tags, to the end of the text where the closing tag is missing
_HERMES = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)


@dataclass
class Call:
    """One call of a tool, as the assistant wrote it.

    name, arguments: of the tool; empty where the text is no call that can be read, and `error` then says why.
    function: the Python function of that name among the environment's tools, None where there is none.
    failed: whether it could not be read, or `run` ended in an error.
    """

    name: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    function: Callable[..., Any] | None = None
    error: str | None = None
    failed: bool = False

    def run(self) -> dict[str, Any]:
        """Call the function; its result as a message of the role `tool`, text as it is and the rest as JSON.

        What goes wrong (no such tool, wrong arguments, the function raises) is the content of the message, for the
        assistant to read: "error: ...".
        """
        return {"role": "tool", "name": self.name, "content": self._content()}

    def _content(self) -> str:
        if self.error is None and self.function is None:
            self.error = f"there is no tool '{self.name}'"
        if self.error is None and self.function is not None:
            try:
                given = self.function(**self.arguments)
                return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False, default=str)
            except Exception as error:
                self.error = f"{type(error).__name__}: {error}"
        self.failed = True
        return f"error: {self.error}"


def schemas(tools: Sequence[Tool], owner: str) -> list[dict[str, Any]]:
    """JSON schemas: mappings as they are, those of functions from type hints and docstrings (Google's style).

    Raises UserError: a tool is neither, or its function lacks a hint or a description.
    """
    from transformers.utils.chat_template_utils import get_json_schema

    out = []
    for tool in tools:
        if isinstance(tool, Mapping):
            out.append(dict(tool))
            continue
        name = getattr(tool, "__name__", repr(tool))
        if not callable(tool):
            raise UserError(f"{owner}: the tool {name} is neither a function nor a JSON schema")
        try:
            out.append(dict(get_json_schema(tool)))
        except Exception as error:
            raise UserError(
                f"{owner}: no schema can be made of the tool '{name}': {error}",
                "give every argument a type hint, and the docstring a line for each under `Args:`",
            ) from error
    return out


def functions(tools: Sequence[Tool]) -> dict[str, Callable[..., Any]]:
    """The Python functions among the tools, by the names that schemas give them."""
    return {tool.__name__: tool for tool in tools if callable(tool)}


def calls_in(text: str, how: str, known: Mapping[str, Callable[..., Any]]) -> list[Call]:
    """The calls in a turn of the assistant, in their order; [] where there are none.

    how: "hermes": JSON between <tool_call> and </tool_call>; "json": a text that is one JSON object with `name`, or a
    list of such; "none": none are looked for.
    """
    if how == "none":
        return []
    if how == "hermes":
        return [_call(found[1].strip(), known) for found in _HERMES.finditer(text)]
    try:
        value = json.loads(text)
    except ValueError:
        return []
    several = value if isinstance(value, list) else [value]
    if not several or not all(isinstance(one, Mapping) and "name" in one for one in several):
        return []
    return [_read(one, known) for one in several]


def _call(text: str, known: Mapping[str, Callable[..., Any]]) -> Call:
    try:
        return _read(json.loads(text), known)
    except ValueError as error:
        return Call(error=f"the call is no JSON: {error}", failed=True)


def _read(value: Any, known: Mapping[str, Callable[..., Any]]) -> Call:
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        return Call(error='a call is {"name": ..., "arguments": {...}}', failed=True)
    name = value["name"]
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = None
    if not isinstance(arguments, Mapping):
        return Call(name, error="the arguments are no JSON object", failed=True)
    return Call(name, dict(arguments), known.get(name))
