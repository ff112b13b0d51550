"""The teacher of a distillation stage: a frozen policy, loaded beside the one that learns or asked once beforehand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unified.distribution import Divergence, needs_teacher, top_k
from unified.errors import UserError
from unified.layout import Layout
from unified.models import Artifact
from unified.stage import StageContext, TrainSettings

if TYPE_CHECKING:
    from unified.coefficient import Term
    from unified.running import Run, Table


def load_teacher(stage: StageContext, settings: TrainSettings, terms: Iterable[Term], student: Artifact) -> Any:
    """The teacher of the stage, or None where no term asks one. UserError for one that is missing or does not fit."""
    asking = [t.algorithm.name for t in terms if needs_teacher(t.algorithm, t.settings)]
    if not asking:
        return None
    if settings.teacher is None:
        hint = "write `teacher:` with stage:NAME, a path or a hub id"
        raise UserError(f"algorithm '{asking[0]}' needs a teacher", hint)
    artifact = stage.artifact(settings.teacher)
    if artifact.tokenizer().get_vocab() != student.tokenizer().get_vocab():
        raise UserError(
            f"stage '{stage.name}': teacher {settings.teacher} has another tokenizer than the model that learns",
            "distributions over tokens can only be compared over one vocabulary; choose a teacher of the same family",
        )
    return artifact.load("policy")


def check_vocabulary(stage: str, models: dict[str, Any]) -> None:
    """UserError where policy and teacher give logits for different numbers of tokens."""
    sizes = [models[r].get_output_embeddings().weight.shape[0] for r in ("policy", "teacher") if r in models]
    if len(sizes) == 2 and sizes[0] != sizes[1]:
        raise UserError(
            f"stage '{stage}': the policy gives logits for {sizes[0]} tokens, the teacher for {sizes[1]}",
            "distributions can only be compared over one vocabulary; resize the embeddings of one of them",
        )


def divergences(terms: Iterable[Term]) -> dict[str, Divergence]:
    """What each `logits` head of the stage computes, by its name."""
    pushing = [t for t in terms if "logits" in t.aggregations]
    return {t.slot: Divergence(t.algorithm, t.settings) for t in pushing if t.algorithm.distribution}


def most_stored(terms: Iterable[Term]) -> int:
    """The largest number of the teacher's likeliest tokens that some term wants stored."""
    return max((top_k(t.algorithm, t.settings) for t in terms), default=0)


@torch.no_grad()
def score_teacher(run: Run, table: Table) -> None:
    """Store the teacher's likeliest tokens of rows that are learned from; of fixed rows once, and keep them."""
    from unified.running import heads_without_gradient

    if not most_stored(table.stream.terms):
        return
    shape = (*table.batch.loss_mask.shape, run.roles.top_k)
    ids = torch.zeros(shape, dtype=torch.long, device=run.device)
    logp = torch.zeros(shape, dtype=run.dtype, device=run.device)
    places = [None if table.stream.online else place for place in table.places]
    fresh = [i for i, place in enumerate(places) if place is None or place not in run.kept_top]
    if run.processes.most(len(fresh)):
        found = heads_without_gradient(run, table, fresh, {"teacher": frozenset({"top_ids", "top_logp"})})["teacher"]
        ids, logp = found["top_ids"], found["top_logp"]
    for i, place in enumerate(places):
        length = len(table.rows[i].answer)
        if place is None:
            continue
        if place in run.kept_top:
            ids[i, :length], logp[i, :length] = run.kept_top[place]
        else:
            run.kept_top[place] = (ids[i, :length].clone(), logp[i, :length].clone())
    table.top = (ids, logp)


def visits(run: Run, table: Table | None, index: list[int], layout: Layout) -> dict[str, Divergence]:
    """The stage's divergences for one forward: with what is stored of its tokens, or numbers of no meaning."""
    out = {}
    for name, function in run.divergences.items():
        if not function.top_k:
            out[name] = function
        elif table is not None and table.top is not None and index:
            ids, logp = (x[torch.tensor(index, device=run.device)][layout.row, layout.time] for x in table.top)
            out[name] = function.with_stored(ids, logp)
        else:
            out[name] = function.with_stored(*_nothing_stored(len(layout.row), function.top_k, run))
    return out


def _nothing_stored(tokens: int, k: int, run: Run) -> tuple[Tensor, Tensor]:
    """Some k tokens, for forwards whose numbers are not used."""
    ids = torch.arange(k, device=run.device).expand(tokens, k)
    return ids, torch.full((tokens, k), -10.0, dtype=run.dtype, device=run.device)
