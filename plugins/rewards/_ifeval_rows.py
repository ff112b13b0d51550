"""What a row asks of its answers: instructions by id, each with arguments that fit it."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from unified import did_you_mean
from unified_plugins.rewards._ifeval_checks import CHECKS


class Unreadable(ValueError):  # noqa: N818 - what is wrong is in its message and hints
    """A row that cannot be read: what is wrong, and lines of advice in `hints`."""

    def __init__(self, message: str, *hints: str | None) -> None:
        super().__init__(message)
        self.hints = [hint for hint in hints if hint]


@dataclass(frozen=True)
class Instruction:
    """One instruction of a row: its id, and its arguments by name."""

    name: str
    arguments: Mapping[str, Any]

    def obeyed(self, text: str) -> bool:
        """Whether a text obeys it; a blank text obeys none, as in the published code."""
        return bool(text.strip()) and CHECKS[self.name](text, **self.arguments)


def instructions_of(ids: Any, arguments: Any, prompt: Any = None) -> list[Instruction]:
    """The instructions of a row, from its list of ids and its list of arguments (one object, or null, for each id).

    Arguments that are null are as if they were not there. `prompt` (a text) is what `combination:repeat_prompt` wants
    repeated where its arguments do not say.

    Raises:
        Unreadable: no lists, or not of one length; an unknown id; an argument that is unknown, missing, or no value of
            its type.
        UserError: a language has to be checked, and its library is not installed.
    """
    for what, value in (("instruction ids", ids), ("arguments", arguments)):
        if not isinstance(value, (list, tuple)):
            raise Unreadable(f"the {what} must be a list, not {value!r:.60}")
    if len(ids) != len(arguments):
        raise Unreadable(f"{len(ids)} instruction ids have {len(arguments)} objects of arguments; give one for each")
    return [_instruction(name, given, prompt) for name, given in zip(ids, arguments, strict=True)]


def _instruction(name: Any, given: Any, prompt: Any) -> Instruction:
    if not isinstance(name, str) or name not in CHECKS:
        near = did_you_mean(str(name), CHECKS)
        raise Unreadable(
            f"no instruction '{name}'", near and f"did you mean '{near}'?", f"known: {', '.join(sorted(CHECKS))}"
        )
    if not isinstance(given, (Mapping, type(None))):
        raise Unreadable(f"the arguments of {name} must be an object, not {given!r:.60}")
    said = {key: value for key, value in (given or {}).items() if value is not None}
    wanted = _arguments(name)
    if "prompt_to_repeat" in wanted and isinstance(prompt, str):
        said = {"prompt_to_repeat": prompt, **said}
    known = f"{name} has: {', '.join(wanted) or 'no arguments'}"
    for key in said:
        if key not in wanted:
            near = did_you_mean(str(key), wanted)
            raise Unreadable(f"{name} has no argument '{key}'", near and f"did you mean '{near}'?", known)
    for key in wanted:
        if key not in said:
            raise Unreadable(f"{name} lacks its argument '{key}'", known)
    return Instruction(name, {key: _value(name, key, wanted[key], value) for key, value in said.items()})


def _value(name: str, key: str, of: TypeAdapter[Any], value: Any) -> Any:
    try:
        return of.validate_python(value)
    except ValidationError as error:
        why = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise Unreadable(f"{name}: {key} is {value!r:.60}: {why[0].lower()}{why[1:]}") from error


@cache
def _arguments(name: str) -> dict[str, TypeAdapter[Any]]:
    """What the check of an instruction takes besides the text, with what its values must be."""
    parameters = inspect.signature(CHECKS[name]).parameters.values()
    return {p.name: TypeAdapter(p.annotation) for p in parameters if p.kind is p.KEYWORD_ONLY}
