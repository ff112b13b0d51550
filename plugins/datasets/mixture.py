"""Several datasets as one, each by its weight: any beginning of the mixed rows has the shares that the weights say.

At each place stands a row of the source that lacks the most: weight · (places so far, this one counted) minus its rows
so far; of equal ones the first. So a source is never more than one row ahead of its share. The rows of a source come in
seeded order, anew for every pass over it; held-out rows come from each source's own held-out split, as they stand
there, and never twice. Every row gets a column with the name of its source, for `reward: by_column` and `on: COLUMN`.
"""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, overload

from unified import Chosen, Dataset, Example, Field, Settings, UserError, call_named, choice, hookimpl

#: places of bad rows that are kept of all sources together
SHOWN = 5


class OneSource(Settings):
    """One of several datasets."""

    data: Chosen = choice("dataset", description="its rows: a dataset, or the path of a file")
    weight: float = Field(1.0, gt=0, description="its share, in proportion to the weights of the others")
    name: str | None = Field(None, description="what its rows have in the column; without: the file, hub id or dataset")
    system: str | None = Field(
        None, description="a system message put before its prompts of messages; a row that brings one keeps that"
    )

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        """The name that it has where it is written stays, also when `stage:NAME` has become a path."""
        return {**data, "name": _name_of(data["data"])} if data.get("data") and "name" not in data else data


class MixtureSettings(Settings):
    """What is mixed, and how long."""

    sources: list[OneSource] = Field(min_length=1, description="[{data: FILE, weight: 0.7, name: math, system: ...}]")
    rows: int | None = Field(
        None, ge=1, description="so many rows to train on, fewer where `stop: first` ends before; without: as `stop`"
    )
    stop: Literal["first", "all"] = Field(
        "first",
        description="the end: first: when a source is used up; all: when all are, shorter ones repeated and counted",
    )
    column: str = Field("source", min_length=1, description="the column that holds the name of a row's source")
    shuffle: bool = Field(True, description="rows of each source in seeded order; false: as they stand")


class Mixture(Sequence[Example]):
    """Mixed rows; those of the sources are read when they are asked for.

    counts: rows by source as "mixed/NAME", of these "repeated/NAME", those that no place was left for "unused/NAME",
    prompts that brought a system message "own_system/NAME", and what the sources themselves left out, summed.
    problems: the first places of what the sources left out. streaming: whether a source keeps its rows in a file.
    """

    def __init__(self, settings: MixtureSettings, rows: Mapping[str, Sequence[Example]], order: _Order) -> None:
        self._settings, self._rows = settings, list(rows.values())
        self._names, self._order = list(rows), order
        self._system = [one.system for one in settings.sources]
        self.streaming = any(getattr(one, "streaming", False) for one in self._rows)
        self.problems = [p for one in self._rows for p in getattr(one, "problems", [])][:SHOWN]
        self.format = ", ".join(dict.fromkeys(str(one.format) for one in self._rows if hasattr(one, "format")))
        counts: Counter[str] = Counter()
        for one in self._rows:
            counts.update(getattr(one, "counts", {}))
        for place, name in enumerate(self._names):
            counts[f"mixed/{name}"] = order.taken[place]
            counts[f"repeated/{name}"] = max(order.taken[place] - len(self._rows[place]), 0)
            counts[f"unused/{name}"] = max(len(self._rows[place]) - order.taken[place], 0)
            counts[f"own_system/{name}"] = self._scanned(place)
        self.counts = dict(+counts)

    def __len__(self) -> int:
        return len(self._order.place)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        """One example, made now; a slice is a list."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = self._order.place[index]
        return self._changed(place, self._rows[place][self._order.row[index]])

    def _changed(self, place: int, example: Example) -> Example:
        """A row of a source with its name and system message. UserError where either has no place."""
        name, column = self._names[place], self._settings.column
        if column in example.columns:
            raise UserError(
                f"{_where(name, example)}: the row has a column '{column}' already",
                f"`column: NAME` of the mixture puts '{name}' elsewhere",
            )
        prompt = example.prompt
        system = self._system[place]
        if system is not None and isinstance(prompt, str):
            raise UserError(
                f"{_where(name, example)}: a prompt of text has no place for a system message",
                "`format: {name: ..., chat: true}` makes it a user's message; or drop `system`",
            )
        if system is not None and not isinstance(prompt, str) and not _has_system(example):
            prompt = [{"role": "system", "content": system}, *prompt]
        return replace(example, prompt=prompt, columns={**example.columns, column: name})

    def _scanned(self, place: int) -> int:
        """Rows of a source that keep their own system message; every row is looked at where that costs no reading."""
        rows, system = self._rows[place], self._system[place]
        if system is None and getattr(rows, "streaming", False):
            return 0
        own = 0
        for i in range(len(rows)):
            example = rows[i]
            self._changed(place, example)
            own += system is not None and _has_system(example)
        return own


class _Order:
    """Which row stands at which place: source and row of it; `taken` counts rows by source."""

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float],
        *,
        stop: Literal["first", "all"],
        limit: int | None,
        draw: Callable[[int, int], Sequence[int]],
    ) -> None:
        """sizes, weights: of each source. draw(source, pass): the order of its rows in that pass."""
        self.place, self.row = array("H"), array("Q")
        self.taken = [0] * len(sizes)
        share = [weight / sum(weights) for weight in weights]
        orders = [draw(source, 0) for source in range(len(sizes))]
        while limit is None or len(self.place) < limit:
            number = len(self.place) + 1
            lacking = [share[i] * number - self.taken[i] for i in range(len(sizes))]
            source = lacking.index(max(lacking))
            done, row = divmod(self.taken[source], sizes[source])
            if done and stop == "first":
                return
            if limit is None and all(taken >= size for taken, size in zip(self.taken, sizes, strict=True)):
                return
            if done and not row:
                orders[source] = draw(source, done)
            self.place.append(source)
            self.row.append(orders[source][row])
            self.taken[source] += 1


def open_mixture(settings: MixtureSettings, split: str, seed: int, folder: Path) -> Mixture:
    """The mixed rows of one split.

    Raises UserError: two sources of one name, a source without rows, a row with a column of the name of `column`, a
    prompt of text where `system` is set; and what the sources themselves raise.
    """
    names = [one.name or _name_of(one.data) for one in settings.sources]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"two sources of the mixture have the name '{twice}'", "give one of them another `name`")
    rows: dict[str, Sequence[Example]] = {}
    for name, one in zip(names, settings.sources, strict=True):
        about = {"split": split, "seed": seed, "folder": folder}
        rows[name] = call_named(one.data.part.open, settings=one.data.settings, **about)
        if not len(rows[name]):
            raise UserError(f"source '{name}' of the mixture has no rows ({split})")
    train, sizes = split == "train", [len(one) for one in rows.values()]

    def draw(source: int, number: int) -> Sequence[int]:
        if not (train and settings.shuffle):
            return range(sizes[source])
        return random.Random(f"mixture {seed} {names[source]} {number}").sample(range(sizes[source]), sizes[source])

    order = _Order(
        sizes, [one.weight for one in settings.sources], stop=settings.stop if train else "first",
        limit=settings.rows if train else None, draw=draw,
    )  # fmt: skip
    return Mixture(settings, rows, order)


def _name_of(data: Any) -> str:
    """What a source is called that has no name of its own: its file without endings, its hub id, stage or dataset."""
    if isinstance(data, Chosen):
        data = data.as_dict()
    written = data if isinstance(data, Mapping) else {"path": str(data)}
    path, name = written.get("path"), written.get("id") or written.get("name")
    if not isinstance(path, str) or not path:
        return str(name or "rows")
    return path.removeprefix("stage:") if path.startswith("stage:") else Path(path).name.partition(".")[0] or path


def _has_system(example: Example) -> bool:
    return not isinstance(example.prompt, str) and bool(example.prompt) and example.prompt[0].get("role") == "system"


def _where(name: str, example: Example) -> str:
    file, row = example.columns.get("file"), example.columns.get("row")
    return f"source '{name}' of the mixture" if file is None else f"{file}:{row}: source '{name}' of the mixture"


@hookimpl
def unified_datasets() -> list[Dataset]:
    """Offer it as `data: {name: mixture, sources: [{data: FILE, weight: 0.7}, ...]}`."""
    return [Dataset("mixture", MixtureSettings, open=open_mixture)]
