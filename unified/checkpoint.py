"""Checkpoints to go on from: whole or not at all, recognised by their hashes, without pickle.

All randomness is seeded by stage, step and process, so a checkpoint needs weights, optimiser, schedule, counters,
positions in the data, states of the terms, the collected batch that is being learned from, and how far the metrics
files go. In the stage's folder:

    checkpoint/step-12/           after step 12: index.json (written last), weights, state, one part of each process
    checkpoint/step-12-within/    the same, with the rest of a collected batch to be learned from
    checkpoint/best-8/            the weights that were best, written once; steps refer to it
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unified.batch import Batch
from unified.data import Answer, PromptGroup
from unified.disk import space_for, sync
from unified.errors import UserError
from unified.layout import Row
from unified.manifest import sha256
from unified.packing import Written, read_packed, read_tensors, size_of, write_bytes, write_packed, write_tensors
from unified.run import Best, Collected, Run, Table

FOLDER, DRAFT, INDEX, WEIGHTS = "checkpoint", "draft", "index.json", "weights.safetensors"
FILES = ("metrics.jsonl", "samples.jsonl", "lens.jsonl")
VERSION = 1
_STEP = re.compile(r"step-(\d+)(-within)?")


def save_checkpoint(run: Run) -> Path:
    """Write the state of the run beside the earlier checkpoints, and drop those over `save_total_limit`.

    UserError for a full disk; the checkpoints that were there are still there then.
    """
    folder = run.stage.folder / FOLDER
    name = f"step-{run.step}" + ("-within" if run.collected else "")
    draft, main = folder / DRAFT, run.accelerator.is_main_process
    rank, written = run.processes.rank, dict[str, Written]()

    def write() -> None:
        common, own = (state_of(run) if main else {}), state_of_process(run)
        weights = run.trained_weights() if main else {}
        needed = sum(t.nbytes for t in weights.values()) + size_of(common) + size_of(own)
        with space_for(f"checkpoint {name}", folder, needed=needed):
            _enough(folder, needed)
            written.update(write_packed(draft, f"process-{rank}", own))
            if main:
                written[WEIGHTS] = write_tensors(draft / WEIGHTS, weights)
                written.update(write_packed(draft, "state", common))

    def finish() -> None:
        with space_for(f"checkpoint {name}", folder):
            logs = {log: _settled(run.stage.folder / log) for log in FILES}
            about: dict[str, Any] = {"step": run.step, "processes": run.processes.count, "logs": logs}
            about["best"] = run.best.step if run.best else None
            _put_in_place(draft, folder / name, written, about)
            prune(folder, run.settings.save_total_limit, keep=run.best.step if run.best else None)

    _together(run, lambda: _fresh(draft) if main else None)
    _together(run, write)
    _together(run, lambda: finish() if main else None)
    return folder / name


def keep_best_weights(run: Run) -> None:
    """Write the weights that are the best so far, beside the checkpoints."""
    assert run.best is not None
    folder = run.stage.folder / FOLDER
    name = f"best-{run.best.step}"

    def write() -> None:
        weights = run.trained_weights()
        needed = sum(t.nbytes for t in weights.values())
        with space_for(f"the best weights ({name})", folder, needed=needed):
            _fresh(folder / DRAFT)
            _enough(folder, needed)
            written = {WEIGHTS: write_tensors(folder / DRAFT / WEIGHTS, weights)}
            _put_in_place(folder / DRAFT, folder / name, written, {"step": run.step})
            prune(folder, run.settings.save_total_limit, keep=run.step)

    _together(run, lambda: write() if run.accelerator.is_main_process else None)


def load_best_weights(run: Run) -> None:
    """Put the best weights back into the models."""
    assert run.best is not None
    path = run.stage.folder / FOLDER / f"best-{run.best.step}" / WEIGHTS
    run.roles.load_state_dict(read_tensors(path, run.device), strict=False)


def state_of(run: Run) -> dict[str, Any]:
    """Whatever changes while a stage trains and is the same in every process, but for the weights."""
    best = run.best and {"value": run.best.value, "step": run.best.step, "measured": run.best.measured}
    return {
        "step": run.step,
        "iteration": run.iteration,
        "optimizer": run.optimizer.state_dict(),
        "scheduler": run.scheduler.state_dict(),
        "positions": [s.position for s in run.streams],
        "left_out": [s.left_out for s in run.streams],
        "terms": [[t.state for t in s.terms] for s in run.streams],
        "evaluated": run.evaluated,
        "evaluated_at": run.evaluated_at,
        "last": run.last,
        "best": best,
        "guard": run.guard.state(),
        "watch": run.watch.state(),
    }


def state_of_process(run: Run) -> dict[str, Any]:
    """What every process has of its own: sums for the metrics, what is kept of fixed rows, its share of the batch."""
    return {
        "sums": run.sums,
        "kept": _joined(run.kept),
        "kept_top": [_joined({place: both[i] for place, both in run.kept_top.items()}) for i in (0, 1)],
        "collected": _collected_state(run.collected) if run.collected else None,
    }


def resume(run: Run) -> bool:
    """Go on from the newest whole checkpoint in the stage's folder, if there is one; what came after it is cut off.

    A damaged one is named, and the one before it taken.
    """
    folder = run.stage.folder / FOLDER
    names = steps_in(folder)
    chosen = 0  # the main process looks, all take what it found
    if run.accelerator.is_main_process:
        for number, name in enumerate(names, 1):
            why = damage(folder, name, run.stage.folder)
            if why is None:
                chosen = number
                break
            run.stage.say(f"{run.stage.name}: checkpoint {name} cannot be used: {why}")
        if names:
            what = f"going on from {names[chosen - 1]}" if chosen else "none is whole; the stage starts over"
            run.stage.say(f"{run.stage.name}: {what}") if chosen != 1 else None
    chosen = run.processes.most(chosen)
    if chosen:
        _load(run, folder / names[chosen - 1])
    run.accelerator.wait_for_everyone()
    if run.accelerator.is_main_process:
        _cut_off(run.stage.folder, names, chosen)
    run.accelerator.wait_for_everyone()
    return chosen > 0


def steps_in(folder: Path) -> list[str]:
    """Checkpoints in a stage's checkpoint folder by name, the newest first."""
    found = [(m, e.name) for e in (folder.iterdir() if folder.is_dir() else ()) if (m := _STEP.fullmatch(e.name))]
    return [name for m, name in sorted(found, key=lambda f: (int(f[0][1]), f[0][2] is None), reverse=True)]


def damage(folder: Path, name: str, logs: Path) -> str | None:
    """Why a checkpoint cannot be used, None for one that is whole. logs: where the metrics files are."""
    try:
        index = _read_index(folder / name)
        if index["version"] != VERSION:
            return f"it has version {index['version']}, this is {VERSION}"
        for file, (size, digest) in index["files"].items():
            path = folder / name / file
            if not path.is_file() or path.stat().st_size != size or sha256(path) != digest:
                return f"{file} is not what {INDEX} says"
        for log, size in index.get("logs", {}).items():
            if _size(logs / log) < size:
                return f"{log} is shorter than it was"
        best = index.get("best")
        why = damage(folder, f"best-{best}", logs) if best is not None else None
        return f"best-{best}: {why}" if why else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{INDEX} cannot be read ({type(error).__name__})"


def prune(folder: Path, limit: int, *, keep: int | None) -> None:
    """Drop all but the newest `limit` steps, and the best weights that none of them refers to (nor is step `keep`)."""
    steps = steps_in(folder)
    for name in steps[limit:]:
        _drop(folder / name)
    wanted = {f"best-{keep}"}
    for name in steps[:limit]:
        with suppress(OSError, ValueError, KeyError, TypeError):
            wanted.add(f"best-{_read_index(folder / name)['best']}")
    for entry in list(folder.glob("best-*")):
        if entry.name not in wanted:
            _drop(entry)


def _load(run: Run, folder: Path) -> None:
    """The state of a checkpoint into the run."""
    processes = _read_index(folder)["processes"]
    state = read_packed(folder, "state", run.device)
    own = read_packed(folder, f"process-{run.processes.rank % processes}", run.device)
    if own["collected"] and processes != run.processes.count:
        raise UserError(
            f"checkpoint {folder.name} was written by {processes} processes in the middle of a batch; there are now "
            f"{run.processes.count}",
            f"start as many again, or delete {folder} to go on from the one before",
        )
    run.roles.load_state_dict(read_tensors(folder / WEIGHTS, run.device), strict=False)
    run.optimizer.load_state_dict(state["optimizer"])
    run.scheduler.load_state_dict(state["scheduler"])
    run.step, run.iteration = state["step"], state["iteration"]
    each = zip(run.streams, state["positions"], state["left_out"], state["terms"], strict=True)
    for stream, position, left_out, terms in each:
        stream.position, stream.left_out = position, left_out
        for term, value in zip(stream.terms, terms, strict=True):
            term.state = value
    run.evaluated, run.evaluated_at, run.last = state["evaluated"], state["evaluated_at"], state["last"]
    run.best = Best(**state["best"]) if state["best"] else None
    run.guard.load_state(state["guard"])
    run.watch.load_state(state["watch"])
    run.sums, run.kept = own["sums"], _parted(own["kept"])
    ids, logp = (_parted(part) for part in own["kept_top"])
    run.kept_top = {place: (ids[place], logp[place]) for place in ids}
    run.collected = _collected_of(run, own["collected"]) if own["collected"] else None


def _cut_off(stage: Path, names: list[str], chosen: int) -> None:
    """Take away what came after the chosen checkpoint (1: the newest; 0: none), or after the beginning."""
    folder = stage / FOLDER
    if not chosen:
        shutil.rmtree(folder, ignore_errors=True)
        for name in FILES:
            (stage / name).unlink(missing_ok=True)
        return
    for name in names[: chosen - 1]:
        _drop(folder / name)
    index = _read_index(folder / names[chosen - 1])
    prune(folder, len(names), keep=index["best"])
    for name, size in index["logs"].items():
        if (stage / name).exists():
            os.truncate(stage / name, size)


# --- a collected batch ---


def _collected_state(now: Collected) -> dict[str, Any]:
    own = {f.name: getattr(now, f.name) for f in fields(now) if f.name != "table"}
    batch = now.table.batch
    groups = [_group_state(group) for group in now.table.groups]
    return {**own, "groups": groups, "fields": batch.fields, "columns": batch.columns, "top": now.table.top}


def _group_state(group: PromptGroup) -> dict[str, Any]:
    """What is looked at after the judgement: columns and messages are not, log-probs of sampling stand in the batch."""
    answers = [{f.name: getattr(a, f.name) for f in fields(a) if f.name != "sampling_logp"} for a in group.answers]
    return {"prompt": group.prompt, "text": group.text, "key": group.key, "draw": group.draw, "answers": answers}


def _collected_of(run: Run, state: dict[str, Any]) -> Collected:
    groups = [PromptGroup(**{**g, "answers": [Answer(**a) for a in g["answers"]]}) for g in state.pop("groups")]
    batch = Batch(state.pop("fields"), state.pop("columns"), run.processes)
    pairs = zip(((g, a) for g in groups for a in g.answers), batch.loss_mask.tolist(), strict=True)
    rows = [Row(g.prompt, a.ids, mask[: len(a.ids)]) for (g, a), mask in pairs]
    return Collected(Table(run.streams[0], groups, rows, batch, state.pop("top")), **state)


def _joined(kept: dict[tuple[str, int, int], Tensor]) -> dict[str, Any]:
    """Many small tensors as one: a file holds thousands, not millions."""
    every = torch.cat(list(kept.values())) if kept else None
    return {"places": [list(place) for place in kept], "sizes": [len(value) for value in kept.values()], "all": every}


def _parted(state: dict[str, Any]) -> dict[tuple[str, int, int], Tensor]:
    parts = state["all"].split(state["sizes"]) if state["all"] is not None else ()
    return {tuple(place): part.clone() for place, part in zip(state["places"], parts, strict=True)}


# --- files ---


def _together(run: Run, work: Callable[[], None]) -> None:
    """Every process works; where one fails, all raise, so that none waits for it."""
    error: Exception | None = None
    try:
        work()
    except Exception as raised:
        error = raised
    failed = run.processes.most(int(error is not None))
    if failed and run.accelerator.is_main_process:
        shutil.rmtree(run.stage.folder / FOLDER / DRAFT, ignore_errors=True)
    if error is not None:
        raise error
    if failed:
        raise UserError(f"stage '{run.stage.name}', step {run.step}: another process could not write its checkpoint")


def _fresh(draft: Path) -> None:
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)


def _enough(folder: Path, needed: int) -> None:
    """OSError before anything is written where the disk has not so many bytes left."""
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _put_in_place(draft: Path, folder: Path, written: dict[str, Written], about: dict[str, Any]) -> None:
    """Write the index of all files in a draft, last; then rename it. written: by this process, hashed as it did."""
    files = {p.name: written.get(p.name) or (p.stat().st_size, sha256(p)) for p in sorted(draft.iterdir())}
    content = json.dumps({"version": VERSION, **about, "files": files}, sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()
    write_bytes(draft / INDEX, json.dumps({"sha256": digest, "content": json.loads(content)}, indent=2).encode())
    sync(draft)
    if folder.exists():
        _drop(folder)
    draft.rename(folder)
    sync(folder.parent)
    sync(folder.parent.parent)


def _read_index(folder: Path) -> dict[str, Any]:
    """ValueError for one that is damaged."""
    read = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    content: dict[str, Any] = read["content"]
    if hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest() != read["sha256"]:
        raise ValueError(f"{INDEX} is not what its hash says")
    return content


def _drop(folder: Path) -> None:
    """The index first: a folder that is half gone must not be taken for a checkpoint."""
    (folder / INDEX).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _settled(path: Path) -> int:
    """The size of a log in bytes, all of it on the disk."""
    if path.exists():
        sync(path)
    return _size(path)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
