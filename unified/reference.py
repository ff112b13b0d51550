"""Log-probs of the reference on fixed rows: computed once, kept for later passes, and on disk for later runs."""

from __future__ import annotations

import torch
from torch import Tensor

from unified.lora import own_weights
from unified.memo import Memo, weights_digest
from unified.running import Run, Table, heads_without_gradient


def fixed_reference(run: Run, table: Table) -> Tensor:
    """[rows, time] of a table whose rows do not change; what is not known yet is recalled or computed, and kept."""
    places = table.places
    fresh = [i for i, place in enumerate(places) if place not in run.kept]
    value = _recall_or_compute(run, table, fresh)
    new, finite = set(fresh), torch.isfinite(value).all(1).tolist()
    for i, place in enumerate(places):
        length = len(table.rows[i].answer)
        if i in new and finite[i]:  # what is not finite is computed anew the next time
            run.kept[place] = value[i, :length].clone()
        elif i not in new:
            value[i, :length] = run.kept[place]
    return value


def _recall_or_compute(run: Run, table: Table, fresh: list[int]) -> Tensor:
    """Of the fresh rows, 0 elsewhere. All processes recall, or all compute: the forwards of a wrapper are in step."""
    memo = _memo(run)
    about = [
        (table.stream.temperature, run.layout_of(table), run.budget),
        *((table.rows[i].prompt, table.rows[i].answer, table.rows[i].mask) for i in fresh),
    ]
    known = memo.recall(about) if memo else None
    if not run.processes.most(known is None):
        assert known is not None
        value = torch.zeros(table.batch.loss_mask.shape, dtype=known.dtype, device=run.device)
        value[fresh, : known.shape[1]] = known.to(run.device)
        return value
    value = heads_without_gradient(run, table, fresh, {"reference": frozenset({"logp"})})["reference"]["logp"]
    if memo and fresh and bool(torch.isfinite(value).all()):
        memo.keep(about, value[fresh])
    return value


def _memo(run: Run) -> Memo | None:
    """Where results are kept on disk; None where the reference changes, is held in parts, or the run has no place."""
    if run.stage.cache is None or run.settings.ref_sync_steps:
        return None
    if run.memo is None:
        own = run.roles.own_reference
        model = run.roles.models["policy" if own else "reference"]
        digest = weights_digest(model, own_weights(model) if own else None)
        how = (type(model).__name__, run.device.type, run.roles.bf16, torch.get_float32_matmul_precision())
        run.memo = Memo(run.stage.cache, (digest, torch.__version__, *how)) if digest else False
    return run.memo or None
