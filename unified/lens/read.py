"""The pictures that a stage has kept, read however the file ends. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path

from unified.errors import UserError
from unified.lens.picture import Picture
from unified.manifest import stage_folder
from unified.report.collect import stage_names
from unified.status import read_run

LENS = "lens.jsonl"


def read_pictures(path: Path) -> tuple[list[Picture], int]:
    """The pictures of a lens.jsonl in the order of their steps, and how many lines could not be read.

    Of steps that came again later (a run that went on from an older checkpoint) the later; a line that is being written
    is no line yet.
    """
    found: list[Picture] = []
    unreadable = 0
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return [], 0
    for line in lines[:-1]:
        try:
            picture = Picture.of(json.loads(line))
            step = int(picture.step)  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError):
            unreadable += 1
            continue
        while found and found[-1].step is not None and found[-1].step >= step:
            found.pop()
        found.append(picture)
    return found, unreadable


def pictures_of_run(run: Path) -> dict[str, tuple[list[Picture], int]]:
    """Of a run (or one of its stages): stage -> its pictures and its lines that could not be read; without, no entry.

    UserError where no stage has kept any.
    """
    if (run / LENS).is_file():
        return {run.name: read_pictures(run / LENS)}
    names = stage_names(read_run(run), run)
    found = {name: read_pictures(stage_folder(run, name) / LENS) for name in names}
    found = {name: (pictures, bad) for name, (pictures, bad) in found.items() if pictures}
    if not found:
        raise UserError(
            f"no stage of {run} has kept pictures",
            "train with `lens_steps: 10` (any number) in the stage, which keeps one every so many steps",
            "or look at its model as it is now: give --data FILE and --algorithm NAME",
        )
    return found
