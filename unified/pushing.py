"""What the terms of a stage make of a micro-batch: statistics, pushes and the log, with what is not finite noted."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unified.batch import Batch
from unified.blame import named
from unified.coefficient import named_loss, push
from unified.guard import Finding, NotFiniteError, looks_finite, note_error
from unified.histogram import bin_name, counted
from unified.running import Run

if TYPE_CHECKING:
    from unified.step import Work


def step_statistics(run: Run, term: Any, batch: Batch) -> dict[str, Tensor]:
    """What a term must know of the whole step; what is no number is noted, and stands as 0.

    A bound may be infinite: nothing lies beyond it.
    """
    given = term.tensors("statistics", term.call("statistics", batch=batch))
    for name, value in given.items():
        if value.is_floating_point() and not looks_finite([value]) and torch.isnan(value).any():
            run.guard.note(
                Finding("statistics", f"{name} in the statistics of {named(term.algorithm)} is not a number")
            )
            given[name] = torch.where(torch.isnan(value), torch.zeros_like(value), value)
    return given


def pushed(
    run: Run, work: Work, micro: list[int], batch: Batch, w: list[dict[str, Tensor]]
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """The pushes of some rows, and each term's own; a coefficient that is not finite is noted, and nothing pushes."""
    terms = work.table.stream.terms
    try:
        return push(terms, batch, w, work.statistics)
    except NotFiniteError as error:
        note_error(run, work.table, [work.index[i] for i in micro], error)
    nothing = torch.zeros(batch.loss_mask.shape, dtype=run.dtype, device=run.device)
    return {t.slot if h == "logits" else h: nothing for t in terms for h in t.aggregations}, []


def log_term(
    run: Run,
    term: Any,
    batch: Batch,
    w: dict[str, Tensor],
    statistics: dict[str, Tensor],
    own: dict[str, Tensor],
    *,
    several: bool,
) -> None:
    """Add a term's named loss, its own metrics, and how its coefficients lie."""
    prefix = f"{term.algorithm.name}/" if several else ""
    loss = named_loss(term, batch, w, statistics)
    if not math.isnan(loss):
        run.add(f"{prefix}loss", loss, 0.0)
    if term.algorithm.metrics:
        with torch.no_grad():
            for name, (value, number) in term.measured(batch, statistics).items():
                run.add(prefix + name, value, number)
    for head, gc in own.items():
        on = gc[batch.loss_mask & (w[head] != 0)[:, None]]
        name = f"{prefix}gc" if head == "logp" else f"{prefix}gc_{head}"
        run.add(f"{name}/abs", float(on.abs().sum()), on.numel())
        run.add(f"{name}/positive", float((on > 0).sum()), on.numel())
        run.add(f"{name}/negative", float((on < 0).sum()), on.numel())
        for index, number in counted(on):
            run.add(bin_name(name, index), float(number), 0.0)
