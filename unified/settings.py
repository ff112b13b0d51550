"""Typed settings of every registered part, and the choice of one part (with its settings) inside another's.

A recipe writes a choice as `clip`, or as `{name: clip, high: 0.28}`. `parse` turns such text into settings and collects
every mistake with its path, so that a recipe can show all of them at once with their lines.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import CoreSchema, PydanticUndefined, core_schema

from unified.errors import Problem, did_you_mean, shown, unknown_name

__all__ = ["Chosen", "Field", "Settings", "choice", "parse"]


class Settings(BaseModel):
    """Base of all settings: unknown keys are refused, values are frozen, and every field says what it means."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, protected_namespaces=())

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Expand what a recipe may leave out, before anything is checked. Keys keep their places."""
        return data

    @model_validator(mode="before")
    @classmethod
    def _build_choices(cls, data: Any) -> Any:
        """In Python, too, a part may be given by its name or as a mapping; ValueError with all that is wrong."""
        if not isinstance(data, Mapping):
            return data
        kinds = {key: choice_kind(cls, key)[0] for key in data if key in cls.model_fields}
        return {key: _chosen(kinds[key], value) if kinds.get(key) else value for key, value in data.items()}


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

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> CoreSchema:
        """An instance, written out as a recipe would."""
        written = core_schema.plain_serializer_function_ser_schema(cls.as_dict)
        return core_schema.is_instance_schema(cls, serialization=written)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        """What a recipe may write: a name, or a mapping with one."""
        return {"anyOf": [{"type": "string"}, {"type": "object", "required": ["name"]}]}


def choice(kind: str, default: Any = ..., *, description: str) -> Any:
    """A settings field that names a part of `kind` (algorithm, dataset, source, reward, ratio, ...) with its settings.

    Annotate it `Chosen`, `Chosen | None` or `list[Chosen]`. The default is what a recipe would write: a name, or a
    mapping with `name`; without one the field is required.
    """
    mark: dict[str, Any] = {"choice": kind}
    if default is ...:
        return Field(description=description, json_schema_extra=mark)
    return Field(default_factory=lambda: _chosen(kind, default), description=description, json_schema_extra=mark)


def _chosen(kind: str | None, value: Any) -> Any:
    """Choices built from what was written; ValueError with everything that is wrong."""
    if isinstance(value, list):
        return [_chosen(kind, item) for item in value]
    if kind is None or value is None:
        return value
    built, problems = choose(kind, value)
    if problems:
        raise ValueError("; ".join(p.under("").text() for p in problems))
    return built


def choose(kind: str, value: Any) -> tuple[Chosen | None, list[Problem]]:
    """Resolve what a recipe wrote for a part of `kind`; the problems are relative to that place."""
    from unified.registry import catalogue

    if isinstance(value, Chosen):
        return value, []
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping):
        hint = f"write a name, or a mapping with `name`; known: {', '.join(catalogue().names(kind))}"
        return None, [Problem(f"a {kind} must be a name or a mapping, not {shown(value)}", (), (hint,))]
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


def parse(cls: type[Settings], data: Mapping[str, Any], *, owner: str, provider: str = "") -> tuple[Any, list[Problem]]:
    """Build `cls` from what a person wrote.

    Returns the settings (None when something is wrong) and every problem, each with its path of keys under `data`.
    `owner` names the thing that has the settings ("algorithm 'x'"), `provider` the plugin that brought it.
    """
    problems: list[Problem] = []
    values: dict[str, Any] = {}
    data = cls.prepare(dict(data))
    for key, value in data.items():
        if key not in cls.model_fields:
            problems.append(_unknown_setting(cls, key, owner, provider))
            continue
        values[key], found = _resolve(cls, key, value, owner)
        problems += [p.under(key) for p in found]
    broken = {p.at[0] for p in problems if p.at}
    try:
        # what is already known to be wrong is left out, so that one run shows every mistake
        built = cls.model_validate({k: v for k, v in values.items() if k not in broken})
        return (None if problems else built), problems
    except ValidationError as error:
        by_place: dict[tuple[str | int, ...], list[Any]] = {}
        for item in error.errors():
            if not (item["loc"] and item["loc"][0] in broken):
                by_place.setdefault(_place_in(data, item), []).append(item)
        # of the members of a union that refused, the one that came furthest tells the most
        deepest = [at for at in by_place if not any(at and other[: len(at)] == at != other for other in by_place)]
        return None, [*problems, *(_problem(by_place[at], at, owner, cls) for at in deepest)]


def _unknown_setting(cls: type[Settings], key: str, owner: str, provider: str) -> Problem:
    found = unknown_name(f"setting in {owner}", key, cls.model_fields)
    source = f"({provider})" if provider else ""
    hints = tuple(f"{h}  {source}".rstrip() if h.startswith("known") else h for h in found.hints)
    return Problem(f"no setting '{key}' in {owner}", (key,), hints)


def _resolve(cls: type[Settings], key: str, value: Any, owner: str) -> tuple[Any, list[Problem]]:
    """What a person wrote, as the field wants it: choices and nested settings built; problems relative to the key."""
    kind, many = choice_kind(cls, key)
    nested, many_nested = nested_settings(cls, key)
    if isinstance(value, bool) and not _takes_bool(cls.model_fields[key].annotation):
        return None, [Problem(f"'{key}' of {owner}: must not be true or false, got {str(value).lower()}")]
    if kind is not None and value is not None:
        if many and isinstance(value, list):
            return _each(value, lambda _, item: choose(kind, item))
        if not many:
            return choose(kind, value)
    if nested is not None and many_nested and isinstance(value, list):
        return _each(value, lambda i, item: _nest(nested, item, f"{key}[{i}] of {owner}"))
    if nested is not None and not many_nested:
        return _nest(nested, value, f"'{key}' of {owner}")
    return value, []


def _each(items: list[Any], build: Callable[[int, Any], tuple[Any, list[Problem]]]) -> tuple[list[Any], list[Problem]]:
    built = [build(i, item) for i, item in enumerate(items)]
    return [value for value, _ in built], [p.under(i) for i, (_, found) in enumerate(built) for p in found]


def _nest(nested: type[Settings], value: Any, owner: str) -> tuple[Any, list[Problem]]:
    """A mapping becomes the nested settings; anything else is left for the field's own validation to refuse."""
    return parse(nested, value, owner=owner) if isinstance(value, Mapping) else (value, [])


def _place_in(data: Any, item: Any) -> tuple[str | int, ...]:
    """The path of keys in what the person wrote; pydantic's also names the types that it tried."""
    at: list[str | int] = []
    last = len(item["loc"]) - 1
    for i, part in enumerate(item["loc"]):
        if _leads(data, part):
            data = data[part]
        elif not (item["type"] == "missing" and i == last) and at:
            continue
        at.append(part)
    return tuple(at)


def _leads(data: Any, part: str | int) -> bool:
    if isinstance(data, Mapping):
        return part in data
    return isinstance(data, list) and isinstance(part, int) and part < len(data)


def _problem(items: list[Any], at: tuple[str | int, ...], owner: str, cls: type[Settings]) -> Problem:
    """What pydantic found at one place; several items are the members of a union that all refused."""
    item = items[0]
    name = ".".join(map(str, at))
    if item["type"] == "missing":
        field = cls.model_fields.get(str(at[0])) if len(at) == 1 else None
        about = f"what it is: {field.description}" if field and field.description else ""
        return Problem(f"{owner} needs '{name}'", at[:-1], (about,) if about else ())
    if item["type"] == "extra_forbidden":
        return Problem(f"no setting '{name}' in {owner}", at)
    messages = dict.fromkeys(i["msg"].removeprefix("Value error, ").partition(", got ")[0] for i in items)
    first, *more = (f"{m[0].lower()}{m[1:]}" for m in messages)
    message = " or ".join([first, *(m.removeprefix("input should be ") for m in more)])
    if not at:
        return Problem(f"{owner}: {message}", at)
    near = _near_literal(item)
    hints = (f"did you mean '{near}'?",) if near else ()
    return Problem(f"'{name}' of {owner}: {message}, got {shown(item['input'])}", at, hints)


def _near_literal(item: Any) -> str | None:
    if item["type"] != "literal_error" or not isinstance(item["input"], str):
        return None
    return did_you_mean(item["input"], re.findall(r"'([^']+)'", item["ctx"]["expected"]))


def _takes_bool(annotation: Any) -> bool:
    """Whether a field may hold true or false; pydantic would read them as 1 and 0 in a field of numbers."""
    return annotation not in (int, float) and not (
        get_origin(annotation) in (Union, UnionType) and set(get_args(annotation)) <= {int, float, str, type(None)}
    )


def nested_settings(cls: type[Settings], key: str) -> tuple[type[Settings] | None, bool]:
    """The Settings class that a field holds, and whether it is a list of them; (None, False) for other fields."""
    return _find_settings(cls.model_fields[key].annotation, False)


def _find_settings(annotation: Any, many: bool) -> tuple[type[Settings] | None, bool]:
    if inspect.isclass(annotation) and issubclass(annotation, Settings):
        return annotation, many
    origin = get_origin(annotation)
    if origin not in (list, Annotated, Union, UnionType):
        return None, False
    found = [_find_settings(inner, many or origin is list) for inner in get_args(annotation)]
    return next((pair for pair in found if pair[0] is not None), (None, False))


def choice_kind(cls: type[Settings], key: str) -> tuple[str | None, bool]:
    """The kind of part that a field chooses, and whether it is a list of them."""
    field = cls.model_fields[key]
    extra = field.json_schema_extra
    kind = extra.get("choice") if isinstance(extra, dict) else None
    return (str(kind), get_origin(field.annotation) is list) if kind else (None, False)


def describe_fields(cls: type[Settings]) -> list[tuple[str, str, str, str]]:
    """(name, type, default, description) of every field, for `show` and the documentation."""
    rows = []
    for name, field in cls.model_fields.items():
        kind, many = choice_kind(cls, name)
        if kind:
            kind_text = f"list of {kind} names" if many else f"{kind} name"
        elif nested_settings(cls, name)[0] is not None:
            kind_text = "list of settings" if nested_settings(cls, name)[1] else "settings"
        elif inspect.isclass(field.annotation) and get_origin(field.annotation) is None:
            kind_text = field.annotation.__name__
        else:
            kind_text = _readable(field.annotation)
        value = field.get_default(call_default_factory=True) if field.default_factory else field.default
        if value is PydanticUndefined:
            default = "required"
        else:
            default = str(value.as_dict() if isinstance(value, Chosen) else value)
            default = "none" if value is None else default
        rows.append((name, kind_text, default, field.description or ""))
    return rows


def _readable(annotation: Any) -> str:
    """A type as a person says it: "padded or packed", "float or none"."""
    words = re.sub(r"typing\.|<class '(\w+)'>", r"\1", str(annotation))
    words = re.sub(r"Literal\[([^\]]*)\]", lambda m: m[1].replace("'", "").replace(", ", " or "), words)
    return words.replace("NoneType", "none").replace("None", "none").replace(" | ", " or ")
