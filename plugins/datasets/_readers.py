"""Reads rows from files, each with its line or row number; a malformed file is a UserError that names the place."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from unified import UserError

Numbered = tuple[int, dict[str, Any]]
ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")


def read(path: Path) -> Iterator[Numbered]:
    """(number, row) of every row: the line of the file for jsonl and csv, the row counted from 1 for the others.

    All but parquet and arrow may be gzipped. Raises UserError for an ending that is not known, a line that is not a
    JSON object, a csv row of the wrong width, and bytes that are not what the ending says.
    """
    name = path.name.removesuffix(".gz")
    ending = Path(name).suffix.lower()
    if ending not in ENDINGS:
        raise UserError(
            f"{path}: no rows can be read from a file that ends in '{ending}'", f"known: {', '.join(ENDINGS)}, .gz"
        )
    try:
        if ending in (".parquet", ".arrow"):
            yield from _table(path, ending)
            return
        with _open(path) as file:
            readers = {".json": _json, ".csv": _csv, ".tsv": _csv}
            yield from readers.get(ending, _lines)(path, file)
    except (UnicodeDecodeError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise UserError(f"{path}: the file cannot be read: {error}") from error


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path, "rb"), encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig", newline="")


def _object(value: Any, path: Path, number: int) -> Numbered:
    if not isinstance(value, dict):
        raise UserError(f"{path}:{number}: a row must be an object with columns, not {type(value).__name__}")
    return number, value


def _lines(path: Path, file: IO[str]) -> Iterator[Numbered]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.rstrip())
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: not JSON: {error.msg} (column {error.colno})") from error
        yield _object(value, path, number)


def _json(path: Path, file: IO[str]) -> Iterator[Numbered]:
    try:
        rows = json.load(file)
    except json.JSONDecodeError as error:
        hint = ["one object a line is what a file that ends in .jsonl holds"] if error.msg == "Extra data" else []
        raise UserError(f"{path}:{error.lineno}: not JSON: {error.msg} (column {error.colno})", *hint) from error
    if not isinstance(rows, list):
        raise UserError(f"{path}: a .json file must hold a list of rows, not {type(rows).__name__}")
    for number, value in enumerate(rows, start=1):
        yield _object(value, path, number)


def _csv(path: Path, file: IO[str]) -> Iterator[Numbered]:
    """Cells are text; the first line names the columns."""
    reader = csv.DictReader(file, delimiter="\t" if ".tsv" in path.suffixes else ",")
    for row in reader:
        if None in row or None in row.values():
            raise UserError(
                f"{path}:{reader.line_num}: the row does not have {len(reader.fieldnames or [])} cells as line 1 has"
            )
        yield reader.line_num, dict(row)


def _table(path: Path, ending: str) -> Iterator[Numbered]:
    import pyarrow
    from pyarrow import ipc, parquet

    try:
        if ending == ".parquet":
            table = parquet.read_table(path)
        else:
            with path.open("rb") as file:
                magic = file.read(6)
            table = (ipc.open_file if magic == b"ARROW1" else ipc.open_stream)(str(path)).read_all()
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: the file cannot be read as {ending[1:]}: {error}") from error
    number = 0
    for batch in table.to_batches():
        for row in batch.to_pylist():
            number += 1
            yield number, row
