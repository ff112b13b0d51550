"""Rows of a file: jsonl, json, csv, tsv (each also gzipped), parquet or arrow.

A format says how a row becomes a prompt and its answers; it is recognised from the columns of the first row where
exactly one format fits them. The held-out rows are drawn once for all stages, with a seed of their own, so that no
stage trains on what another one is measured on. Each row keeps all its columns, and `file` and `row` (its line).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from unified import (
    Chosen,
    Dataset,
    Example,
    Field,
    Settings,
    UserError,
    call_named,
    catalogue,
    choice,
    did_you_mean,
    hookimpl,
)
from unified_plugins.datasets._readers import Numbered, read


class FilesSettings(Settings):
    """Where the rows are and how they are read."""

    path: str = Field(description="the file, relative to the recipe")
    format: Chosen | None = choice("format", None, description="how a row is read; auto or none: by its columns")
    columns: dict[str, str] = Field({}, description="names the format wants: the file's columns, {prompt: Question}")
    limit: int | None = Field(None, ge=1, description="only so many rows from the beginning of the file")
    held_out: float = Field(0.1, ge=0, description="rows never trained on: a share below 1, or a number of rows")
    held_out_path: str | None = Field(None, description="a file of held-out rows; then all of `path` is trained on")
    held_out_seed: int = Field(0, description="draws the held-out rows; the same for all stages")
    bad_rows: Literal["refuse", "drop"] = Field(
        "refuse", description="rows that do not fit: an error, or dropped and counted"
    )

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        """`format: auto` is the same as no format."""
        return {key: value for key, value in data.items() if (key, value) != ("format", "auto")}


class Rows(list[Example]):
    """Examples, and in `counts` how many rows were left out on the way."""

    def __init__(self, examples: Sequence[Example], counts: Mapping[str, int]) -> None:
        super().__init__(examples)
        self.counts = dict(counts)


def open_files(settings: FilesSettings, split: str, folder: Path) -> Rows:
    """The rows of one split, in the order of the file.

    Raises UserError: a missing or empty file, an unknown column in `columns`, columns that no format or more than one
    recognises, a row that does not fit, a held-out split that has no rows or leaves none.
    """
    if split == "held_out" and settings.held_out_path is not None:
        return _examples(settings, _find(settings.held_out_path, folder))
    rows = _examples(settings, _find(settings.path, folder))
    return rows if settings.held_out_path is not None else split_rows(rows, settings, split, where=settings.path)


def split_rows(rows: Rows, settings: Any, split: str, *, where: str) -> Rows:
    """The rows that are held out, or the others, as `held_out` and `held_out_seed` of the settings say.

    Raises UserError where a split would be empty.
    """
    held_out = _held_out(len(rows), settings, where=where)
    if split == "held_out" and not held_out:
        raise UserError(f"{where}: no rows are held out", "set held_out: 0.1, or say where held-out rows are")
    return Rows([e for i, e in enumerate(rows) if (i in held_out) == (split == "held_out")], rows.counts)


def _held_out(rows: int, settings: Any, *, where: str) -> set[int]:
    share = settings.held_out
    number = int(share) if share >= 1 else (max(1, round(share * rows)) if share else 0)
    if number >= rows:
        raise UserError(
            f"{where}: {number} rows are to be held out, but there are {rows} in all", "set a smaller held_out"
        )
    return set(random.Random(settings.held_out_seed).sample(range(rows), number))


def _find(name: str, folder: Path) -> Path:
    path = Path(folder) / Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a file", f"it holds: {_listed(path)}")
    if not path.parent.is_dir():
        raise UserError(f"no file {path}: there is no folder {path.parent}", "paths are relative to the recipe")
    near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()])
    hints = [f"did you mean '{near}'?"] if near else []
    raise UserError(
        f"no file {path}", *hints, f"the folder holds: {_listed(path.parent)}", "paths are relative to the recipe"
    )


def _listed(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir())
    return ", ".join(names[:12]) + (f", and {len(names) - 12} more" if len(names) > 12 else "") or "nothing"


def _examples(settings: FilesSettings, path: Path) -> Rows:
    return examples_of(settings, read(path), path)


def examples_of(settings: Any, numbered: Iterable[Numbered], path: Path | str) -> Rows:
    """Rows as examples, by `format`, `columns`, `limit` and `bad_rows` of the settings; path: where they come from.

    Raises UserError: no rows, an unknown column in `columns`, no format or more than one that fits, a row that does
    not fit.
    """
    examples: list[Example] = []
    bad = 0
    chosen = settings.format
    for number, raw in islice(numbered, settings.limit):
        if not examples and not bad:
            _check_columns(settings.columns, raw, path)
            chosen = chosen or _recognise(frozenset(_renamed(raw, settings.columns)), path)
        try:
            examples.append(_example(chosen, (number, raw), settings.columns, path))
        except ValueError as error:
            bad += 1
            if settings.bad_rows == "refuse":
                name = getattr(chosen, "name", "")
                raise UserError(
                    f"{path}:{number}: {error}  (format '{name}')",
                    f"the row has: {', '.join(raw)}",
                    "`columns: {prompt: NAME}` says which column is which; `bad_rows: drop` leaves such rows out",
                ) from error
    if not examples:
        raise UserError(f"{path}: all {bad} rows do not fit" if bad else f"{path}: the file has no rows")
    return Rows(examples, {"dropped_bad": bad} if bad else {})


def _example(chosen: Any, numbered: Numbered, columns: Mapping[str, str], path: Path | str) -> Example:
    number, raw = numbered
    example: Example = call_named(chosen.part.convert, row=_renamed(raw, columns), settings=chosen.settings)
    example.columns.update(file=str(path), row=number)
    return example


def _renamed(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row under the names of the format; a column that has a new name loses its old one."""
    moved = {wanted: row[name] for wanted, name in columns.items() if name in row}
    return {**{k: v for k, v in row.items() if k not in columns.values()}, **moved}


def _check_columns(columns: Mapping[str, str], row: Mapping[str, Any], path: Path | str) -> None:
    for wanted, name in columns.items():
        if name not in row:
            near = did_you_mean(name, list(row))
            hints = [f"did you mean '{near}'?"] if near else []
            raise UserError(f"{path}: no column '{name}' (for '{wanted}')", *hints, f"the file has: {', '.join(row)}")


def _recognise(names: frozenset[str], path: Path | str) -> Chosen:
    known = catalogue()
    parts = [known.get("format", name) for name in known.names("format")]
    fits = [part for part in parts if part.recognises is not None and part.recognises(names)]
    if len(fits) == 1:
        return Chosen(fits[0], fits[0].settings())
    has = f"the file has: {', '.join(sorted(names))}"
    if fits:
        both = " and ".join(f"'{part.name}'" for part in fits)
        raise UserError(
            f"{path}: the formats {both} both fit its columns", has, f"choose one: `format: {fits[0].name}`"
        )
    needs = [f"{part.name}: {part.doc().split(chr(10))[0]}" for part in parts]
    raise UserError(
        f"{path}: no format fits its columns", has, "name them with `columns:`, or choose a `format:`", *needs
    )


@hookimpl
def unified_datasets() -> list[Dataset]:
    """Offer files as `data: {name: files, path: ...}`."""
    return [Dataset("files", FilesSettings, open=open_files)]
