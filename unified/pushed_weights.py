"""Weights for an engine that samples elsewhere: written whole, with a digest and a probe, and handed over.

    .cache/weights/STAGE/v12/    a Hugging Face folder (or an adapter), put in place whole
    .cache/weights/STAGE/v12.json    written last: version, and the sha256 of every file

The probe is a short text and the log-probs that the trainer's own forward gives its tokens: an engine that holds these
weights gives the same, up to its arithmetic. Only the newest folder stays, for a server that loses its weights is given
them again; the run takes it away when the stage ends, also by an error.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from unified.ahead import Pushed
from unified.blame import blaming
from unified.data import Answer, NewWeights, PromptGroup
from unified.disk import space_for, sync, whole_folder
from unified.errors import LostEngine, UserError
from unified.lora import fold, taken_off, write_adapter
from unified.manifest import sha256
from unified.models import save_model
from unified.registry import call_named
from unified.running import heads_without_gradient, tabulate
from unified.stage import pushed_folder
from unified.stream import Sampler, Stream, engine_or_default, pushes

if TYPE_CHECKING:
    from unified.running import Run

T = TypeVar("T")
TEXT = "The probe of the weights: 3 apples and 4 pears are 7 fruits, said the owl to the cat at noon. Is that so?"
#: tokens of the probe, at most
LONGEST = 48


def together(run: Run, work: Callable[[], T], *, main: bool = False) -> T | None:
    """Every process works, or with `main` the main one alone; where one fails all raise, so that none waits for it."""
    error, made = None, None
    try:
        if not main or run.processes.rank == 0:
            made = work()
    except UserError as raised:
        error = raised
    failed = run.processes.most(0 if error is None else 2 if isinstance(error, LostEngine) else 1)
    if error is not None:
        raise error
    if failed:
        kind = LostEngine if failed == 2 else UserError
        raise kind(f"stage '{run.stage.name}', step {run.step}: another process has no answers; see its message")
    return made


def policy_sampler(run: Run, place: tuple[object, ...]) -> Sampler:
    """A sampler of the policy as it is now. Every process calls it: an engine elsewhere is given the weights first."""
    if pushes(run.settings.engine):
        push_weights(run)
    else:
        run.make_whole()
    return sampler_with(run, place)


def sampler_with(run: Run, place: tuple[object, ...]) -> Sampler:
    """A sampler with the weights that the engine holds; one with weights of its own sees none of the model.

    Where processes share the model out, there may be nothing to see: it is made whole only to be written.
    """
    held, model = run.rollouts.pushed, run.answering()
    if pushes(run.settings.engine):
        model = run.rollouts.outline_of(model)
    return Sampler(
        run.settings.engine, model, run.tokenizer, held.version if held else run.step, place,
        bf16=run.roles.bf16, receipt=held.receipt if held else None,
    )  # fmt: skip


def push_weights(run: Run) -> None:
    """Give the engine the policy as it is now, where it has another; waits for what is being sampled meanwhile.

    Every process calls it. UserError where the engine does not take the weights, in all of them.
    """
    engine = engine_or_default(run.settings.engine)
    held = run.rollouts.pushed
    if not pushes(engine) or (held is not None and held.version == run.step):
        return
    run.rollouts.wait()
    began = time.time()
    adapter = bool(engine.part.form) and call_named(engine.part.form, settings=engine.settings) == "adapter"
    where = _folder_of(run)
    folder = where / f"v{run.step}"
    model = run.to_write("policy")

    def write() -> None:
        _drop(folder)  # of a run that was killed here, and may have pushed something else
        write_policy(run, model, folder, adapter=adapter)

    together(run, write, main=True)
    probe, logp = probe_of(run)

    def hand_over() -> Any:
        weights = NewWeights(folder, run.step, _marked(folder, run.step), adapter, probe, logp)
        with blaming(engine.part, "push"):
            receipt = call_named(engine.part.push, weights=weights, settings=engine.settings)
        _drop_others(where, folder)
        return receipt

    given = together(run, hand_over, main=True)
    (receipt,) = run.processes.lists([given] if run.processes.rank == 0 else [])
    run.rollouts.pushed = Pushed(run.step, run.iteration, receipt)
    if run.processes.rank == 0:
        found = receipt.get("metrics") if isinstance(receipt, Mapping) else None
        for name, value in {"seconds": time.time() - began, **(found or {})}.items():
            run.add(f"push/{name}", float(value))


def write_policy(run: Run, model: Any, folder: Path, *, adapter: bool) -> None:
    """The policy's weights, whole or its adapter alone, as a folder that others read. Nothing in the run changes."""
    settings = run.settings
    if adapter:
        if settings.adapter is None:
            raise UserError("the engine wants an adapter, and this stage trains none", "write `adapter:`, or push all")
        base = run.stage.artifact(settings.model)
        with space_for("the adapter for the engine", folder.parent), whole_folder(folder) as draft:
            write_adapter(model, draft, str(base.path or "in memory"))
        return
    if settings.adapter is not None:
        if settings.quantised:
            model = fold(model, run.stage.artifact(settings.model).load("policy"))
        else:
            model = taken_off(copy.deepcopy(model), folded=True)
    save_model(model, run.tokenizer, folder)


def probe_of(run: Run) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """(tokens, log-probs of all but the first). Every process calls it, because all run the same forwards."""
    ids = [int(i) for i in run.tokenizer(TEXT, add_special_tokens=False)["input_ids"]][:LONGEST]
    if len(set(ids)) < 8:  # a tokenizer of a few words
        size = len(run.tokenizer)
        ids = [(7 * i + 3) % size for i in range(16)]
    group = PromptGroup(ids[:1], [Answer(ids[1:], reward=0.0)])
    rows = [group]
    table = tabulate(run, Stream(run.stage.name, rows, None, None, [], 0), rows)
    heads = heads_without_gradient(run, table, [0], {"policy": frozenset({"logp"})})
    return tuple(ids), tuple(float(x) for x in heads["policy"]["logp"][0])


def clear_weights(run: Run) -> None:
    """Take away what was written for the engine: at the end of the stage nobody reads it any more."""
    if pushes(run.settings.engine) and run.processes.rank == 0:
        run.rollouts.wait()
        shutil.rmtree(_folder_of(run), ignore_errors=True)


def _folder_of(run: Run) -> Path:
    return pushed_folder(run.stage.cache or run.stage.folder / ".cache", run.stage.name)


def _marked(folder: Path, version: int) -> str:
    """Write the marker beside a whole folder, last; the digest of its files."""
    files = {str(p.relative_to(folder)): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    marker, draft = folder.with_name(f"{folder.name}.json"), folder.with_name(f"{folder.name}.json.part")
    with space_for("the marker of the weights", folder.parent):
        draft.write_text(json.dumps({"version": version, "sha256": digest, "files": files}, indent=2), encoding="utf-8")
        sync(draft)
        draft.replace(marker)
        sync(folder.parent)
    return digest


def _drop(folder: Path) -> None:
    """A folder of weights; its marker first, which must not stand for what comes after."""
    folder.with_name(f"{folder.name}.json").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _drop_others(where: Path, newest: Path) -> None:
    """Older weights, and what a killed run has left; the marker first."""
    for entry in sorted(where.iterdir(), key=lambda e: e.is_dir()):
        if entry not in (newest, newest.with_name(f"{newest.name}.json")):
            shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)
