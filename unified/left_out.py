"""What became of rows on their way to tokens: counted by name, and the first places of each. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

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
