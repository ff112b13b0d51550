"""What a training stage would do to some answers: its own verbs from table to push, and no update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unified.batch import Batch
from unified.coefficient import Term, coefficients, named_loss
from unified.data import PromptGroup
from unified.errors import PluginError
from unified.lens.picture import Column, Numbers, Picture, Seen, Shown
from unified.pushing import pushed, step_statistics
from unified.running import Run, Table, heads_without_gradient, tabulate
from unified.step import Work, count, credit, score, with_old
from unified.stream import Stream

#: what the old log-probs are moved by, in nats, to find tokens whose ratio has no part in their coefficient
NUDGE = 1e-6


@dataclass
class Looked:
    """One answer of a stream: which prompt it answers (stream, key, text), its tokens, and what each term sees of it.

    place: the number of the prompt among those that were looked at, and of the answer among its answers.
    """

    label: str
    key: int
    prompt: str
    place: tuple[int, int]
    shown: Shown
    seen: list[Seen]


@dataclass
class Look:
    """What the terms of a stream do to some answers: a record for each of this process, the losses of the terms."""

    answers: list[Looked]
    losses: list[float]


@torch.no_grad()
def look(run: Run, stream: Stream, groups: list[PromptGroup], before: Callable[[], None] | None = None) -> Look:
    """What one optimiser step on these groups (this process's share of them, judged) does to each token.

    before: called between score and credit; where it is given, old log-probs are computed beforehand, for it changes
    the policy. Every process must call this; weights, random state and the sums of the run are as before.
    """
    with undisturbed(run):
        table = tabulate(run, stream, groups)
        score(run, table, several_steps=before is not None)
        if before is not None:
            before()
        credit(run, table)
        work = count(run, table, list(range(len(table.rows))))
        return _looked(run, table, work)


def _looked(run: Run, table: Table, work: Work) -> Look:
    terms, index = table.stream.terms, work.index
    asks = run.asks(frozenset(h for t in terms for h in t.heads))
    heads = heads_without_gradient(run, table, index, asks)
    batch = with_old(work.batch.plus(**{h: v for of_role in heads.values() for h, v in of_role.items()}), terms)
    if any(t.scope == "step" for t in terms):
        work.statistics = [step_statistics(run, t, batch) if t.algorithm.statistics else {} for t in terms]
    if not index:
        return Look([], [0.0] * len(terms))
    _, own = pushed(run, work, index, batch, work.w)
    if not own:
        raise PluginError("; ".join(f.text for f in run.guard.pending) or "a coefficient is not finite")
    lengths = [len(a.ids) for g in table.groups for a in g.answers]
    each = [_seen(t, batch, own[i], work.w[i], work.statistics[i], lengths) for i, t in enumerate(terms)]
    losses = [named_loss(t, batch, work.w[i], work.statistics[i]) for i, t in enumerate(terms)]
    looked, row = [], 0
    for g, group in enumerate(table.groups):
        for a, answer in enumerate(group.answers):
            ids, mask = answer.ids, batch.loss_mask[row, : len(answer.ids)].tolist()
            reward = answer.total_reward
            shown = Shown(g, list(ids), token_texts(run.tokenizer, ids), mask, reward, answer.finish, answer.probe)
            label, place = table.stream.label, (g, a)
            looked.append(Looked(label, group.key, group.text, place, shown, [seen[row] for seen in each]))
            row += 1
    return Look(looked, losses)


def _seen(
    term: Term,
    batch: Batch,
    own: dict[str, Tensor],
    w: dict[str, Tensor],
    statistics: dict[str, Tensor],
    lengths: list[int],
) -> list[Seen]:
    """Per answer of these lengths, what a term reads and gives. Head and field names are the term's own."""
    view = term.view(batch)
    names = (term.reads | term.credit_reads | {"logp", "advantage", "returns"} | set(term.aggregations)) - {"reward"}
    tables = {n: v for n, v in view.fields.items() if n in names and v.dim() == 2 and v.is_floating_point()}
    if view.reward.dim() == 2:
        tables["reward"] = view.reward
    if "logp" in tables and "old_logp" in tables:
        tables["ratio"] = (tables["logp"] - tables["old_logp"]).exp()
    if "logp" in tables and "ref_logp" in tables:
        tables["kl"] = tables["logp"] - tables["ref_logp"]
    cut = clipped(term, batch, own, statistics)
    out = []
    for row, n in enumerate(lengths):
        heads = {h: (float(w[h][row]), _numbers(gc[row, :n])) for h, gc in own.items()}
        fields = {name: _numbers(v[row, :n]) for name, v in sorted(tables.items())}
        out.append(Seen(heads, fields, {h: c[row, :n].tolist() for h, c in cut.items()}))
    return out


def clipped(term: Term, batch: Batch, own: dict[str, Tensor], statistics: dict[str, Tensor]) -> dict[str, Tensor]:
    """[batch, time] bool per head: tokens with an advantage whose ratio has no part in their coefficient.

    Only of a term that reads `old_logp`: of these tokens the coefficient of logp stays exactly as it is when the old
    log-probs are a little higher, and when they are a little lower. Of `value`, where it reads `old_value`: tokens
    whose coefficient is 0 although the critic is wrong.
    """
    view, found = term.view(batch), {}
    if "old_logp" in term.reads and "logp" in own:
        fine = Batch(
            {k: v.double() if v.is_floating_point() else v for k, v in view.fields.items()},
            {k: v.double() for k, v in view.columns.items()}, view.reach,
        )  # fmt: skip
        plain = Term(term.algorithm, term.settings, term.weight, term.on, term.aggregation, term.length, term.state)
        now = coefficients(plain, fine, statistics)["logp"]
        same = fine.loss_mask & ~fine.probe[:, None]
        for shift in (NUDGE, -NUDGE):
            moved = coefficients(plain, fine.plus(old_logp=fine.old_logp + shift), statistics)["logp"]
            same = same & (moved == now)
        if fine.has("advantage"):
            same = same & (fine.expand(fine.advantage) != 0)
        found["logp"] = same
    if {"old_value", "value"} <= term.reads and "value" in own and view.has("returns"):
        wrong = view.loss_mask & (view.expand(view.returns) != view.value)
        found["value"] = wrong & (own["value"] == 0)
    return found


def pictured(
    run: Run, looks: Sequence[tuple[Stream, Look]], *, step: int | None = None, notes: Sequence[str] = ()
) -> Picture:
    """The picture of what all processes saw of some streams, a column for each of their terms."""
    terms = [t for stream, _ in looks for t in stream.terms]
    prompts: dict[tuple[str, int, str], int] = {}
    answers: list[Looked] = []
    for _, found in looks:
        every = run.processes.lists([(run.processes.rank, one) for one in found.answers])
        # the processes were dealt the prompts in turn
        answers += [one for _, one in sorted(every, key=lambda one: (one[1].place[0], one[0], one[1].place[1]))]
    for one in answers:
        one.shown.row = prompts.setdefault((one.label, one.key, one.prompt), len(prompts))
    columns = []
    for stream, found in looks:
        for k, term in enumerate(stream.terms):
            loss = run.processes.totals({"loss": (found.losses[k], 0.0)})["loss"][0]
            seen = [one.seen[k] if one.label == stream.label else None for one in answers]
            stated = loss if math.isfinite(loss) else None
            columns.append(Column(name_of(term, terms), changed(term), term.aggregations, seen, stated))
    shown = [one.shown for one in answers]
    return Picture([text for _, _, text in prompts], shown, columns, step=step, notes=list(notes))


def name_of(term: Term, terms: list[Term]) -> str:
    """The algorithm, with what tells it from other terms of the same algorithm."""
    name = term.algorithm.name
    if sum(t.algorithm.name == name for t in terms) > 1:
        name += f" (term {term.number})"
    return name + (f" on {term.on}" if term.on != "all" else "")


def changed(term: Term) -> dict[str, Any]:
    """Settings that are not the default, and the weight of a term that is not 1."""
    plain = {k: f.get_default(call_default_factory=True) for k, f in type(term.settings).model_fields.items()}
    written = term.settings.model_dump(mode="json")
    out = {k: written[k] for k, default in plain.items() if getattr(term.settings, k) != default}
    return out | ({"weight": term.weight} if term.weight != 1.0 else {})


def token_texts(tokenizer: Any, ids: list[int]) -> list[str]:
    """Each token as it reads, with the space that begins a word; a piece of a character by the vocabulary's name."""
    out = []
    for number, name in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True):
        text, name = str(tokenizer.decode([number])), str(name)
        if not text or "\ufffd" in text:
            text = name
        elif name[:1] in ("\u2581", "\u0120") and not text[:1].isspace():
            text = f" {text}"
        out.append(text)
    return out


@contextmanager
def undisturbed(run: Run) -> Iterator[None]:
    """Weights in evaluation mode; sums, what is kept of fixed rows, findings and random states are put back behind."""
    import random

    import numpy

    states = (random.getstate(), numpy.random.get_state(), torch.get_rng_state())
    of_devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    modes = {name: model.training for name, model in run.roles.models.items()}
    sums, pending = run.sums, list(run.guard.pending)
    kept, kept_top = dict(run.kept), dict(run.kept_top)
    run.sums = {}
    for model in run.roles.models.values():
        model.eval()
    try:
        yield
    finally:
        for name, mode in modes.items():
            run.roles.models[name].train(mode)
        run.sums, run.guard.pending, run.kept, run.kept_top = sums, pending, kept, kept_top
        random.setstate(states[0])
        numpy.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if of_devices:
            torch.cuda.set_rng_state_all(of_devices)


def _numbers(values: Tensor) -> Numbers:
    """As Python floats that give back the same number in its own type; None for what is not finite."""
    digits = 17 if values.dtype == torch.float64 else 9
    return [float(f"{v:.{digits}g}") if math.isfinite(v) else None for v in values.tolist()]
