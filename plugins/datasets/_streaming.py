"""Rows that stay in their file: an index of where they begin, and a row is read and converted when it is asked for.

The index takes 20 bytes a row. It is made in one pass that also converts every row once, so that rows that do not fit
are found, counted or refused before the first step, as without streaming.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, overload

from unified import Example, UserError
from unified_plugins.datasets._examples import LOOKED_AT, Converter
from unified_plugins.datasets._readers import Bad, Raw, cells_of, ending_of, opened, read, rows_of

#: row groups of parquet files that are kept unpacked
_GROUPS_KEPT = 8


class Shelf(Protocol):
    """Rows that can be read one by one, each under a key."""

    def scan(self) -> Iterator[tuple[int, Raw]]:
        """(key, row) of every row, in order."""

    def fetch(self, key: int) -> dict[str, Any] | Bad | None:
        """The columns of the row with that key."""


class Streamed(Sequence[Example]):
    """What `Rows` is, without holding the rows: counts, problems and format mean the same.

    Two examples of one index are equal, but not the same object. UserError where a file has changed since it was
    indexed. `streaming` tells the engine to render them when they are drawn, and not before.
    """

    streaming = True

    def __init__(self, shelves: Sequence[Shelf], converter: Converter) -> None:
        self._shelves, self._converter = shelves, converter
        self._shelf, self._key, self._number, self._part = array("H"), array("Q"), array("Q"), array("H")
        self._file: dict[int, str] = {}
        limit = converter.settings.limit
        converter.look_at(raw for _, _, raw in islice(_scanned(shelves), min(limit or LOOKED_AT, LOOKED_AT)))
        for place, key, raw in islice(_scanned(shelves), limit):
            self._file.setdefault(place, raw.file)
            for part, _ in enumerate(converter(raw)):
                self._shelf.append(place)
                self._key.append(key)
                self._number.append(raw.number)
                self._part.append(part)
        converter.finish(len(self))
        self.counts, self.problems = converter.counts(), converter.problems
        self.first_rows = converter.first_rows
        self.format = converter.chosen.name if converter.chosen else ""

    def __len__(self) -> int:
        return len(self._key)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        """One example, read now; a slice is a list."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place, number = self._shelf[index], self._number[index]
        cells = self._shelves[place].fetch(self._key[index])
        file = self._file[place]
        try:
            if isinstance(cells, dict):
                return self._converter.convert(file, number, cells)[self._part[index]]
        except (ValueError, IndexError):
            pass
        raise UserError(f"{file}:{number}: the row is not what it was when the stage began", "was the file changed?")

    def places(self) -> list[tuple[str, int]]:
        """The row of the file that each example comes from; a format may make several of one."""
        return [(self._file[place], number) for place, number in zip(self._shelf, self._number, strict=True)]

    def subset(self, indices: Sequence[int]) -> Streamed:
        """Only these examples, known to have been read in the same way."""
        other = object.__new__(Streamed)
        other.__dict__.update(self.__dict__)
        for name in ("_shelf", "_key", "_number", "_part"):
            own: array[int] = getattr(self, name)
            setattr(other, name, array(own.typecode, (own[i] for i in indices)))
        return other


def _scanned(shelves: Sequence[Shelf]) -> Iterator[tuple[int, int, Raw]]:
    """(number of the shelf, key, row), so that `limit` counts over all files."""
    for place, shelf in enumerate(shelves):
        for key, raw in shelf.scan():
            yield place, key, raw


def shelf_of(path: Path) -> Shelf:
    """Rows of one file. UserError for a kind whose rows cannot be read one by one."""
    kinds: dict[str, Callable[[Path], Shelf]]
    kinds = {".jsonl": Lines, ".ndjson": Lines, ".parquet": Parquet, ".arrow": Arrow}
    made = kinds.get(ending_of(path))
    if made is None or path.name.lower().endswith(".gz"):
        raise UserError(
            f"{path}: `streaming` reads rows one by one, which this kind of file does not allow",
            f"kinds that do, not gzipped: {', '.join(kinds)}",
        )
    return made(path)


class Lines:
    """Rows of jsonl; the key is the byte that a line begins with."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def scan(self) -> Iterator[tuple[int, Raw]]:
        """Every line that is not empty."""
        key = 0
        with opened(self._path) as file:
            for number, line in enumerate(file, start=1):
                cells = cells_of(line, first=number == 1)
                if cells is not None:
                    yield key, Raw(str(self._path), number, cells)
                key += len(line)

    def fetch(self, key: int) -> dict[str, Any] | Bad | None:
        """The line that begins there."""
        with self._path.open("rb") as file:
            file.seek(key)
            return cells_of(file.readline(), first=key == 0)


class Table:
    """Rows of anything that gives a mapping for a number from 0; the key is that number."""

    def __init__(self, name: str, table: Any) -> None:
        self._name, self._table = name, table

    def scan(self) -> Iterator[tuple[int, Raw]]:
        """Every row, in order."""
        for key in range(len(self._table)):
            yield key, Raw(self._name, key + 1, dict(self._table[key]))

    def fetch(self, key: int) -> dict[str, Any] | Bad | None:
        """The row of that number."""
        return dict(self._table[key])


class Arrow:
    """Rows of an arrow file, which stays on the disk and is mapped into memory; the key counts rows from 0."""

    def __init__(self, path: Path) -> None:
        import pyarrow
        from pyarrow import ipc

        self._path = path
        try:
            source = pyarrow.memory_map(str(path))
            magic = source.read(6)
            source.seek(0)
            self._table = (ipc.open_file if magic == b"ARROW1" else ipc.open_stream)(source).read_all()
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{path}: the file cannot be read as arrow: {error}") from error

    def scan(self) -> Iterator[tuple[int, Raw]]:
        """Every row, in order."""
        yield from ((raw.number - 1, raw) for raw in read(self._path))

    def fetch(self, key: int) -> dict[str, Any] | Bad | None:
        """The row of that number."""
        return rows_of(self._table.slice(key, 1))[0]


class Parquet:
    """Rows of a parquet file; the key counts rows from 0, and a whole row group is unpacked for one of its rows."""

    def __init__(self, path: Path) -> None:
        import pyarrow
        from pyarrow import parquet

        self._path = path
        try:
            self._file = parquet.ParquetFile(str(path))
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{path}: the file cannot be read as parquet: {error}") from error
        self._group = lru_cache(maxsize=_GROUPS_KEPT)(self._file.read_row_group)
        self._begins = [0]
        for group in range(self._file.num_row_groups):
            self._begins.append(self._begins[-1] + self._file.metadata.row_group(group).num_rows)

    def scan(self) -> Iterator[tuple[int, Raw]]:
        """Every row, in order."""
        yield from ((raw.number - 1, raw) for raw in read(self._path))

    def fetch(self, key: int) -> dict[str, Any] | Bad | None:
        """The row of that number."""
        group = bisect_right(self._begins, key) - 1
        return rows_of(self._group(group).slice(key - self._begins[group], 1))[0]
