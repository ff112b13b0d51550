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
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unified.collected import collected_of, collected_state
from unified.disk import space_for, sync
from unified.errors import UserError
from unified.manifest import sha256
from unified.packing import Written, read_packed, size_of, write_bytes, write_packed
from unified.pieces import Stored, write_pieces
from unified.running import Best, Run
from unified.wrapping import Piece

FOLDER, DRAFT, INDEX = "checkpoint", "draft", "index.json"
#: what the names of weights and of the optimiser's tensors begin with
WEIGHTS, OPTIMIZER = "weights/", "optimizer/"
FILES = ("metrics.jsonl", "samples.jsonl", "lens.jsonl", "warnings.jsonl", "coefficients.jsonl")
VERSION = 2
_STEP = re.compile(r"step-(\d+)(-within)?")


def save_checkpoint(run: Run) -> Path:
    """Write the state of the run beside the earlier checkpoints, and drop those over `save_total_limit`.

    Every process writes what it holds. UserError for a full disk; the checkpoints that were there are still there then.
    """
    name = f"step-{run.step}" + ("-within" if run.collected else "")
    states, groups, rest = run.wrapper.state()
    pieces = _weights(run) | {f"{OPTIMIZER}{n}": piece for n, piece in states.items()}
    packed = {f"process-{run.processes.rank}": state_of_process(run)}
    if run.accelerator.is_main_process:
        packed["state"] = state_of(run) | {"optimizer": {"groups": groups, "rest": rest}}
    about = {"step": run.step, "processes": run.processes.count, "best": run.best.step if run.best else None}
    keep = run.best.step if run.best else None
    _write_folder(run, name, f"checkpoint {name}", pieces, packed, about, logs=True, keep=keep)
    return run.stage.folder / FOLDER / name


def keep_best_weights(run: Run) -> None:
    """Write the weights that are the best so far, beside the checkpoints."""
    assert run.best is not None
    name, step = f"best-{run.best.step}", run.step
    _write_folder(run, name, f"the best weights ({name})", _weights(run), {}, {"step": step}, keep=step)


def _weights(run: Run) -> dict[str, Piece]:
    """What this process writes of the weights that training changes."""
    pieces = {f"{WEIGHTS}{name}": run.wrapper.piece(value) for name, value in run.trained_weights().items()}
    return {name: piece for name, piece in pieces.items() if piece is not None}


def _write_folder(
    run: Run,
    name: str,
    title: str,
    pieces: Mapping[str, Piece],
    packed: Mapping[str, Any],
    about: dict[str, Any],
    *,
    keep: int | None,
    logs: bool = False,
) -> None:
    """A folder of checkpoints: every process its files, then the index; put in place whole, and the old ones dropped.

    title: for a message. about: what the index says. logs: whether that is also how far the metrics files go.
    """
    folder, main = run.stage.folder / FOLDER, run.accelerator.is_main_process
    draft, written = folder / DRAFT, dict[str, Written]()
    needed = sum(p.values.nbytes for p in pieces.values()) + sum(size_of(value) for value in packed.values())

    def write() -> None:
        with space_for(title, folder, needed=needed):
            _enough(folder, needed)
            written.update(write_pieces(draft, run.processes.rank, pieces))
            for of, value in packed.items():
                written.update(write_packed(draft, of, value))

    def finish() -> None:
        with space_for(title, folder):
            if logs:
                about["logs"] = {log: _settled(run.stage.folder / log) for log in FILES}
            _put_in_place(draft, folder / name, written, about)
            prune(folder, run.settings.save_total_limit, keep=keep)

    _together(run, lambda: _fresh(draft) if main else None)
    _together(run, write)
    _together(run, lambda: finish() if main else None)


def load_best_weights(run: Run) -> None:
    """Put the best weights back into the models."""
    assert run.best is not None
    with Stored(run.stage.folder / FOLDER / f"best-{run.best.step}", run.device) as stored:
        _load_weights(run, stored)


def _load_weights(run: Run, stored: Stored) -> None:
    for name, tensor in run.trained_weights().items():
        run.wrapper.fill(f"{WEIGHTS}{name}", tensor, stored.read)


def state_of(run: Run) -> dict[str, Any]:
    """Whatever changes while a stage trains and is the same in every process, but for the weights."""
    best = run.best and {"value": run.best.value, "step": run.best.step, "measured": run.best.measured}
    return {
        "step": run.step,
        "iteration": run.iteration,
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
        "collected": collected_state(run.collected) if run.collected else None,
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
    """The state of a checkpoint into the run, whatever number of processes wrote it."""
    state = read_packed(folder, "state", run.device)
    with Stored(folder, run.device) as stored:
        _load_weights(run, stored)
        states = {n.removeprefix(OPTIMIZER) for n in stored.names if n.startswith(OPTIMIZER)}
        of_optimizer = state["optimizer"]
        read = partial(_read_state, stored)
        run.wrapper.load_state(of_optimizer["groups"], of_optimizer["rest"], states, read)
    run.scheduler.load_state_dict(state["scheduler"])
    run.step, run.iteration, run.filled_at = state["step"], state["iteration"], -1
    each = zip(run.streams, state["positions"], state["left_out"], state["terms"], strict=True)
    for stream, position, left_out, terms in each:
        stream.position, stream.left_out = position, left_out
        for term, value in zip(stream.terms, terms, strict=True):
            term.state = value
    run.evaluated, run.evaluated_at, run.last = state["evaluated"], state["evaluated_at"], state["last"]
    run.best = Best(**state["best"]) if state["best"] else None
    run.guard.load_state(state["guard"])
    run.watch.load_state(state["watch"])
    _load_process(run, folder)


def _read_state(stored: Stored, name: str, start: int, stop: int) -> Tensor:
    return stored.read(f"{OPTIMIZER}{name}", start, stop)


def _load_process(run: Run, folder: Path) -> None:
    """What each process had of its own. Another number of processes shares it out: sums that are added up in the end,
    what is kept of fixed rows to all, and the collected batch group by group."""
    wrote, count, rank = _read_index(folder)["processes"], run.processes.count, run.processes.rank
    numbers = [rank] if wrote == count else range(wrote)
    parts = {n: read_packed(folder, f"process-{n}", run.device) for n in numbers}
    run.sums = {}
    for n, own in parts.items():
        for name, (value, number) in own["sums"].items() if n % count == rank else ():
            run.add(name, value, number)
    run.kept = {place: value for own in parts.values() for place, value in _parted(own["kept"]).items()}
    run.kept_top = {}
    for own in parts.values():
        ids, logp = (_parted(part) for part in own["kept_top"])
        run.kept_top |= {place: (ids[place], logp[place]) for place in ids}
    collected = [own["collected"] for own in parts.values()]
    run.collected = collected_of(run, collected, anew=wrote != count) if collected[0] else None


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


# --- files ---


def _joined(kept: dict[tuple[str, int, int], Tensor]) -> dict[str, Any]:
    """Many small tensors as one: a file holds thousands, not millions."""
    every = torch.cat(list(kept.values())) if kept else None
    return {"places": [list(place) for place in kept], "sizes": [len(value) for value in kept.values()], "all": every}


def _parted(state: dict[str, Any]) -> dict[tuple[str, int, int], Tensor]:
    parts = state["all"].split(state["sizes"]) if state["all"] is not None else ()
    return {tuple(place): part.clone() for place, part in zip(state["places"], parts, strict=True)}


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
