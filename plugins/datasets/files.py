"""Rows of files: jsonl, json, csv, tsv, parquet, arrow or txt, each also gzipped; a folder or a pattern of them.

A format says how a row becomes a prompt and its answers; it is recognised from the columns of the first rows (and
where these do not decide, from what stands in them) where exactly one format fits them all. The held-out rows are drawn
once for all stages, with a seed of their own, so that no stage trains on what another one is measured on. Each row
keeps all its columns, and `file` and `row` (its line).
"""

from __future__ import annotations

import glob
import json
import random
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from unified import Chosen, Dataset, Field, Settings, UserError, choice, did_you_mean, hookimpl
from unified_plugins.datasets._examples import Converter, Rows, examples_of
from unified_plugins.datasets._readers import ENDINGS, Raw, TextRows, ending_of, read
from unified_plugins.datasets._streaming import Streamed, shelf_of


class FilesSettings(Settings):
    """Where the rows are and how they are read."""

    path: str = Field(description="the file, relative to the recipe; a folder, or a pattern such as rows/*.jsonl")
    format: Chosen | None = choice("format", None, description="how a row is read; auto or none: by its columns")
    columns: dict[str, str] = Field({}, description="names the format wants: the file's columns, {prompt: Question}")
    limit: int | None = Field(None, ge=1, description="only so many rows from the beginning of the file")
    held_out: float = Field(0.1, ge=0, description="rows never trained on: a share below 1, or a number of rows")
    held_out_path: str | None = Field(None, description="a file of held-out rows; then all of `path` is trained on")
    held_out_seed: int = Field(0, description="draws the held-out rows; the same for all stages")
    bad_rows: Literal["stop", "skip"] = Field(
        "stop", description="rows that do not fit: an error, or left out and counted"
    )
    text_rows: TextRows = Field("paragraph", description="what a row of a .txt file is; paragraphs end at empty lines")
    streaming: bool = Field(False, description="rows stay in the file and are read when needed: jsonl, parquet, arrow")

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        """`format: auto` is the same as no format; `rows` is `./rows`, so that a path is seen to be one."""
        told = {key: value for key, value in data.items() if (key, value) != ("format", "auto")}
        for key in ("path", "held_out_path"):
            if isinstance(value := told.get(key), str) and value and not set(value) & set("./~:"):
                told[key] = f"./{value}"
        return told


def open_files(settings: FilesSettings, split: str, folder: Path) -> Rows | Streamed:
    """The rows of one split, in the order of the file; files of a folder in the order of their names.

    Raises UserError: a missing or empty file, an unknown column in `columns`, columns that no format or more than one
    recognises, a row that does not fit, a held-out split that has no rows or leaves none.
    """
    if split == "held_out" and settings.held_out_path is not None:
        return _examples(settings, settings.held_out_path, folder)
    rows = _examples(settings, settings.path, folder)
    return rows if settings.held_out_path is not None else split_rows(rows, settings, split, where=settings.path)


def _examples(settings: FilesSettings, name: str, folder: Path) -> Rows | Streamed:
    paths = find(name, folder)
    where = str(paths[0] if len(paths) == 1 else Path(folder) / name)
    if settings.streaming:
        return Streamed([shelf_of(path) for path in paths], Converter(settings, where))
    return examples_of(settings, _raws(paths, settings.text_rows), where)


def _raws(paths: Sequence[Path], text_rows: TextRows) -> Iterator[Raw]:
    for path in paths:
        yield from read(path, text_rows)


# --- held-out rows ---


def split_rows(rows: Rows | Streamed, settings: Any, split: str, *, where: str) -> Rows | Streamed:
    """The rows that are held out, or the others, as `held_out` and `held_out_seed` of the settings say.

    Rows of the file are drawn: all examples that a format made of one row are on one side. Raises UserError where a
    split would be empty.
    """
    made = [len(list(same)) for _, same in groupby(rows.places())]  # examples of each row of the file
    held_out = _held_out(len(made), settings, where=where)
    if split == "held_out" and not held_out:
        raise UserError(f"{where}: no rows are held out", "set held_out: 0.1, or say where held-out rows are")
    sides = [unit in held_out for unit, number in enumerate(made) for _ in range(number)]
    return rows.subset([i for i, held in enumerate(sides) if held == (split == "held_out")])


def _held_out(rows: int, settings: Any, *, where: str) -> set[int]:
    share = settings.held_out
    number = int(share) if share >= 1 else (max(1, round(share * rows)) if share else 0)
    if number >= rows:
        raise UserError(
            f"{where}: {number} rows are to be held out, but there are {rows} in all", "set a smaller held_out"
        )
    return set(random.Random(settings.held_out_seed).sample(range(rows), number))


# --- which files ---


def find(name: str, folder: Path) -> list[Path]:
    """The files that a path means, in order: itself, those of a folder or of a pattern.

    Raises UserError: no such file, a folder without files that can be read or with several kinds of them.
    """
    path = Path(folder) / Path(name).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        return _of_folder(path)
    if glob.has_magic(name):
        found = [Path(p) for p in sorted(glob.glob(str(path))) if Path(p).is_file()]
        if found:
            return _of_one_kind(path, found)
        raise UserError(f"no file fits the pattern {path}", "paths are relative to the recipe")
    if not path.parent.is_dir():
        raise UserError(f"no file {path}: there is no folder {path.parent}", "paths are relative to the recipe")
    near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()])
    hints = [f"did you mean '{near}'?"] if near else []
    raise UserError(
        f"no file {path}", *hints, f"the folder holds: {_listed(path.parent)}", "paths are relative to the recipe"
    )


def _of_folder(folder: Path) -> list[Path]:
    """All files of one kind; those that the `datasets` library saved, in its own order."""
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        return _saved(folder)
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(p.name for p in folder.iterdir() if p.is_dir())
        raise UserError(
            f"{folder} holds several splits: {', '.join(splits)}",
            f"name one: `path: .../{splits[0] if splits else ''}`",
        )
    found = sorted(p for p in folder.iterdir() if p.is_file() and p.name[0] not in "._" and ending_of(p) in ENDINGS)
    if not found:
        raise UserError(
            f"{folder} is a folder without a file that can be read", f"it holds: {_listed(folder)}",
            f"known: {', '.join(ENDINGS)}, .gz",
        )  # fmt: skip
    return _of_one_kind(folder, found)


def _saved(folder: Path) -> list[Path]:
    """The arrow files of `save_to_disk`, as its state.json lists them. UserError where it does not list them."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        paths = [folder / one["filename"] for one in state["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / 'state.json'} does not list the files of the dataset: {error}") from error
    missing = [p.name for p in paths if not p.is_file()]
    if missing or not paths:
        raise UserError(f"{folder}: the saved dataset lacks {', '.join(missing) or 'all its files'}")
    if state.get("_indices_files"):
        raise UserError(
            f"{folder}: the saved dataset is a selection of its rows", "save it again after `flatten_indices()`"
        )
    return paths


def _of_one_kind(where: Path, paths: list[Path]) -> list[Path]:
    kinds = sorted({ending_of(p) for p in paths})
    if len(kinds) > 1:
        raise UserError(
            f"{where} holds files of several kinds: {', '.join(kinds)}",
            f"choose one with a pattern: `path: .../*{kinds[0]}*`",
        )
    return paths


def _listed(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir())
    return ", ".join(names[:12]) + (f", and {len(names) - 12} more" if len(names) > 12 else "") or "nothing"


@hookimpl
def unified_datasets() -> list[Dataset]:
    """Offer files as `data: {name: files, path: ...}`."""
    return [Dataset("files", FilesSettings, open=open_files)]
