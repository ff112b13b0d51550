"""Datasets that a stage writes and a later one reads: `data: stage:NAME`, short for {name: files, path: stage:NAME}.

The recipe is checked with the reference as it stands; when the stage's turn comes, the reference becomes the path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from unified.errors import UserError
from unified.settings import Chosen, Settings, choose

STAGE = "stage:"


def made_by(data: Any) -> str | None:
    """The reference `stage:NAME` of a dataset that a stage makes; None for every other choice of a part."""
    if not isinstance(data, Chosen) or data.part.kind != "dataset":
        return None
    path = getattr(data.settings, "path", None)
    return path if isinstance(path, str) and path.startswith(STAGE) else None


def is_to_come(data: Any) -> bool:
    """Whether rows of a dataset, or of one inside it, are yet to be written by a stage, or to be fetched."""
    if isinstance(data, Chosen):
        own = made_by(data) is not None or (data.part.kind == "dataset" and data.part.remote)
        return own or is_to_come(data.settings)
    if isinstance(data, Settings):
        return any(is_to_come(getattr(data, key)) for key in type(data).model_fields)
    return isinstance(data, (list, tuple)) and any(is_to_come(item) for item in data)


def references(value: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """(path of keys, `stage:NAME`) of every dataset of a stage that settings name, at any depth."""
    reference = made_by(value)
    if reference is not None:
        yield (*at, "path"), reference
    elif isinstance(value, Chosen):
        yield from references(value.settings, at)
    elif isinstance(value, Settings):
        for key in type(value).model_fields:
            yield from references(getattr(value, key), (*at, key))
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from references(item, (*at, i))


def resolved(value: Any, find: Callable[[str], Mapping[str, Any]]) -> Any:
    """The same settings, with the datasets of stages as files: `find("stage:NAME")` says how theirs is read."""
    reference = made_by(value)
    if reference is not None:
        return _as_file(value, find(reference))
    if isinstance(value, Chosen):
        return Chosen(value.part, resolved(value.settings, find))
    if isinstance(value, Settings):
        named = {key: getattr(value, key) for key in type(value).model_fields}
        changed = {key: new for key, old in named.items() if (new := resolved(old, find)) is not old}
        return value.model_copy(update=changed) if changed else value
    if isinstance(value, list):
        items = [resolved(item, find) for item in value]
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    return value


def _as_file(data: Chosen, said: Mapping[str, Any]) -> Chosen:
    """The choice with the stage's path, and what else the stage says of its file where the recipe says nothing."""
    written = {key: getattr(data.settings, key) for key in data.settings.model_fields_set if key != "path"}
    if {"held_out", "held_out_path"} & written.keys():  # the recipe draws its own
        said = {key: value for key, value in said.items() if key not in ("held_out", "held_out_path")}
    found, problems = choose("dataset", {"name": data.name, **said, **written})
    if found is None:
        raise UserError(problems[0].text())
    return found


def files_of(dataset: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What a stage says of its dataset, with the paths (relative to its folder) as they are found from anywhere."""
    return {
        key: str((folder / value).absolute()) if key.endswith("path") and value is not None else value
        for key, value in dataset.items()
    }
