"""From rows as they stand in files to examples: which format they have, which columns, and which rows do not fit."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from typing import Any

from unified import Chosen, Example, FormatError, PluginError, UserError, call_named, catalogue, cut_short, did_you_mean
from unified_plugins.datasets._readers import Bad, Raw

#: bad rows whose places are kept, beside the count of all
SHOWN = 5
#: rows from the beginning that a format is recognised by
LOOKED_AT = 50


class Rows(list[Example]):
    """Examples, with what is known of how they were read.

    counts: rows left out on the way, by name. problems: the first few of them, as "file:line: why".
    format: the name of the format they were read with. first_rows: the first few rows as the format saw them.
    """

    def __init__(
        self,
        examples: Iterable[Example],
        counts: Mapping[str, int],
        problems: Sequence[str] = (),
        format: str = "",
        first_rows: Sequence[dict[str, Any]] = (),
    ) -> None:
        super().__init__(examples)
        self.counts, self.problems, self.format = dict(counts), list(problems), format
        self.first_rows = list(first_rows)

    def places(self) -> list[tuple[str, int]]:
        """The row of the file that each example comes from; a format may make several of one."""
        return [(example.columns["file"], example.columns["row"]) for example in self]

    def subset(self, indices: Sequence[int]) -> Rows:
        """Only these examples, known to have been read in the same way."""
        return Rows([self[i] for i in indices], self.counts, self.problems, self.format, self.first_rows)


@dataclass
class Converter:
    """Rows of one dataset to examples, by `format`, `columns` and `bad_rows` of its settings.

    where: the dataset, for messages that are not about a row.
    """

    settings: Any
    where: str
    chosen: Chosen | None = None
    bad: int = 0
    empty: int = 0
    problems: list[str] = field(default_factory=list)
    first_rows: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, raw: Raw) -> list[Example]:
        """The examples of a row, mostly one; none for a row that does not fit and is skipped, and it is counted.

        Raises:
            UserError: a row that does not fit, where `bad_rows` is "stop"; for the first row that can be read: a column
                that it does not have, no format or more than one that fits.
            PluginError: the format raises anything but ValueError.
        """
        if isinstance(raw.cells, Bad):
            return self._left_out(raw, str(raw.cells), ())
        if self.chosen is None:
            self.look_at([raw])
        assert self.chosen is not None
        if len(self.first_rows) < SHOWN:
            self.first_rows.append(renamed(raw.cells, self.settings.columns))
        try:
            made = self.convert(raw.file, raw.number, raw.cells)
        except ValueError as error:
            hints = (
                f"the row has: {cut_short(', '.join(map(str, raw.cells)))}",
                "`columns: {prompt: NAME}` says which column is which",
            )
            return self._left_out(raw, f"{cut_short(str(error))}  (format '{self.chosen.name}')", hints)
        self.empty += not made
        return made

    def look_at(self, raws: Iterable[Raw]) -> None:
        """Choose the format, by the first rows that can be read; nothing where none of them can be.

        Raises UserError as `recognise` does, or for a column that the first of them does not have.
        """
        rows = [(raw.number, raw.cells) for raw in raws if not isinstance(raw.cells, Bad)]
        if self.chosen is not None or not rows:
            return
        columns, own = self.settings.columns, self.settings.format
        _check_columns(columns, rows[0][1], self.where)
        shown = [(number, renamed(cells, columns)) for number, cells in rows]
        self.chosen = own if own is not None else recognise(shown, self.where)

    @cached_property
    def _call(self) -> Callable[[Mapping[str, Any]], Any]:
        """convert of the format with the arguments that it names; what these are is looked up once, and not per row."""
        assert self.chosen is not None
        function, settings = self.chosen.part.convert, self.chosen.settings
        named = inspect.signature(function).parameters.values()
        if "settings" in (p.name for p in named) or any(p.kind is p.VAR_KEYWORD for p in named):
            return lambda row: function(row=row, settings=settings)
        return lambda row: function(row=row)

    def convert(self, file: str, number: int, cells: Mapping[str, Any]) -> list[Example]:
        """The examples of a row that can be read, with its place. ValueError where it does not fit the format."""
        assert self.chosen is not None
        row = renamed(cells, self.settings.columns)
        try:
            made = self._call(row)
        except (ValueError, UserError, PluginError):
            raise
        except Exception as error:
            what = f"convert of format '{self.chosen.name}' raised {type(error).__name__}: {error}"
            raise PluginError(f"{file}:{number}: {what}") from error
        examples: list[Example] = made if isinstance(made, list) else [made]
        for example in examples:
            example.columns.update(file=file, row=number)
        return examples

    def counts(self) -> dict[str, int]:
        """Rows that gave no example, by name; a name is missing where there are none."""
        counts = {"skipped_bad": self.bad, "without_examples": self.empty}
        return {name: number for name, number in counts.items() if number}

    def finish(self, examples: int) -> None:
        """UserError where the dataset gave no example at all, with the first rows that did not fit."""
        if examples:
            return
        if not self.bad:
            what = (
                f"none of the {self.empty} rows holds what the format takes" if self.empty else "the file has no rows"
            )
            raise UserError(f"{self.where}: {what}")
        raise UserError(f"{self.where}: all {self.bad} rows do not fit", *self.problems)

    def _left_out(self, raw: Raw, why: str, hints: Sequence[str]) -> list[Example]:
        problem = f"{raw.file}:{raw.number}: {why}"
        if self.settings.bad_rows == "stop":
            raise UserError(problem, *hints, "`bad_rows: skip` leaves such rows out, and counts them")
        self.bad += 1
        if len(self.problems) < SHOWN:
            self.problems.append(problem)
        return []


def examples_of(settings: Any, raws: Iterable[Raw], where: str) -> Rows:
    """Rows as examples, by `format`, `columns`, `limit` and `bad_rows` of the settings; where: what they come from.

    Raises UserError: no rows, an unknown column in `columns`, no format or more than one that fits, a row that does
    not fit.
    """
    converter, some = Converter(settings, where), islice(raws, settings.limit)
    first = list(islice(some, LOOKED_AT))
    converter.look_at(first)
    examples = [example for raw in chain(first, some) for example in converter(raw)]
    converter.finish(len(examples))
    name = converter.chosen.name if converter.chosen else ""
    return Rows(examples, converter.counts(), converter.problems, name, converter.first_rows)


def renamed(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row under the names of the format; a column that has a new name loses its old one."""
    moved = {wanted: row[name] for wanted, name in columns.items() if name in row}
    return {**{k: v for k, v in row.items() if k not in columns.values()}, **moved}


def _check_columns(columns: Mapping[str, str], row: Mapping[str, Any], where: str) -> None:
    for wanted, name in columns.items():
        if name not in row:
            near = did_you_mean(name, list(row))
            hints = [f"did you mean '{near}'?"] if near else []
            raise UserError(
                f"{where}: no column '{name}' (for '{wanted}')", *hints, f"the file has: {cut_short(', '.join(row))}"
            )


def recognise(rows: Sequence[tuple[int, Mapping[str, Any]]], where: str) -> Chosen:
    """The one format that fits the columns of all these rows and, where they do not decide, what stands in them.

    rows: (line or number, row), the first of a file; up to half of them may fit no format, and then do not count.
    Raises FormatError: none fits, or more than one, with what the columns are and what the formats want; or the rows
        are of several formats, with the first of each.
    """
    known = catalogue()
    parts = [known.get("format", name) for name in known.names("format")]
    found = [(number, row, _fitting(parts, row)) for number, row in rows]
    told = [(number, row, fits) for number, row, fits in found if fits]
    if 2 * len(told) < len(found):
        told = [one for one in found if not one[2]][:1]
    fits = [part for part in told[0][2] if all(part in others for _, _, others in told)]
    if len(fits) == 1:
        return Chosen(fits[0], fits[0].settings())
    _, row, alone = told[0]
    names = frozenset(row)
    if alone and not fits:
        raise _mixed(told, where)
    has = f"the file has: {cut_short(', '.join(sorted(names)))}"
    needs = {part.name: part.doc().split(chr(10))[0] for part in fits or parts}
    if fits:
        both = " and ".join(f"'{part.name}'" for part in fits)
        raise FormatError(
            f"{where}: the formats {both} both fit its columns", has, f"choose one: `format: {fits[0].name}`",
            row=row, needs=needs,
        )  # fmt: skip
    raise FormatError(
        f"{where}: no format fits its columns", has, "name them with `columns:`, or choose a `format:`",
        *(f"{name}: {what}" for name, what in needs.items()), row=row, needs=needs,
    )  # fmt: skip


def _mixed(told: Sequence[tuple[int, Mapping[str, Any], list[Any]]], where: str) -> FormatError:
    """Rows that no one format fits, by the formats of each, with the first line of each."""
    first: dict[str, tuple[int, list[str]]] = {}
    for number, row, fits in told:
        first.setdefault(" or ".join(f"'{part.name}'" for part in fits), (number, sorted(row)))
    lines = [f"{names} from row {number}: {', '.join(has)}" for names, (number, has) in first.items()]
    needs = {part.name: part.doc().split(chr(10))[0] for _, _, fits in told for part in fits}
    return FormatError(
        f"{where}: its rows are of several formats", *lines,
        "put each kind into a file of its own (`name: mixture` mixes them), or choose one with `format:`",
        row=told[0][1], needs=needs,
    )  # fmt: skip


def _fitting(parts: Sequence[Any], row: Mapping[str, Any]) -> list[Any]:
    """The formats that recognise a row."""
    names = frozenset(row)
    return [part for part in parts if part.recognises and call_named(part.recognises, columns=names, row=row)]
