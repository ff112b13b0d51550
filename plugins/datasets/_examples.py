"""From rows as they stand in files to examples: which format they have, which columns, and which rows do not fit."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

from unified import Chosen, Example, FormatError, PluginError, UserError, call_named, catalogue, did_you_mean
from unified_plugins.datasets._readers import Bad, Raw

#: bad rows whose places are kept, beside the count of all
SHOWN = 5


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
            _check_columns(self.settings.columns, raw.cells, self.where)
            row = renamed(raw.cells, self.settings.columns)
            self.chosen = self.settings.format or recognise(row, self.where)
        if len(self.first_rows) < SHOWN:
            self.first_rows.append(renamed(raw.cells, self.settings.columns))
        try:
            made = self.convert(raw.file, raw.number, raw.cells)
        except ValueError as error:
            hints = (
                f"the row has: {', '.join(map(str, raw.cells))}",
                "`columns: {prompt: NAME}` says which column is which",
            )
            return self._left_out(raw, f"{error}  (format '{self.chosen.name}')", hints)
        self.empty += not made
        return made

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
    converter = Converter(settings, where)
    examples = [example for raw in islice(raws, settings.limit) for example in converter(raw)]
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
            raise UserError(f"{where}: no column '{name}' (for '{wanted}')", *hints, f"the file has: {', '.join(row)}")


def recognise(row: Mapping[str, Any], where: str) -> Chosen:
    """The one format that fits the columns of a row and, where these do not decide, what stands in them.

    Raises FormatError: none fits, or more than one; with what the columns are and what the formats want.
    """
    known = catalogue()
    names = frozenset(row)
    parts = [known.get("format", name) for name in known.names("format")]
    fits = [part for part in parts if part.recognises and _fits(part.recognises, names, row)]
    if len(fits) == 1:
        return Chosen(fits[0], fits[0].settings())
    has = f"the file has: {', '.join(sorted(names))}"
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


def _fits(recognises: Callable[..., bool], names: frozenset[str], row: Mapping[str, Any]) -> bool:
    return bool(call_named(recognises, columns=names, row=row))
