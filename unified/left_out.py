"""What became of rows on their way to tokens: counted by name, and the first places of each. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from unified.data import Example, PromptGroup
from unified.errors import UserError
from unified.fit import Policy, TooLong

#: places that are kept of one name, and lines that are said of one dataset
SHOWN = 3
LINES = 8
#: names that count rows and nothing that was done to them
TOTALS = ("rows", "kept")


class Counts(dict[str, int]):
    """Numbers by name. problems: the first places, each as "file:line: why"."""

    def __init__(self, numbers: Mapping[str, int], problems: Iterable[str] = ()) -> None:
        super().__init__(numbers)
        self.problems = list(problems)


class Places:
    """The first places of each name, in the order in which they are met."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}
        self.lines: list[str] = []

    def add(self, name: str, place: str, why: str = "") -> None:
        """One row that something was done to."""
        self._seen[name] = self._seen.get(name, 0) + 1
        if self._seen[name] <= SHOWN:
            self.lines.append(f"{place}: {name}{f' ({why})' if why else ''}")


def noted(counts: Mapping[str, int]) -> dict[str, int]:
    """What is neither 0 nor a number of rows."""
    return {name: number for name, number in counts.items() if number and name not in TOTALS}


def told(counts: Mapping[str, int], what: str = "rows") -> list[str]:
    """Lines for a person: what was left out or changed, by name, and the first places; [] where nothing was."""
    found = noted(counts)
    if not found:
        return []
    said = ", ".join(f"{name} {number}" for name, number in found.items())
    problems = list(getattr(counts, "problems", []))
    more = [f"    and {len(problems) - LINES} places more"] if len(problems) > LINES else []
    return [f"{what}: {counts.get('rows', 0)}; {said}", *(f"    {line}" for line in problems[:LINES]), *more]


def settled(
    row: int,
    example: Example,
    made: tuple[PromptGroup, Counter[str]] | ValueError,
    counts: Counter[str],
    places: Places,
    *,
    needs_answers: int,
    too_long: Policy,
    reserve: int,
) -> PromptGroup | None:
    """What a row, as `Renderer.groups` made it, is to a stage: its group, or None where it is dropped as too long.

    What was done to it is added to counts and places. UserError as in render_rows.
    """
    if len(example.answers) < needs_answers:
        raise UserError(
            f"{_place(row, example)} has {len(example.answers)} answers, this stage needs {needs_answers} or more",
            "1 to imitate, 2 for a preference, more for a ranking; `columns:` says where a file keeps them",
        )
    if isinstance(made, TooLong) and too_long != "refuse":
        counts["dropped_too_long"] += 1
        places.add("dropped_too_long", _place(row, example), f"{made.tokens} tokens, the limit is {made.limit}")
        return None
    if isinstance(made, ValueError):
        raise _refused(row, example, made, reserve) from made
    group, done = made
    counts.update(done)
    for name in done:
        places.add(name, _place(row, example))
    return group


def _refused(row: int, example: Example, error: ValueError, reserve: int) -> UserError:
    if not isinstance(error, TooLong):
        text = str(error)
        own = f"row {row} "  # some say themselves which row it is
        return UserError(f"{_place(row, example)}{' ' if text.startswith(own) else ': '}{text.removeprefix(own)}")
    what = f", {reserve} of them kept free for the answer" if reserve else ""
    return UserError(
        f"{_place(row, example)} has {error.tokens} tokens{what}; the limit is {error.limit}",
        f"set {'fewer max_tokens, ' if reserve else ''}too_long: drop, or a larger max_length",
    )


def _place(row: int, example: Example) -> str:
    """Where a row came from, as exactly as the row knows."""
    file, line = example.columns.get("file"), example.columns.get("row")
    return f"row {row}" if file is None or line is None else f"{file}:{line}: row {row}"
