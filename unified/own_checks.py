"""What the parts of a stage know of themselves before it runs: their mistakes, and files that decide what they do."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unified.errors import PluginError, Problem, UserError
from unified.made import is_to_come
from unified.manifest import chosen_parts, sha256
from unified.named_models import as_problem
from unified.registry import call_named, catalogue
from unified.settings import Chosen, Settings

Path_ = tuple[str | int, ...]
#: rows that are looked at where they stay in their file
FIRST = 1000


class OwnChecks:
    """The `check` of every part that settings choose; the columns of a dataset are looked at once, if asked for."""

    def __init__(self, home: Path, seed: int) -> None:
        self.home, self.seed = home, seed
        self._columns: dict[str, frozenset[str] | None] = {}

    def problems(self, settings: Settings) -> Iterator[Problem]:
        """What every part finds wrong with itself. PluginError where a check raises anything but a UserError."""
        for at, chosen, data in placed(settings):
            check = chosen.part.check
            if check is None:
                continue
            about: dict[str, Any] = {"settings": chosen.settings, "home": self.home}
            if "columns" in inspect.signature(check).parameters:
                about["columns"] = self.columns(data)
            try:
                yield from [problem.under(*at) for problem in call_named(check, **about)]
            except UserError as error:
                yield as_problem(error, at)
            except Exception as error:
                who = f"{catalogue().provider(chosen.part.kind, chosen.name)}: check of {chosen.part.kind}"
                raise PluginError(f"{who} '{chosen.name}' raised {type(error).__name__}: {error}") from error

    def columns(self, data: Chosen | None) -> frozenset[str] | None:
        """The columns in which some row of a dataset has something; None where its rows are not here, or do not fit."""
        if data is None or data.part.open is None or is_to_come(data):
            return None
        key = json.dumps(data.as_dict(), sort_keys=True, default=str)
        if key not in self._columns:
            self._columns[key] = self._of_rows(data)
        return self._columns[key]

    def _of_rows(self, data: Chosen) -> frozenset[str] | None:
        about = {"split": "train", "seed": self.seed, "folder": self.home}
        try:
            rows: Sequence[Any] = call_named(data.part.open, settings=data.settings, **about)
            if getattr(rows, "streaming", False):
                rows = rows[:FIRST]
            return frozenset(name for row in rows for name, value in row.columns.items() if value is not None)
        except Exception:  # rows that cannot be had are told by the stage's own check
            return None


def placed(value: Any, at: Path_ = (), data: Chosen | None = None) -> Iterator[tuple[Path_, Chosen, Chosen | None]]:
    """(path of keys, choice, the dataset whose rows it is used on) of every part that settings choose, at any depth.

    The rows are those of the setting `data` beside the choice, or else further up; None where there is none.
    """
    if isinstance(value, Chosen):
        yield at, value, data
        yield from placed(value.settings, at, data)
    elif isinstance(value, Settings):
        own = getattr(value, "data", None)
        data = own if isinstance(own, Chosen) and own.part.kind == "dataset" else data
        for key in type(value).model_fields:
            yield from placed(getattr(value, key), (*at, key), data)
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from placed(item, (*at, i), data)


def own_files(settings: Settings, home: Path) -> dict[str, str]:
    """Hash of every file that a part tells to be its own (`files`), by the name that it gives it."""
    found: dict[str, str] = {}
    for chosen in chosen_parts(settings):
        if chosen.part.files is None:
            continue
        told: Mapping[str, Path] = call_named(chosen.part.files, settings=chosen.settings, home=home)
        found.update({name: sha256(path) for name, path in told.items() if path.is_file()})
    return found
