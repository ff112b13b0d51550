"""`unified status`: how far a run has come, and what of it no longer fits its recipe."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from unified.check import typed_plan
from unified.console import duration, held_out
from unified.errors import UserError
from unified.lock import holder
from unified.recipe import Recipe, assemble, load_recipe
from unified.runner import RUN_FILE
from unified.survey import Finding, survey
from unified.tree import Place, located
from unified.warned import WARNINGS, Told, read_warnings


@dataclass(frozen=True)
class Status:
    """A run: its name, its stages, who runs it now (None: nobody), and remarks."""

    name: str
    findings: list[Finding]
    holder: dict[str, Any] | None
    notes: list[str]

    @property
    def running(self) -> str | None:
        """The stage that is running now: of a run that somebody holds, the first that is not done."""
        if self.holder is None:
            return None
        return next((f.stage.name for f in self.findings if f.state not in ("done", "depends")), None)

    def warnings(self, finding: Finding) -> tuple[list[Told], int]:
        """The warnings of a stage by kind, and how many lines of its log cannot be read."""
        return read_warnings(finding.folder)

    def word(self, finding: Finding) -> str:
        """The state of a stage in a word or two."""
        if finding.stage.name == self.running:
            return "running"
        words = {"changed": "stale", "depends": "done, may be stale", "new": "to do"}
        return words.get(finding.state, finding.state)


def status_of(folder: Path) -> Status:
    """Look at a run folder. UserError where there is no run in it."""
    about = read_run(folder)
    recipe, notes = recipe_of(about, folder)
    findings = survey(typed_plan(recipe), folder, typed_plan)
    return Status(str(about.get("run", folder.name)), findings, holder(folder), notes)


def read_run(folder: Path) -> dict[str, Any]:
    """What a run folder says of its run. UserError where it is none."""
    try:
        about = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        inside = [p.parent.name for p in sorted(folder.glob(f"*/{RUN_FILE}"))] if folder.is_dir() else []
        hint = [f"runs in it: {', '.join(inside)}"] if inside else ["give the folder that `unified run` wrote to"]
        raise UserError(f"{folder} holds no run", *hint) from error
    if not isinstance(about, dict):
        raise UserError(f"{folder / RUN_FILE} is damaged", "run the recipe again; finished stages are kept")
    return about


def recipe_of(about: dict[str, Any], folder: Path) -> tuple[Recipe, list[str]]:
    """The recipe of a run as its file is now; where that cannot be read, as it was run, with a remark."""
    home = Path(about.get("home") or ".")
    file = home / Path(str(about.get("recipe"))).name
    try:
        recipe = load_recipe(file, about.get("sets") or (), about.get("profile"))
        if not recipe.problems:
            return recipe, []
        why = recipe.problem_texts()[0].splitlines()[0]
    except UserError as error:
        why = str(error).splitlines()[0]
    root = located(about.get("resolved") or {}, Place(str(folder / RUN_FILE)))
    made = assemble(root, source=str(folder / RUN_FILE), home=home)
    made.profile = about.get("profile")
    from_file = not str(about.get("recipe", "")).startswith("unified ")
    return made, [f"compared with the recipe as it was run: {why}"] if from_file else []


def print_status(console: Console, status: Status) -> None:
    """A line that says who runs it, and a table of its stages."""
    who = status.holder
    now = f"running as process {who.get('pid')} on {who.get('host')}" if who else "not running"
    console.print(Text(f"{status.name}: {now}"))
    table = Table("stage", "state", "step", "held-out", "time", "why")
    for finding in status.findings:
        done = finding.manifest
        planned = getattr(finding.stage.settings, "max_steps", None)
        of = f" of {planned}" if isinstance(planned, int) and planned > 0 else ""
        cells = (
            finding.stage.name,
            status.word(finding),
            f"{finding.step}{of}" if finding.step is not None else "-",
            held_out(done.summary) if done else "-",
            duration(done.seconds) if done else "-",
            "; ".join(finding.why) if finding.state not in ("done", "new") else "",
        )
        table.add_row(*map(Text, cells))
    console.print(table)
    for finding in status.findings:
        told, unreadable = status.warnings(finding)
        for one in told:
            steps = f"step {one.first}" if one.times == 1 else f"{one.times} times, steps {one.first} to {one.last}"
            console.print(Text(f"warning: {finding.stage.name}, {steps}: {one.message}"), soft_wrap=True)
            console.print(Text(f"    {one.remedy}"), soft_wrap=True)
        if unreadable:
            console.print(Text(f"{finding.folder / WARNINGS}: {unreadable} lines cannot be read"), soft_wrap=True)
    for note in status.notes:
        console.print(Text(note))
