"""The step, verb by verb: collect, judge, select, score, credit, then count, weigh and push, update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from unified.answers import answered
from unified.batch import Batch
from unified.blame import is_out_of_memory, named, named_step
from unified.coefficient import push
from unified.data import PromptGroup
from unified.dealt import first_of, share_of
from unified.errors import PluginError, UserError
from unified.guard import (
    NotFiniteError,
    check_heads,
    check_table,
    engine_of,
    settle,
)
from unified.layout import cut
from unified.parts import SCORED
from unified.pushing import log_term, pushed, step_statistics
from unified.reference import fixed_reference
from unified.running import Run, Table, forward, heads_without_gradient, out_of_memory, tabulate
from unified.stream import NoSampler, Stream, seed_all
from unified.teacher import score_teacher
from unified.update import update


def collect(run: Run, stream: Stream, n: int) -> list[PromptGroup]:
    """This process's share of the next n prompts, with answers."""
    if stream.online:
        return answered(run, stream, n)
    drawn = [replace(g, draw=number) for number, g in stream.draw(n)]
    # the source sees the prompts of all processes, so that what it makes does not depend on them
    return share_of(run.processes, stream.collect(drawn, NoSampler(run.tokenizer), run.stage.seed))


def judge(run: Run, stream: Stream, groups: list[PromptGroup]) -> None:
    """Give every answer its reward; one that draws at random is seeded by the place of the batch in the run."""
    seed_all("judge", run.stage.seed, stream.label, run.iteration, stream.position, run.processes.rank)
    for name, (total, number) in stream.judge(groups, run.guard.note).items():
        run.add(f"reward/{name}", total, number)
    settle(run)
    run.stage.notify("groups_judged", stage=run.stage.name, step=run.step, groups=groups)


def select(run: Run, stream: Stream, groups: list[PromptGroup]) -> list[PromptGroup]:
    """Groups that go on; what is dropped is counted."""
    kept, counts = stream.select(groups)
    for name, number in counts.items():
        if number:
            run.add(f"dropped/{name}", number, 0.0)
    here = torch.tensor([counts["missing"], sum(len(g.answers) for g in groups)], device=run.device)
    missing, answers = run.processes.sum(here).tolist()  # every process asks
    if stream.reward and missing and (missing > run.settings.max_missing * answers or missing == answers):
        why = next((f"the first: {g.reasons[0]}" for g in groups if g.reasons), "no reason was given")
        raise UserError(
            f"stage '{run.stage.name}', step {run.step + 1}: {named(stream.reward.part)} could not judge "
            f"{missing} of {answers} answers",
            why,
            "choose a `reward` that judges these answers (`unified list reward` shows them), or raise `max_missing` "
            f"(now {run.settings.max_missing:g})",
        )
    if stream.reward and missing:
        run.add("missing_share", counts["missing"], sum(len(g.answers) for g in groups))
    return kept


def score(run: Run, table: Table, *, several_steps: bool) -> None:
    """Add what the terms read and does not change while they learn: old_logp, ref_logp, old_value, the teacher's.

    The old policy is not asked where the whole collected batch is one optimiser step: then it is the policy itself.
    Log-probs of the reference on fixed rows are computed once and kept.
    """
    needed = {name for t in table.stream.terms for name in (t.reads | t.credit_reads) if name in SCORED}
    credited = {name for t in table.stream.terms for name in t.credit_reads}
    if not several_steps and "old_logp" not in credited:
        needed.discard("old_logp")
    where = {"old_logp": "policy", "ref_logp": "reference", "teacher_logp": "teacher", "old_value": run.value_role}
    where["old_collision_logp"] = "policy"
    fixed = "ref_logp" in needed and not table.stream.online
    names = needed - {"ref_logp"} if fixed else needed
    asks: dict[str, frozenset[str]] = {}
    for name in names:
        asks[where[name]] = asks.get(where[name], frozenset()) | {SCORED[name]}
    if asks:
        heads = heads_without_gradient(run, table, range(len(table.rows)), asks)
        table.batch = table.batch.plus(**{n: heads[where[n]][SCORED[n]] for n in names})
    if fixed:
        table.batch = table.batch.plus(ref_logp=fixed_reference(run, table))
    score_teacher(run, table)
    given = {"sampling_logp": engine_of(run)} if table.batch.has("sampling_logp") else {}
    check_table(run, table, given | {name: f"the {where[name]}" for name in needed})


@torch.no_grad()
def credit(run: Run, table: Table) -> None:
    """Advantages and returns, once per collected batch."""
    for term in table.stream.terms:
        if term.algorithm.credit is None:
            continue
        given = term.tensors("credit", term.call("credit", batch=table.batch) or {}, table.batch)
        try:
            made = {term.own(name): table.batch.expand(value, name).detach() for name, value in given.items()}
        except ValueError as error:
            raise PluginError(f"credit of {named(term.algorithm)}: {error}") from error
        table.batch = table.batch.plus(**made)
        check_table(run, table, dict.fromkeys(made, named(term.algorithm)))


def collected(run: Run, stream: Stream, n: int) -> list[PromptGroup]:
    """The next n prompts of all processes, answered and judged; this process's groups that go on."""
    groups = collect(run, stream, n)
    judge(run, stream, groups)
    return select(run, stream, groups)


def prepare(run: Run, stream: Stream, n: int, *, several_steps: bool) -> Table:
    """collect, judge, select, score and credit: everything before the first gradient.

    Sampled groups that were dropped are replaced by fresh ones, `refill` times at most.
    """
    with named_step(run.stage.name, run.step + 1):
        return _prepared(run, stream, n, several_steps=several_steps)


def _prepared(run: Run, stream: Stream, n: int, *, several_steps: bool) -> Table:
    groups = collected(run, stream, n)
    for _ in range(run.settings.refill if stream.online else 0):
        lacking = n - int(run.processes.sum(torch.tensor(len(groups), device=run.device)))
        if lacking <= 0:
            break
        groups += collected(run, stream, lacking)
        run.add("refilled", float(run.processes.rank == 0), 0.0)  # of all processes together, once
    wanted = first_of(run.processes, groups, n)
    if len(groups) > len(wanted):
        run.add("dropped/surplus", len(groups) - len(wanted), 0.0)
    table = tabulate(run, stream, wanted)
    score(run, table, several_steps=several_steps)
    credit(run, table)
    settle(run)
    return table


@dataclass
class Work:
    """One stream's part of an optimiser step on this process: its rows, their w per term and head, what is known."""

    table: Table
    batch: Batch
    index: list[int]
    w: list[dict[str, Tensor]]
    statistics: list[dict[str, Tensor]]
    passes: list[list[list[int]]]
    known: dict[int, dict[str, Tensor]] = field(default_factory=dict)  # micro-batch -> pushes computed before
    pushes: Tensor | None = None  # [rows, time] of logp, where they depend on no current head


def count(run: Run, table: Table, index: list[int]) -> Work:
    """w of every row of this optimiser step, from counts over all micro-batches and processes, and the cut."""
    at = torch.tensor(index, dtype=torch.long, device=run.device)
    batch = table.batch.rows(at, time=table.batch.loss_mask.shape[1]) if index else table.batch.rows(at)
    w = [t.normalisers(batch, t.rows(batch), run.processes) for t in table.stream.terms]
    whole = any(t.scope != "answer" for t in table.stream.terms)
    groups = batch.group.tolist()
    units: dict[int, list[int]] = {}
    for i in range(len(index)):
        units.setdefault(groups[i] if whole else i, []).append(i)
    rows, budget = [table.rows[i] for i in index], run.budget
    passes = cut(rows, list(units.values()), budget, run.layout_of(table))
    pushes = _in_advance(run, table.stream.terms, batch, w)
    return Work(table, batch, index, w, [{} for _ in table.stream.terms], passes, pushes=pushes)


def _in_advance(run: Run, terms: Sequence[Any], batch: Batch, w: list[dict[str, Tensor]]) -> Tensor | None:
    """Σ weight · w · GC of logp, [rows, time], where no term looks at a head as it is now, or at other answers.

    A ratio of the policy to itself is no such look: it is 1, whatever stands in both places.
    """
    once = not batch.has("old_logp")
    known = all(t.algorithm.coefficient and t.algorithm.is_known_before(t.settings, once=once) for t in terms)
    alone = all(t.scope == "answer" and set(t.aggregations) == {"logp"} for t in terms)
    if not known or not alone or run.trained != {"policy": frozenset({"logp"})}:
        return None
    if any("old_logp" in t.reads for t in terms):
        same = torch.zeros(batch.loss_mask.shape, dtype=run.dtype, device=run.device)
        batch = batch.plus(logp=same, old_logp=same)
    try:
        return push(list(terms), batch, w)[0].get("logp")
    except NotFiniteError:
        return None  # it is found again, and named, where the heads are known


def look_ahead(run: Run, work: Work) -> bool:
    """What must be known before the first push: statistics of the step, coefficients of groups over the budget.

    Gives whether any process needed it; then what was found not to be finite is to be settled.
    """
    terms = work.table.stream.terms
    step_scope = any(t.scope == "step" for t in terms)
    wide = [p for p in work.passes if len(p) > 1]
    wanted = [i for p in (work.passes if step_scope else wide) for m in p for i in m]
    if not run.processes.most(len(wanted)):
        return False
    read = frozenset(h for t in terms for h in t.heads)
    heads = heads_without_gradient(run, work.table, [work.index[i] for i in wanted], run.asks(read))
    at = torch.tensor(work.index, dtype=torch.long, device=run.device)
    now = {h: v[at] for of_role in heads.values() for h, v in of_role.items()}
    if not check_heads(run, work.table, work.index, now):
        now = {h: torch.nan_to_num(v) for h, v in now.items()}  # the step is left out, whatever follows from them
    batch = with_old(work.batch.plus(**now), terms)
    if step_scope:
        work.statistics = [step_statistics(run, t, batch) if t.algorithm.statistics else {} for t in terms]
    for part in wide:
        rows = torch.tensor([i for m in part for i in m], device=run.device)
        group = batch.rows(rows, time=batch.loss_mask.shape[1])
        w = [{h: x[rows] for h, x in each.items()} for each in work.w]
        pushes, own = pushed(run, work, rows.tolist(), group, w)
        for i, term in enumerate(terms if own else ()):
            log_term(run, term, group, w[i], work.statistics[i], own[i], several=run.several_terms)
        start = 0
        for micro in part:
            work.known[id(micro)] = {h: v[start : start + len(micro)] for h, v in pushes.items()}
            start += len(micro)
    return True


def with_old(batch: Batch, terms: Sequence[Any]) -> Batch:
    """In the only step on a batch the old policy is the policy: the same numbers, without a gradient."""
    read = {name for t in terms for name in t.reads}
    same = {"old_logp": "logp", "old_value": "value"}
    known = {o: n for o, n in same.items() if o in read and not batch.has(o) and batch.has(n)}
    return batch.plus(**{o: getattr(batch, n).detach() for o, n in known.items()})


def optimise(run: Run, works: list[Work]) -> None:
    """One optimiser step; skipped and counted where nothing counts, or where something is not finite."""
    with named_step(run.stage.name, run.step + 1):
        if not (_anything(run, works) and accumulate(run, works) and update(run)):
            run.wrapper.forget()
            run.add("steps_skipped", float(run.processes.rank == 0), 0.0)  # of all processes together, one step
    run.step += 1


def accumulate(run: Run, works: list[Work]) -> bool:
    """The gradient of one optimiser step: heads, weigh and push for every micro-batch of this process.

    False where a head or a coefficient of some process is not finite, and the step is to be left out.
    """
    looked = [look_ahead(run, work) for work in works]
    if any(looked) and settle(run):
        return False
    micros: list[tuple[Work, list[int]]] = []
    for work in works:  # stream by stream: in every forward all processes call the same models
        own = [micro for part in work.passes for micro in part]
        micros += [(work, micro) for micro in own + [[]] * (run.processes.most(len(own)) - len(own))]
    for k, (work, micro) in enumerate(micros):
        last = k == len(micros) - 1
        with run.wrapper.hold(last=last):
            if not learn(run, work, micro, everything=last):
                return False
    return True


def _anything(run: Run, works: list[Work]) -> bool:
    """Whether any answer of any process counts in this step."""
    here = sum(float(x.sum()) != 0 for work in works for each in work.w for x in each.values())
    return run.processes.most(here) > 0


def learn(run: Run, work: Work, micro: list[int], *, everything: bool) -> bool:
    """Heads of one micro-batch, their coefficients, and the backward pass of Σ w · GC · head.

    A process that has no micro-batch left computes one of no meaning, to keep in step with the others. False, without
    the backward pass, where anything of the step is not finite in some process: settled in the last one.
    everything: ask for all trained heads, pushed or not, so that wrappers see every parameter in the last backward.
    """
    asks = run.asks(frozenset(h for t in work.table.stream.terms for h in t.heads))
    if everything:
        asks = {r: asks.get(r, frozenset()) | run.trained.get(r, frozenset()) for r in {*asks, *run.trained}}
    index = [work.index[i] for i in micro]
    ahead = work.pushes[micro] if work.pushes is not None and micro else None
    by_role = forward(run, work.table, index, asks, ahead)
    heads = {h: v for named in by_role.values() for h, v in named.items()}
    objective = heads.pop("objective", None)
    surrogate = torch.stack([v.sum() * 0.0 for v in heads.values()]).sum() if objective is None else objective
    if micro:
        pushes = weigh(run, work, micro, heads)
        for head, weight in pushes.items() if objective is None else ():
            surrogate = surrogate + (weight * heads[head]).sum()
    run.add("tokens", sum(work.table.costs[i] for i in index), 0.0)
    if everything and settle(run):
        return False
    try:
        # wrappers average over processes; w is per step of all of them
        run.wrapper.backward(-surrogate * run.processes.count, last=everything)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise out_of_memory(run) from error
        raise
    return True


def weigh(run: Run, work: Work, micro: list[int], heads: dict[str, Tensor]) -> dict[str, Tensor]:
    """Σ over terms of weight · w · GC per head, [rows, time], from the heads as they are now; and the log."""
    terms = work.table.stream.terms
    at = torch.tensor(micro, device=run.device)
    time = next(iter(heads.values())).shape[1]
    now = {h: v.detach() for h, v in heads.items()}
    batch = with_old(work.batch.rows(at, time=time).plus(**now), terms)
    w = [{h: x[at] for h, x in each.items()} for each in work.w]
    known = work.known.get(id(micro))
    if known is not None:
        pushes = {h: v[:, :time] for h, v in known.items()}
        own: list[dict[str, Tensor]] = []
    else:
        finite = check_heads(run, work.table, [work.index[i] for i in micro], now)
        pushes, own = pushed(run, work, micro, batch, w)
        for i, term in enumerate(terms if own and finite else ()):
            log_term(run, term, batch, w[i], work.statistics[i], own[i], several=run.several_terms)
    return {h: v.to(heads[h].dtype) for h, v in pushes.items()}
