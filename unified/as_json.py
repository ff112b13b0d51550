"""What `--json` prints: one value on the standard output and nothing else there. Imports no torch.

Keys are words of the command's own page, lengths in tokens, times in seconds, hashes sha256 in hexadecimal. A number
that is not finite is null. Mistakes are told on the error stream, with the exit code that the command has without it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from unified.check import Plan
    from unified.lineage import Ancestor
    from unified.plan import Estimate
    from unified.recipe import Recipe
    from unified.status import Status


def print_json(value: Any, *, lines: bool = False) -> None:
    """One JSON value; control characters, which could lead a terminal astray, are escaped. lines: on one line."""
    text = json.dumps(plain(value), indent=None if lines else 2, ensure_ascii=False, allow_nan=False)
    typer.echo("".join(c if c == "\n" or not _is_control(c) else f"\\u{ord(c):04x}" for c in text))


def plain(value: Any) -> Any:
    """The value as JSON has it: dataclasses as mappings, keys as texts, what JSON has no form for as text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value.encode("utf-8", errors="replace").decode("utf-8") if isinstance(value, str) else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {" ".join(map(str, k)) if isinstance(k, tuple) else str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    return str(value)


def of_check(plan: Plan, open_: Sequence[str]) -> dict[str, Any]:
    """`unified check`: the stages of a recipe without mistakes; open_: what could not be looked at."""
    stages = [
        {"name": s.name, "kind": s.part.name, "makes": s.makes, "settings": s.written(),
         "uses": [{"at": list(use.at), "reference": use.reference, "kind": use.kind} for use in s.uses]}
        for s in plan.stages
    ]  # fmt: skip
    return {"recipe": plan.recipe.source, "problems": [], "not_yet_verified": list(open_), "stages": stages}


def of_problems(recipe: Recipe) -> dict[str, Any]:
    """`unified check`: what is wrong with a recipe, each with its place; line: from 1, null where there is none."""
    return {"recipe": recipe.source, "problems": recipe.problem_list(), "not_yet_verified": [], "stages": []}


def of_status(status: Status) -> dict[str, Any]:
    """`unified status`."""
    stages = []
    for finding in status.findings:
        done, planned = finding.manifest, getattr(finding.stage.settings, "max_steps", None)
        told, unreadable = status.warnings(finding)
        about = {"name": finding.stage.name, "folder": finding.folder, "state": status.word(finding)}
        about |= {"why": finding.why, "step": finding.step, "steps": planned if planned and planned > 0 else None}
        about |= {"seconds": done.seconds if done else None, "summary": done.summary if done else {}}
        stages.append({**about, "warnings": [t.as_dict() for t in told], "unreadable_warnings": unreadable})
    return {"run": status.name, "running": status.holder, "stages": stages, "notes": status.notes}


def of_lineage(ancestors: Sequence[Ancestor]) -> dict[str, Any]:
    """`unified lineage`: every ancestor once, by number; `asked`: the numbers of what was asked about."""
    order: list[Ancestor] = []

    def number(one: Ancestor) -> int:
        for i, other in enumerate(order):
            if other is one:
                return i
        order.append(one)
        return len(order) - 1

    asked, ancestry, at = [number(a) for a in ancestors], [], 0
    while at < len(order):
        one = order[at]
        made_from = [{"as": reference, "ancestor": number(below)} for reference, below in one.inputs]
        about = {"name": one.name, "folder": one.folder, "about": one.about, "from": made_from}
        ancestry.append({**about, "manifest": one.manifest})
        at += 1
    return {"asked": asked, "ancestors": ancestry}


def of_plan(estimates: Sequence[Estimate]) -> dict[str, Any]:
    """`unified plan`: work in tokens and steps, cost in operations, bytes and seconds; null where it is not known."""
    stages = []
    for one in estimates:
        found, cost = one.finding, one.cost
        about = {"name": found.stage.name, "state": found.state, "why": found.why, "work": one.work}
        stages.append({**about, "cost": None if cost is None else {**plain(cost), "seconds": cost.seconds}})
    return {"stages": stages}


def of_exported(folder: Path, lines: Sequence[str]) -> dict[str, Any]:
    """`unified export`: the new folder, its files with their sizes in bytes, and what was said."""
    files = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    return {"folder": folder, "files": files, "said": lines}


def _is_control(character: str) -> bool:
    return ord(character) < 32 or 127 <= ord(character) < 160
