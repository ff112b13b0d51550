"""`unified schema`: the JSON schema (draft 2020-12) of recipes, for editors, from the settings of what is installed.

A schema says less than `unified check`: columns, names of stages, settings that need each other, and a shorter form
that a part completes are left open. It knows the kind of a stage only where the stage says it. It imports no torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import TypeAdapter
from pydantic_core import PydanticUndefined

from unified.edges import KEY as ALLOW
from unified.parts import KINDS, Part
from unified.recipe import DEFAULT_KIND, NAME, RecipeFile
from unified.registry import catalogue
from unified.rounds import BlockSettings
from unified.settings import Chosen, Settings, choice_kind, nested_settings

DRAFT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]


def recipe_schema() -> Schema:
    """The schema of a recipe with all parts that are installed; what a part is called is its `name` or a text alone."""
    known = catalogue()
    stages = known.names("stage")
    properties = _properties(RecipeFile)
    properties["model"] = _either({"type": "string"}, properties["model"])
    properties["defaults"] = {
        "type": "object",
        "description": _said(RecipeFile, "defaults"),
        "properties": _any_stage(stages),
        "additionalProperties": False,
    }
    stage = {"anyOf": [{"$ref": "#/$defs/stage"}, {"$ref": "#/$defs/block"}]}
    properties["stages"] = _by_name(stage, _said(RecipeFile, "stages"), least=1)
    overlay = {key: properties[key] for key in properties if key not in ("profiles", "stages")}
    overlay["stages"] = _by_name({"type": "object"}, "changes of stages by name")
    profile = {"type": "object", "properties": overlay, "additionalProperties": False}
    properties["profiles"] = _by_name(profile, _said(RecipeFile, "profiles"))
    required = [key for key, field in RecipeFile.model_fields.items() if field.is_required()]
    return {
        "$schema": DRAFT,
        "title": "a recipe of unified",
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
        "$defs": _definitions(stages),
    }


def _definitions(stages: list[str]) -> Schema:
    known = catalogue()
    out: Schema = {}
    for kind in known.kinds():
        if kind != "stage":
            out[kind] = _choice_of(kind)
            out |= {f"{kind}.{name}": _part(known.get(kind, name), kind) for name in known.names(kind)}
    for kind in KINDS:
        if kind not in ("rule", "stage"):
            out.setdefault(kind, {"type": ["string", "object"]})
    out |= {f"stage.{name}": _stage(name) for name in stages}
    of_kind = [
        {
            "if": {"properties": {"kind": {"const": name}}, **({} if name == DEFAULT_KIND else {"required": ["kind"]})},
            "then": {"$ref": f"#/$defs/stage.{name}"},
        }
        for name in stages
    ]
    does = {"enum": stages, "description": "what the stage does", "default": DEFAULT_KIND}
    out["stage"] = {"type": "object", "properties": {"kind": does}, "allOf": of_kind}
    out["block"] = {
        "type": "object",
        "description": "rounds: the stages run in order, again and again",
        "properties": {
            **_properties(BlockSettings),
            "stages": _by_name(_stage_of_block(stages), _said(BlockSettings, "stages"), least=1),
        },
        "required": ["repeat", "stages"],
        "additionalProperties": False,
    }
    return out


def _by_name(value: Schema, description: str, *, least: int = 0) -> Schema:
    """A mapping by names of stages or profiles."""
    out: Schema = {"type": "object", "description": description, "additionalProperties": value}
    out["propertyNames"] = {"pattern": f"^({NAME.pattern})$"}
    return {**out, "minProperties": least} if least else out


def _any_stage(stages: list[str]) -> Schema:
    """What may stand under `defaults`: settings of some kind of stage; one of several kinds may be either."""
    found: dict[str, list[Schema]] = {"kind": [{"enum": stages}], ALLOW: [{}]}
    for name in stages:
        for key, schema in _properties(catalogue().get("stage", name).settings).items():
            if schema not in found.setdefault(key, []):
                found[key].append(schema)
    return {key: schemas[0] if len(schemas) == 1 else {"anyOf": schemas} for key, schemas in found.items()}


def _stage_of_block(stages: list[str]) -> Schema:
    """A stage of a round, whose values may be written `{by_round: [...]}` or `{first: ..., then: ...}` at any depth."""
    properties = {key: _either(schema, {"type": ["object", "array"]}) for key, schema in _any_stage(stages).items()}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _stage(name: str) -> Schema:
    """The settings of a kind of stage; what `defaults` may bring is not required."""
    part = catalogue().get("stage", name)
    properties = {"kind": {"const": name}, ALLOW: {"description": "differences between models that are meant"}}
    return {
        "description": _first_line(part),
        "type": "object",
        "properties": {**properties, **_properties(part.settings)},
        "additionalProperties": False,
    }


def _choice_of(kind: str) -> Schema:
    """A part by its name, or a mapping with `name` and its settings; a dataset also by the path of a file.

    A mapping without a name is left open: some settings complete it.
    """
    names = catalogue().names(kind)
    text: Schema = {"enum": names}
    if kind == "dataset":  # the path of a file, or stage:NAME
        text = {"anyOf": [{"enum": names}, {"type": "string", "pattern": r"[/.:]"}]}
    by_name = [
        {
            "if": {"properties": {"name": {"const": name}}, "required": ["name"]},
            "then": {"$ref": f"#/$defs/{kind}.{name}"},
        }
        for name in names
    ]
    mapping = {"type": "object", "properties": {"name": {"enum": names}}, "allOf": by_name}
    return {"anyOf": [text, mapping]}


def _part(part: Part, kind: str) -> Schema:
    properties = _properties(part.settings)
    if _completes(part.settings):
        properties = {key: _open(schema) for key, schema in properties.items()}
    required = [k for k, field in part.settings.model_fields.items() if field.is_required()]
    out: Schema = {
        "description": _first_line(part),
        "type": "object",
        "properties": {"name": {"const": part.name, "description": f"the {kind}"}, **properties},
        "additionalProperties": False,
    }
    return out if _completes(part.settings) or not required else {**out, "required": required}


def _completes(cls: type[Settings]) -> bool:
    """Whether settings may be written in a shorter form than they have, so that not all of it can be said here."""
    return "prepare" in cls.__dict__


def _open(schema: Schema) -> Schema:
    """A field that may also be written in another form, which its part completes: a word, or a mapping for a list."""
    shorter = {"array": {"type": "object"}}.get(str(schema.get("type")))
    shorter = {"type": "string"} if "$ref" in schema or "anyOf" in schema else shorter
    if shorter is None:
        return schema
    about: Schema = {key: schema[key] for key in ("default", "description") if key in schema}
    return {"anyOf": [{key: value for key, value in schema.items() if key not in about}, shorter], **about}


def _properties(cls: type[Settings]) -> Schema:
    return {key: _field(cls, key) for key in cls.model_fields}


def _field(cls: type[Settings], key: str) -> Schema:
    """Type, bounds, default and description of one setting."""
    field = cls.model_fields[key]
    kind, many = choice_kind(cls, key)
    nested, many_nested = nested_settings(cls, key)
    if kind is not None:
        one: Schema = {"$ref": f"#/$defs/{kind}"} if kind in catalogue().kinds() or kind in KINDS else {}
        out = {"type": "array", "items": one} if many else one
    elif nested is not None:
        one = {"type": "object", "properties": _properties(nested), "additionalProperties": False}
        out = {"type": "array", "items": one} if many_nested else one
        if _completes(cls) and not many_nested:  # a word may stand for it
            out = _either({"type": "string"}, out)
    else:
        out = _plain(field.annotation, field.metadata)
    if (kind or nested) and _may_be_none(field.annotation):
        out = _either({"type": "null"}, out)
    default = field.get_default(call_default_factory=True) if field.default_factory else field.default
    if default is not PydanticUndefined:
        out = {**out, "default": _written(default)}
    return {**out, "description": field.description} if field.description else out


def _plain(annotation: Any, metadata: list[Any]) -> Schema:
    """What pydantic says of a type that is no part and no settings."""
    whole: Any = Annotated[annotation, *metadata] if metadata else annotation
    made = TypeAdapter(whole).json_schema()
    return made if isinstance(made, dict) else {}


def _may_be_none(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, UnionType) and type(None) in get_args(annotation)


def _written(value: Any) -> Any:
    """A default as a recipe would write it."""
    if isinstance(value, Chosen):
        return value.as_dict()
    if isinstance(value, Settings):
        return value.model_dump(mode="json")
    if isinstance(value, (list, tuple)):
        return [_written(item) for item in value]
    return {k: _written(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _either(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def _said(cls: type[Settings], key: str) -> str:
    return cls.model_fields[key].description or ""


def _first_line(part: Part) -> str:
    doc = part.doc() or inspect.getdoc(part.settings) or ""
    return next((line.strip() for line in doc.splitlines() if line.strip()), "")
