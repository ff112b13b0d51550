"""Typed settings of every registered part, and the choice of one part (with its settings) inside another's.

A recipe writes a choice as `clip`, or as `{name: clip, high: 0.28}`. `parse` turns such text into settings and collects
every mistake with its path, so that a recipe can show all of them at once with their lines.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError, WithJsonSchema
from pydantic_core import PydanticUndefined

from unified.errors import Problem, unknown_name

if TYPE_CHECKING:
    from unified.parts import Part

__all__ = ["Chosen", "Field", "Settings", "choice", "parse"]


class Settings(BaseModel):
    """Base of all settings: unknown keys are refused, values are frozen, and every field says what it means."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, protected_namespaces=())

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Expand what a recipe may leave out, before anything is checked. Keys keep their places."""
        return data


@dataclass(frozen=True)
class Chosen:
    """One registered part together with its settings."""

    part: Any  # a Part; Any, because callers know which kind they asked for
    settings: Settings

    @property
    def name(self) -> str:
        """The name by which a recipe chose it."""
        return str(self.part.name)

    def as_dict(self) -> dict[str, Any]:
        """What a recipe would write for exactly this choice."""
        return {"name": self.name, **self.settings.model_dump(mode="json")}


@dataclass(frozen=True)
class ChoiceOf:
    """Marks a settings field as the choice of a part of one kind."""

    kind: str

    def __call__(self, value: Any) -> Any:
        """Accept a name, a mapping with `name`, or a Chosen; raise ValueError with all that is wrong."""
        chosen, problems = choose(self.kind, value)
        if problems:
            raise ValueError("; ".join(p.under("").text() for p in problems))
        return chosen


def choice(kind: str) -> Any:
    """The type of a settings field that names a part of `kind` (algorithm, dataset, source, reward, ratio, ...)."""
    schema = {"anyOf": [{"type": "string"}, {"type": "object", "required": ["name"]}], "description": f"a {kind}"}
    return Annotated[
        Chosen, ChoiceOf(kind), BeforeValidator(ChoiceOf(kind)), PlainSerializer(Chosen.as_dict), WithJsonSchema(schema)
    ]


def choose(kind: str, value: Any) -> tuple[Chosen | None, list[Problem]]:
    """Resolve what a recipe wrote for a part of `kind`; the problems are relative to that place."""
    from unified.registry import catalogue

    if isinstance(value, Chosen):
        return value, []
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping):
        hint = f"write a name, or a mapping with `name`; known: {', '.join(catalogue().names(kind))}"
        return None, [Problem(f"a {kind} must be a name or a mapping, not {value!r}", (), (hint,))]
    rest = dict(value)
    name = rest.pop("name", None)
    if not isinstance(name, str):
        known = ", ".join(catalogue().names(kind))
        return None, [Problem(f"a {kind} needs a `name`", (), (f"known: {known}",))]
    part = catalogue().find(kind, name)
    if part is None:
        return None, [unknown_name(kind, name, catalogue().names(kind), advice=catalogue().advice(kind, name))]
    settings, problems = parse(part.settings, rest, owner=f"{kind} '{name}'", provider=catalogue().provider(kind, name))
    return (None if settings is None else Chosen(part, settings)), problems


def parse(
    cls: type[Settings], data: Mapping[str, Any], *, owner: str, provider: str = ""
) -> tuple[Any, list[Problem]]:
    """Build `cls` from what a person wrote.

    Returns the settings (None when something is wrong) and every problem found, each with its path of keys under `data`.
    `owner` names the thing that has the settings ("algorithm 'x'"), `provider` the plugin that brought it.
    """
    problems: list[Problem] = []
    values: dict[str, Any] = {}
    data = cls.prepare(dict(data))
    for key, value in data.items():
        if key not in cls.model_fields:
            source = f"({provider})" if provider else ""
            found = unknown_name(f"setting '{key}' in {owner}", key, cls.model_fields, at=(key,))
            hints = tuple(f"{h}  {source}".rstrip() if h.startswith("known") else h for h in found.hints)
            problems.append(Problem(f"no setting '{key}' in {owner}", (key,), hints))
            continue
        kind, many = _choice_kind(cls, key)
        if kind is None or value is None:
            values[key] = value
        elif many and isinstance(value, list):
            picked = [choose(kind, item) for item in value]
            problems += [p.under(key, i) for i, (_, found_in) in enumerate(picked) for p in found_in]
            values[key] = [item for item, _ in picked]
        else:
            chosen, found_here = choose(kind, value)
            problems += [p.under(key) for p in found_here]
            values[key] = chosen
    broken = {p.at[0] for p in problems if p.at}
    try:
        return cls.model_validate(values) if not problems else _validate_rest(cls, values, broken), problems
    except ValidationError as error:
        for item in error.errors():
            if not (item["loc"] and item["loc"][0] in broken):
                problems.append(_problem(item, owner, cls))
        return None, problems


def _validate_rest(cls: type[Settings], values: dict[str, Any], broken: set[Any]) -> None:
    """Validate what is not already known to be wrong, so that one run shows every mistake."""
    cls.model_validate({k: v for k, v in values.items() if k not in broken})


def _problem(item: Any, owner: str, cls: type[Settings]) -> Problem:
    loc = tuple(part for part in item["loc"] if part not in ("function-before", "constrained-str"))
    name = str(loc[0]) if loc else ""
    if item["type"] == "missing":
        text = cls.model_fields[name].description if name in cls.model_fields else ""
        return Problem(f"{owner} needs '{'.'.join(map(str, loc))}'", loc[:-1], ((f"what it is: {text}",) if text else ()))
    if item["type"] == "extra_forbidden":
        return Problem(f"no setting '{'.'.join(map(str, loc))}' in {owner}", loc)
    message = item["msg"].removeprefix("Value error, ")
    if not loc:
        return Problem(f"{owner}: {message}", loc)
    return Problem(f"'{'.'.join(map(str, loc))}' of {owner}: {message[0].lower()}{message[1:]}, got {item['input']!r}", loc)


def _choice_kind(cls: type[Settings], key: str) -> tuple[str | None, bool]:
    """The kind of part that a field chooses, and whether it is a list of them."""
    field = cls.model_fields[key]
    for mark in field.metadata:
        if isinstance(mark, ChoiceOf):
            return mark.kind, False
    return _find_mark(field.annotation, False)


def _find_mark(annotation: Any, many: bool) -> tuple[str | None, bool]:
    if get_origin(annotation) is Annotated:
        for mark in get_args(annotation)[1:]:
            if isinstance(mark, ChoiceOf):
                return mark.kind, many
    for inner in get_args(annotation):
        kind, found_many = _find_mark(inner, many or get_origin(annotation) is list)
        if kind:
            return kind, found_many
    return None, False


def describe_fields(cls: type[Settings]) -> list[tuple[str, str, str, str]]:
    """(name, type, default, description) of every field, for `show` and the documentation."""
    rows = []
    for name, field in cls.model_fields.items():
        kind, many = _choice_kind(cls, name)
        if kind:
            kind_text = f"list of {kind}" if many else f"a {kind}"
        elif inspect.isclass(field.annotation) and get_origin(field.annotation) is None:
            kind_text = field.annotation.__name__
        else:
            kind_text = str(field.annotation).replace("typing.", "")
        value = field.get_default(call_default_factory=True) if field.default_factory else field.default
        if value is PydanticUndefined:
            default = "required"
        else:
            default = str(value.as_dict() if isinstance(value, Chosen) else value)
        rows.append((name, kind_text, default, field.description or ""))
    return rows


def part_of(chosen: Chosen) -> Part:
    """The part behind a choice, typed."""
    part: Part = chosen.part
    return part
