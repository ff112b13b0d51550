"""What a run folder holds of a recipe, and what running the recipe would do there. Nothing is run or written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unified import __version__
from unified.check import Plan, PlannedStage
from unified.drafts import Made, draft_of
from unified.made import STAGE
from unified.manifest import FINGERPRINT, Manifest, has_checkpoint, outputs_of, read_manifest, stage_folder
from unified.recipe import Recipe, after_stage

#: done: nothing to do. changed: done once, and will run again. depends: runs again if what it starts from comes out
#: otherwise. interrupted: goes on, or starts over. new: not begun.
State = Literal["done", "changed", "depends", "interrupted", "new"]


@dataclass(frozen=True)
class Finding:
    """One stage: its state and why; the manifest of its result, if there is one; step: how far it came."""

    stage: PlannedStage
    folder: Path
    state: State
    why: tuple[str, ...] = ()
    manifest: Manifest | None = None
    step: int | None = None


def survey(plan: Plan, output: Path, replan: Callable[[Recipe], Plan]) -> list[Finding]:
    """Every stage that is or would be run, in order; `replan` plans a recipe whose block has ended early."""
    found: list[Finding] = []
    while len(found) < len(plan.stages):
        stage = plan.stages[len(found)]
        found.append(_finding(plan.recipe, stage, output, {f.stage.name: f for f in found}))
        summaries = {f.stage.name: f.manifest.summary for f in found if f.manifest and f.state == "done"}
        shorter = after_stage(plan.recipe, stage.name, summaries)
        plan = replan(shorter) if shorter is not None else plan
    return found


def _finding(recipe: Recipe, stage: PlannedStage, output: Path, before: Mapping[str, Finding]) -> Finding:
    folder = stage_folder(output, stage.name)
    names = [use.reference.removeprefix(STAGE) for use in stage.uses if use.reference.startswith(STAGE)]
    unsure = tuple(dict.fromkeys(n for n in names if n not in before or before[n].state != "done"))
    made: Made = {f.stage.name: (f.manifest, f.folder) for f in before.values() if f.manifest is not None}
    draft = draft_of(recipe, stage, made) if all(n in made for n in names) else None
    done = read_manifest(folder)
    if done is None:
        return _unfinished(stage, folder, draft, unsure)
    why = tuple(differences(done, recipe, stage, draft))
    if not why and draft is not None and draft.fingerprint != done.fingerprint:
        why = ("what its fingerprint is made of",)
    if not why and outputs_of(folder) != done.outputs:
        why = ("its result was changed or is incomplete",)
    if why:
        return Finding(stage, folder, "changed", why, done)
    if unsure:
        why = tuple(f"only if stage '{n}' makes something else" for n in unsure)
        return Finding(stage, folder, "depends", why, done)
    return Finding(stage, folder, "done", (), done)


def _unfinished(stage: PlannedStage, folder: Path, draft: Manifest | None, unsure: tuple[str, ...]) -> Finding:
    file = folder / FINGERPRINT
    if not file.is_file():
        return Finding(stage, folder, "new", ("not run yet",))
    step = last_step(folder)
    if unsure or draft is None or file.read_text(encoding="utf-8") != draft.fingerprint:
        return Finding(stage, folder, "interrupted", ("begun with other settings or inputs; starts over",), step=step)
    where = "goes on from its checkpoint" if has_checkpoint(folder) else "no checkpoint yet; starts over"
    return Finding(stage, folder, "interrupted", (where,), step=step)


def differences(done: Manifest, recipe: Recipe, stage: PlannedStage, draft: Manifest | None) -> Iterator[str]:
    """In words, what is not as it was when the stage was done; inputs and files only where a draft knows them."""
    if done.kind != stage.part.name:
        yield f"kind: {done.kind} → {stage.part.name}"
    old, new = (dict(_flat(settings)) for settings in (done.settings, stage.written()))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield f"{key}: {_word(old, key)} → {_word(new, key)}"
    if done.seed != recipe.seed:
        yield f"seed: {done.seed} → {recipe.seed}"
    if draft is not None:
        for reference, value in draft.inputs.items():
            if reference in done.inputs and done.inputs[reference]["sha256"] != value["sha256"]:
                yield f"input {reference}: other content"
        for name in sorted(done.files.keys() | draft.files.keys()):
            if done.files.get(name) != draft.files.get(name):
                both = name in done.files and name in draft.files
                yield f"file {name}: {'other content' if both else 'came or went'}"
    if done.versions.get("unified", __version__) != __version__:
        yield f"version of unified: {done.versions['unified']} → {__version__}"


def last_step(folder: Path) -> int | None:
    """The step of the last line of metrics.jsonl; None where there is none."""
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            step = json.loads(line).get("step")
        except (ValueError, AttributeError):
            continue
        if isinstance(step, int):
            return step
    return None


def _flat(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None or not value:
        yield at, value
        return
    for key, inner in items:
        yield from _flat(inner, f"{at}.{key}" if at else str(key))


def _word(settings: Mapping[str, Any], key: str) -> str:
    value = settings.get(key)
    return "none" if value is None else str(value)
