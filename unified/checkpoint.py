"""Checkpoints to go on from: written whole or not at all, at the end of a collected batch.

All randomness is seeded by stage, step and process, so a checkpoint needs weights, optimiser, schedule, counters,
positions in the data, states of the terms, and how far the metrics files go.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from unified.run import Run

FOLDER = "checkpoint"
FILES = ("metrics.jsonl", "samples.jsonl")


def save_checkpoint(run: Run) -> Path:
    """Write the state of the run beside the last checkpoint, then put it in its place."""
    folder = run.stage.folder / FOLDER
    if run.accelerator.is_main_process:
        draft = folder.with_name(f"{FOLDER}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        with (draft / "state.pt").open("wb") as file:
            torch.save(state_of(run), file)
            file.flush()
            os.fsync(file.fileno())
        old = folder.with_name(f"{FOLDER}.old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        draft.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    run.accelerator.wait_for_everyone()
    return folder


def state_of(run: Run) -> dict[str, Any]:
    """Whatever changes while a stage trains."""
    return {
        "step": run.step,
        "iteration": run.iteration,
        "weights": run.trained_weights(),
        "optimizer": run.optimizer.state_dict(),
        "scheduler": run.scheduler.state_dict(),
        "positions": [s.position for s in run.streams],
        "left_out": [s.left_out for s in run.streams],
        "terms": [[t.state for t in s.terms] for s in run.streams],
        "kept": run.kept,
        "kept_top": run.kept_top,
        "evaluated": run.evaluated,
        "last": run.last,
        "best": run.best,
        "files": {name: _size(run.stage.folder / name) for name in FILES},
    }


def resume(run: Run) -> bool:
    """Go on from the checkpoint in the stage's folder, if there is one; metrics written after it are cut off."""
    folder = run.stage.folder / FOLDER
    if not folder.exists() and folder.with_name(f"{FOLDER}.old").exists():
        folder = folder.with_name(f"{FOLDER}.old")  # killed between the two renames
    path = folder / "state.pt"
    if not path.is_file():
        for name in FILES:
            (run.stage.folder / name).unlink(missing_ok=True)
        return False
    state = torch.load(path, map_location=run.device, weights_only=False)
    run.roles.load_state_dict(state["weights"], strict=False)
    run.optimizer.load_state_dict(state["optimizer"])
    run.scheduler.load_state_dict(state["scheduler"])
    run.step, run.iteration = state["step"], state["iteration"]
    each = zip(run.streams, state["positions"], state["left_out"], state["terms"], strict=True)
    for stream, position, left_out, terms in each:
        stream.position, stream.left_out = position, left_out
        for term, value in zip(stream.terms, terms, strict=True):
            term.state = value
    run.kept, run.evaluated, run.last, run.best = state["kept"], state["evaluated"], state["last"], state["best"]
    run.kept_top = state["kept_top"]
    if run.accelerator.is_main_process:
        for name, size in state["files"].items():
            path = run.stage.folder / name
            if path.exists():
                os.truncate(path, size)
    run.accelerator.wait_for_everyone()
    return True


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
