"""The pages of `unified plugin check` and `list`: what the contract suite finds, and where plugins come from."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from unified.errors import Problem, UserError
from unified.registry import GROUP, catalogue
from unified.testing import CHECKS, Finding, check_plugin, provided_by
from unified.tree import Node, Place, merge, parse_override

#: names of a kind that `unified plugin list` writes out
FEW = 8


def check_parts(console: Console, name: str, sets: Iterable[str] = ()) -> bool:
    """Print a table of the checks of each part, and every finding; whether all that was checked is sound.

    `sets` are KEY=VALUE of the part's settings. UserError for a name that nobody knows, and where nothing was checked.
    """
    results = check_plugin(name, _written(sets))
    if all(found is None for found in results.values()):
        raise UserError(f"nothing of '{name}' can be checked", *(_why(kind) for kind, _ in results))
    table = Table("part", "check", "result", title=Text(f"contract of {name}"), title_justify="left")
    several = len(results) > 1
    covered = {one: found for one, found in results.items() if one[0] in CHECKS}
    for (kind, part), found in covered.items():
        for row in _rows(kind, part, found, several=several):
            table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    findings = [f for found in results.values() for f in found or []]
    for finding in findings:
        console.print(Text(f"{finding.part}, {finding.check}: {finding.message}"))
    checked = sum(found is not None for found in results.values())
    said = f"{len(findings)} findings" if len(findings) != 1 else "1 finding"
    others = sorted({kind for kind, _ in results if kind not in CHECKS})
    if others:
        console.print(Text(f"the suite has no checks of its own for: {', '.join(others)}"))
    console.print(Text(f"{checked} of {len(results)} parts checked, {said}"))
    return not findings


def _rows(kind: str, part: str, found: list[Finding] | None, *, several: bool) -> list[tuple[str, str, str]]:
    """One row for each check, or for a part among several one in all."""
    label = f"{kind} {part}"
    if found is None:
        return [(label, "", f"not checked: {_why(kind)}")]
    broken = dict.fromkeys(f.check for f in found)
    if several:
        return [(label, "all", "ok")] if not broken else [(label, check, "BROKEN") for check in broken]
    names = [*(c for c in broken if c not in CHECKS[kind]), *CHECKS[kind]]
    stopped = next((i for i, check in enumerate(names) if check in broken), len(names))
    last = _stops_at(kind, names, stopped)
    results = ["BROKEN" if c in broken else "ok" if i < last else "not reached" for i, c in enumerate(names)]
    return [
        (label if i == 0 else "", check, result) for i, (check, result) in enumerate(zip(names, results, strict=True))
    ]


def _stops_at(kind: str, names: list[str], stopped: int) -> int:
    """Where the checks stop: at the first broken one, but of an algorithm after the first few they all run."""
    if kind == "algorithm" and stopped > names.index("finite"):
        return len(names)
    return stopped


def _why(kind: str) -> str:
    if kind not in CHECKS:
        return f"the suite has no checks for a {kind}"
    return "it needs settings (--set KEY=VALUE), or refuses made-up input"


def _written(sets: Iterable[str]) -> dict[str, Any]:
    """KEY=VALUE texts as a mapping of settings. UserError for what is not of that form."""
    problems: list[tuple[Place, Problem]] = []
    root = Node({}, Place("--set"))
    for text in sets:
        root = merge(root, parse_override(text, problems), is_part=False)
    if problems:
        raise UserError("\n".join(problem.text(str(place)) for place, problem in problems))
    plain: dict[str, Any] = root.plain()
    return plain


@dataclass(frozen=True)
class Origin:
    """An installed plugin: its package and version, the folder or file that it was loaded from, its parts by kind.

    problem: why it could not be loaded; "" where it was.
    """

    name: str
    package: str
    version: str
    path: str
    parts: dict[str, list[str]]
    problem: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The same for a program."""
        return asdict(self)


def origins() -> list[Origin]:
    """Every entry point of the group that is installed, by name, also those that could not be loaded."""
    known, found = catalogue(), []
    for entry in sorted(entry_points(group=GROUP), key=lambda e: e.name):
        package, version = (entry.dist.name, entry.dist.version) if entry.dist else ("unknown", "")
        module = sys.modules.get(entry.module)
        labels = (entry.name, entry.module)
        parts = {
            kind: names
            for kind in known.kinds()
            if (names := [n for n in known.names(kind) if any(provided_by(x, known.provider(kind, n)) for x in labels)])
        }
        path = str(getattr(module, "__file__", None) or "")
        path = path.removesuffix("/__init__.py")
        found.append(Origin(entry.name, package, version, path, parts, known.failures.get(package, "")))
    return found


def print_origins(console: Console, found: Iterable[Origin]) -> None:
    """A few lines a plugin: package and version, where it lies, how many parts of which kind."""
    for origin in found:
        console.print(Text(f"{origin.name}  ({origin.package} {origin.version})", style="bold"), soft_wrap=True)
        console.print(Text(f"  {origin.path or 'not loaded'}"), soft_wrap=True)
        if origin.problem:
            console.print(Text(f"  could not be loaded: {origin.problem}"), soft_wrap=True)
        for kind, names in origin.parts.items():
            few = ", ".join(names) if len(names) <= FEW else f"{len(names)} of them"
            console.print(Text(f"  {kind}: {few}"), soft_wrap=True)
