"""A verifier of form: 1 for an answer that is JSON and fits a schema.

What is read is the last block between ``` fences, or, where there is none, the whole answer. Numbers like NaN are no
JSON. Source of the schemas: JSON Schema (json-schema.org), in the draft that `$schema` names, else 2020-12; checked by
the library jsonschema. Nothing is fetched: a `$ref` must lead to a place within the schema.
"""

import json
import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from unified import Field, Problem, PromptGroup, Reward, Settings, UserError, hookimpl
from unified_plugins.rewards._columns import lacking, nothing_in
from unified_plugins.rewards._extras import needs

_BLOCK = re.compile(r"```[ \t]*[\w+-]*[ \t]*\n(.*?)```", re.DOTALL)


class JsonSchemaSettings(Settings):
    """The schema, and what an answer is worth that does not fit."""

    fits: dict[str, Any] | None = Field(None, description="the schema; without one and without `column`, any JSON fits")
    column: str | None = Field(None, description="column with the schema of the row, as an object or as text")
    right: float = Field(1.0, description="of JSON that fits")
    parsed: float = Field(0.0, description="of JSON that does not fit")
    wrong: float = Field(0.0, description="of what is no JSON")

    def model_post_init(self, _: Any) -> None:
        """ValueError for a schema that is none, for two of them, or where the library is not installed."""
        needs("jsonschema", extra="json")
        if self.fits is not None and self.column is not None:
            raise ValueError("give `fits` or `column`, not both")
        if self.fits is not None and (problem := _problem_of(self.fits)):
            raise ValueError(f"fits is no JSON schema: {problem}")


def check(settings: JsonSchemaSettings, columns: frozenset[str] | None) -> list[Problem]:
    """A column that no row has."""
    return lacking(settings.column, columns) if settings.column is not None else []


def judge(groups: list[PromptGroup], settings: JsonSchemaSettings) -> list[list[float | None]]:
    """right, parsed or wrong for every answer; missing where the column of the row holds no schema.

    Raises UserError where `fits` refers to a place outside of it.
    """
    return [_of_group(group, settings) for group in groups]


def _of_group(group: PromptGroup, settings: JsonSchemaSettings) -> list[float | None]:
    schema: Any = settings.fits if settings.fits is not None else True
    if settings.column is not None:
        schema = _of_row(group.columns.get(settings.column))
    if schema is None or isinstance(schema, _Unreadable):
        nothing_in(group, str(settings.column), "JSON schema")
        return [None] * len(group.answers)
    return [_worth(answer.text, schema, settings) for answer in group.answers]


class _Unreadable:
    """In the place of JSON where there is none."""


def _worth(text: str, schema: Any, settings: JsonSchemaSettings) -> float | None:
    blocks = _BLOCK.findall(text)
    value = _json(blocks[-1] if blocks else text)
    if isinstance(value, _Unreadable):
        return settings.wrong
    try:
        return settings.right if _validator(schema).is_valid(value) else settings.parsed
    except import_module("referencing.exceptions").Unresolvable as error:
        if settings.column is not None:
            return None
        raise UserError(
            f"reward 'json_schema': `fits` has a reference that leads nowhere within it: {error.ref}",
            "write what it refers to under `$defs` of the same schema",
        ) from error
    except RecursionError:
        return settings.parsed


def _json(text: str) -> Any:
    """What a text says as JSON; _Unreadable for what is none."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return _Unreadable()


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _of_row(given: Any) -> Any:
    """The schema in a row; None for what is none."""
    schema = _json(given) if isinstance(given, str) else given
    return schema if isinstance(schema, (Mapping, bool)) and not _problem_of(schema) else None


def _validator(schema: Any) -> Any:
    library = import_module("jsonschema")
    known = library.validators.validator_for(schema, default=library.Draft202012Validator)
    return known(schema, registry=import_module("referencing").Registry())


def _problem_of(schema: Any) -> str:
    """What makes a schema none, "" for nothing."""
    library = import_module("jsonschema")
    try:
        library.validators.validator_for(schema, default=library.Draft202012Validator).check_schema(schema)
    except library.SchemaError as error:
        return str(error.message)
    return ""


@hookimpl
def unified_rewards() -> list[Reward]:
    """Offer the verifier as `reward: {name: json_schema, fits: {...}}`."""
    return [Reward("json_schema", JsonSchemaSettings, judge=judge, check=check)]
