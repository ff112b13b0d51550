"""Reads rows from files, each with its line or row number.

A row that cannot be read (broken JSON, a byte that is not UTF-8, half a character) comes out as `Bad`, with the reason,
and the rows behind it are read; a file that cannot be read at all is a UserError that names the place.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from unified import UserError

TextRows = Literal["paragraph", "line", "document"]
ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_LONGEST_CELL = 2**31 - 1  # of a csv file, in characters; the csv module stops at 131,072 unless told


class Bad(str):
    """Why a row cannot be read; it stands where the row's columns would."""


class Raw(NamedTuple):
    """A row as it stands in a file: its columns, or what is wrong with it. `number` is its line, or counts from 1."""

    file: str
    number: int
    cells: dict[str, Any] | Bad


Numbered = tuple[int, dict[str, Any] | Bad]


def ending_of(path: Path) -> str:
    """What the rows of a file are written in: `.jsonl` of `x.jsonl.gz`; one of ENDINGS, or what nobody reads."""
    name = path.name.lower()
    return Path(name.removesuffix(".gz")).suffix


def read(path: Path, text_rows: TextRows = "paragraph") -> Iterator[Raw]:
    """Every row: with its line for jsonl, csv and txt, counted from 1 for the others. Any file may be gzipped.

    Raises UserError: an ending that is not known, bytes that are not what the ending says, a .json that is not JSON.
    """
    ending = ending_of(path)
    if ending not in ENDINGS:
        raise UserError(
            f"{path}: no rows can be read from a file that ends in '{ending}'", f"known: {', '.join(ENDINGS)}, .gz"
        )
    last = 0
    try:
        for last, cells in _rows(path, ending, text_rows):
            yield Raw(str(path), last, cells)
    except (UnicodeDecodeError, OSError, zlib.error, EOFError) as error:
        place = f"{path}:{last}: behind this row" if last else f"{path}:"
        raise UserError(f"{place} the file cannot be read: {error}") from error


def _rows(path: Path, ending: str, text_rows: TextRows) -> Iterator[Numbered]:
    if ending in (".parquet", ".arrow"):
        yield from _table(path, ending)
        return
    with opened(path) as file:
        if ending == ".json":
            yield from _json(path, file)
        elif ending in (".csv", ".tsv"):
            yield from _csv(path, file, "\t" if ending == ".tsv" else ",")
        elif ending == ".txt":
            yield from _text(file, text_rows)
        else:
            yield from _lines(file)


def opened(path: Path) -> IO[bytes]:
    """The bytes of a file, unpacked where it is gzipped. UserError for UTF-16, whose lines are not where they seem."""
    packed = path.name.lower().endswith(".gz")
    file: IO[bytes] = io.BufferedReader(gzip.open(path, "rb")) if packed else path.open("rb")  # noqa: SIM115
    if file.read(2) in _UTF16:
        file.close()
        raise UserError(f"{path}: the file cannot be read: it is UTF-16", "write it as UTF-8")
    file.seek(0)
    return file


# --- jsonl ---


def _lines(file: IO[bytes]) -> Iterator[Numbered]:
    for number, line in enumerate(file, start=1):
        cells = cells_of(line, first=number == 1)
        if cells is not None:
            yield number, cells


def cells_of(line: bytes, *, first: bool = False) -> dict[str, Any] | Bad | None:
    """The columns of one line of jsonl; None for an empty one. A byte-order mark may open the `first`."""
    text = _decoded(line, first=first)
    if isinstance(text, Bad) or not text.strip():
        return text if isinstance(text, Bad) else None
    try:
        value = json.loads(text.rstrip())
    except json.JSONDecodeError as error:
        return Bad(f"not JSON: {error.msg} (column {error.colno})")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, a list in a list in a list ...
        return Bad(f"not JSON that can be read: {error}")
    return _checked(value, escapes="\\ud" in text.lower())


def _decoded(line: bytes, *, first: bool = False) -> str | Bad:
    try:
        return line.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        return Bad(f"not UTF-8: byte 0x{line[error.start]:02x} (number {error.start + 1} of the line)")


def _checked(value: Any, *, escapes: bool) -> dict[str, Any] | Bad:
    if not isinstance(value, dict):
        return Bad(f"a row must be an object with columns, not {type(value).__name__}")
    if escapes:
        for column, cell in value.items():
            half = _half(column) or _half(cell)
            if half:
                return Bad(f"column {column!a} holds half a character: a lone surrogate {half}")
    return value


def _half(value: Any) -> str | None:
    """The first lone surrogate of any text in a value, as JSON writes it: no tokenizer and no file takes it."""
    if isinstance(value, str):
        return next((f"\\u{ord(letter):x}" for letter in value if "\ud800" <= letter <= "\udfff"), None)
    if isinstance(value, dict):
        value = [*value, *value.values()]
    return next((half for item in value if (half := _half(item))), None) if isinstance(value, list) else None


# --- json ---


def _json(path: Path, file: IO[bytes]) -> Iterator[Numbered]:
    """A list of rows, an object with one such list among other things, an object of columns, or one object a line."""
    data = file.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8: byte 0x{data[error.start]:02x}") from error
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and isinstance(cells_of(data.lstrip().split(b"\n", 1)[0], first=True), dict):
            yield from _lines(io.BytesIO(data))
            return
        raise UserError(f"{path}:{error.lineno}: not JSON: {error.msg} (column {error.colno})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON that can be read: {error}") from error
    escapes = "\\ud" in text.lower()
    for number, row in enumerate(_rows_in(path, value), start=1):
        yield number, _checked(row, escapes=escapes)


def _rows_in(path: Path, value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        rows = [v for v in value.values() if isinstance(v, list) and v and all(isinstance(r, dict) for r in v)]
        if len(rows) == 1 and not _are_columns(value):
            return list(rows[0])
        if _are_columns(value):
            return [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)]
    has = f"the object has: {', '.join(value)}" if isinstance(value, dict) else f"it holds a {type(value).__name__}"
    raise UserError(
        f"{path}: a .json file must hold a list of rows, an object with one list of rows, or one list for each column",
        has,
    )


def _are_columns(value: dict[str, Any]) -> bool:
    """Whether an object is lists of one length, one for each of several columns."""
    lists = [v for v in value.values() if isinstance(v, list)]
    plain = len(lists) == 1 and not all(isinstance(r, dict) for r in lists[0])
    return len(lists) == len(value) and len({len(v) for v in lists}) == 1 and (len(lists) > 1 or plain)


# --- csv and text ---


def _csv(path: Path, file: IO[bytes], delimiter: str) -> Iterator[Numbered]:
    """Cells are text; the first line names the columns. The number of a row is the line that it ends on."""
    csv.field_size_limit(_LONGEST_CELL)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    names: list[str] | None = None
    while True:
        begins = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise UserError(f"{path}:{begins}: a quotation mark opens a cell here that nothing closes") from error
            yield reader.line_num, Bad(f"not {path.suffix[1:]}: {error}")
            continue
        if cells is None:
            return
        if names is None and cells:
            names = cells
            if twice := sorted(name for name, times in Counter(names).items() if times > 1):
                raise UserError(f"{path}:{reader.line_num}: two columns have the name '{twice[0]}'")
        elif cells and names is not None:
            yield reader.line_num, _named(names, cells)


def _named(names: list[str], cells: list[str]) -> dict[str, Any] | Bad:
    """One row of a csv file; bytes that were not UTF-8 have become lone surrogates."""
    if len(cells) != len(names):
        return Bad(f"the row has {len(cells)} cells, but there are {len(names)} columns")
    for name, cell in zip(names, cells, strict=True):
        byte = next((ord(letter) - 0xDC00 for letter in cell if "\udc80" <= letter <= "\udcff"), None)
        if byte is not None:
            return Bad(f"not UTF-8: byte 0x{byte:02x} in column '{name}'")
    return dict(zip(names, cells, strict=True))


def _text(file: IO[bytes], text_rows: TextRows) -> Iterator[Numbered]:
    """Plain text as rows of `text`; a paragraph ends at an empty line, its number is that of its first line."""
    if text_rows == "document":
        whole = _decoded(file.read(), first=True)
        if isinstance(whole, Bad) or whole.strip():
            yield 1, whole if isinstance(whole, Bad) else {"text": whole.strip("\r\n")}
        return
    lines: list[bytes] = []
    number = 0
    for number, line in enumerate(file, start=1):
        if line.strip(b" \t\r\n\xef\xbb\xbf"):
            lines.append(line)
        if lines and (text_rows == "line" or not line.strip()):
            begins = number - len(lines) + (1 if line.strip() else 0)
            yield begins, _paragraph(lines, first=begins == 1)
            lines = []
    if lines:
        yield number - len(lines) + 1, _paragraph(lines, first=number == len(lines))


def _paragraph(lines: list[bytes], *, first: bool) -> dict[str, Any] | Bad:
    said = [_decoded(line, first=first and not place) for place, line in enumerate(lines)]
    bad = next((line for line in said if isinstance(line, Bad)), None)
    return bad if bad is not None else {"text": "".join(said).replace("\r\n", "\n").rstrip("\r\n")}


# --- parquet and arrow ---


def _table(path: Path, ending: str) -> Iterator[Numbered]:
    import pyarrow

    number = 0
    try:
        for batch in _batches(path, ending):
            for cells in rows_of(batch):
                number += 1
                yield number, cells
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: the file cannot be read as {ending[1:]}: {error}") from error


def _batches(path: Path, ending: str) -> Iterator[Any]:
    from pyarrow import BufferReader, ipc, parquet

    source: Any = BufferReader(gzip.decompress(path.read_bytes())) if path.name.lower().endswith(".gz") else str(path)
    if ending == ".parquet":
        yield from parquet.ParquetFile(source).iter_batches(batch_size=1024)
        return
    with opened(path) as file:
        magic = file.read(6)
    if magic == b"ARROW1":
        reader = ipc.open_file(source)
        yield from (_sound(reader.get_batch(i)) for i in range(reader.num_record_batches))
    else:
        yield from map(_sound, ipc.open_stream(source))


def _sound(batch: Any) -> Any:
    """The batch, once its offsets are known to lie inside it: reading one that points elsewhere ends the process.

    Raises pyarrow.ArrowInvalid. Text that is not UTF-8 may stay: `rows_of` tells which row has it.
    """
    for column in batch.columns:
        _check(column)
    return batch


def _check(column: Any) -> None:
    import pyarrow

    try:
        column.validate(full=True)
    except pyarrow.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise
        kind = column.type  # what stands behind the first such text is not validated yet
        if pyarrow.types.is_struct(kind):
            for i in range(kind.num_fields):
                _check(column.field(i))
        elif hasattr(column, "values"):
            _check(column.values)


def rows_of(batch: Any) -> list[dict[str, Any] | Bad]:
    """The rows of a pyarrow batch or table; one with text that is not UTF-8 is Bad, the others are read."""
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            return [Bad(f"not UTF-8: byte 0x{error.object[error.start]:02x}")]
        return [row for i in range(batch.num_rows) for row in rows_of(batch.slice(i, 1))]
