"""What holds for every algorithm: the checks of its contract, on random numbers, without a model."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unified.batch import Batch, Here
from unified.coefficient import Term, coefficients, gradient_of_loss, has_loss, named_loss
from unified.contract_data import ALWAYS, KNOWN, columns_for, random_fields, shortened
from unified.distribution import Divergence
from unified.errors import PluginError, UserError
from unified.parts import Algorithm
from unified.settings import Settings
from unified.training import check_algorithm as declared_well

#: room for rounding, relative to the largest number compared
ROUNDING = 1e-9
SEEDS = (0, 1, 2)


@dataclass
class Seen:
    """What an algorithm made of a batch: GC and w x GC per head [batch, time], the named loss, what it looked at."""

    batch: Batch
    statistics: dict[str, Tensor]
    gc: dict[str, Tensor]
    push: dict[str, Tensor]
    loss: float


@dataclass(frozen=True)
class Subject:
    """An algorithm under test, with its settings."""

    algorithm: Algorithm
    settings: Settings

    def term(self) -> Term:
        """A fresh term; aggregations that need a length get one."""
        return Term(self.algorithm, self.settings, length=4)

    @property
    def answers(self) -> int:
        """Answers per prompt in the random batches, a probe beside them."""
        return max(3, self.algorithm.answers)

    def fields(self, seed: int = 0) -> dict[str, Tensor]:
        """Every field there is, at random; see `random_fields`."""
        return random_fields(seed, self.answers)

    def batch(self, fields: Mapping[str, Tensor]) -> Batch:
        """The fields as a batch, with what credit makes of them."""
        term, batch = self.term(), Batch(fields, columns_for(self.settings, len(fields["group"])))
        return credited(term, batch)

    def see(self, fields: Mapping[str, Tensor], columns: Mapping[str, Tensor] | None = None) -> Seen:
        """Credit, statistics, coefficient, w and loss of a step that is this batch."""
        own = columns_for(self.settings, len(fields["group"])) if columns is None else columns
        term = self.term()
        batch = credited(term, Batch(fields, own))
        known = statistics_of(term, batch)
        gc = coefficients(term, batch, known)
        w = term.normalisers(batch, term.rows(batch), Here())
        push = {h: x.double() * w[h][:, None] for h, x in gc.items()}
        return Seen(batch, known, gc, push, named_loss(term, batch, w, known))


def credited(term: Term, batch: Batch) -> Batch:
    """The batch with the advantage and returns that the algorithm's credit gives, [batch, time]."""
    if term.algorithm.credit is None:
        return batch
    given = term.call("credit", batch=batch) or {}
    return batch.plus(**{name: batch.expand(x, name).detach() for name, x in given.items()})


def statistics_of(term: Term, batch: Batch) -> dict[str, Tensor]:
    """What it asks of the whole step, where its scope says so."""
    if term.scope != "step" or term.algorithm.statistics is None:
        return {}
    return dict(term.call("statistics", batch=batch))


def far(a: Tensor, b: Tensor) -> float | None:
    """The largest difference of two tables if it is more than rounding, else None."""
    if not a.numel():
        return None
    scale = max(float(a.abs().max()), float(b.abs().max()), 1e-6)
    gap = float((a.double() - b.double()).abs().max())
    return gap if gap > ROUNDING * scale or gap != gap else None


def _compare(what: str, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Iterator[str]:
    for head in wanted:
        gap = far(found[head], wanted[head])
        if gap is not None:
            yield f"{what} changes the coefficient of {head} by up to {gap:.3g}"


# --- the checks: each yields what is wrong ---


def declaration(subject: Subject) -> Iterator[str]:
    """Pushes heads and reads fields that exist, and gives something to be pushed."""
    algorithm, settings = subject.algorithm, subject.settings
    yield from (p.text() for p in declared_well(algorithm, settings))
    if not (algorithm.coefficient or algorithm.loss or algorithm.distribution):
        yield "it gives neither a coefficient, nor a loss, nor a distribution"
    if not algorithm.aggregations(settings):
        yield "it pushes no head"
    for where, names in (
        ("reads", algorithm.names_read(settings)),
        ("credit_reads", algorithm.names_credited(settings)),
    ):
        for name in sorted(names - KNOWN):
            yield f"{where} names '{name}', which is no field; known: {', '.join(sorted(KNOWN))}"


def shape(subject: Subject) -> Iterator[str]:
    """Coefficient, loss, credit and metrics have the shapes that the contract names, for heads that are declared."""
    fields = subject.fields()
    try:
        batch = subject.batch(fields)
    except ValueError as error:
        yield f"credit: {error}"
        return
    term = subject.term()
    known = statistics_of(term, batch)
    if term.algorithm.coefficient:
        given = term.call("coefficient", batch=batch, statistics=known)
        for head, value in given.items() if isinstance(given, Mapping) else [("logp", given)]:
            if isinstance(value, Tensor) and value.shape not in (batch.loss_mask.shape, (batch.size,)):
                sides = f"{list(value.shape)} but loss_mask is {list(batch.loss_mask.shape)}"
                yield f"the coefficient of {head} is {sides}; it must be [batch] or [batch, time]"
                return
    if term.algorithm.loss:
        gradient_of_loss(term, batch, known)


def finite(subject: Subject) -> Iterator[str]:
    """No NaN or infinity on tokens that count."""
    for seed in SEEDS:
        seen = subject.see(subject.fields(seed))
        if has_loss(subject.algorithm) and not abs(seen.loss) < float("inf"):
            yield f"the loss of a random batch is {seen.loss}"


def mask(subject: Subject) -> Iterator[str]:
    """Nothing is pushed outside the loss mask and on probes, and something is elsewhere."""
    moved: dict[str, bool] = {}
    for seed in SEEDS:
        seen = subject.see(subject.fields(seed))
        off = ~seen.batch.loss_mask | seen.batch.probe[:, None]
        for head, gc in seen.gc.items():
            if (gc[off] != 0).any():
                yield f"{head} is pushed outside the loss mask, or on a probe"
            moved[head] = moved.get(head, False) or bool((gc != 0).any())
    if not any(moved.values()):
        yield "no token of three random batches is pushed"


def closed_form(subject: Subject) -> Iterator[str]:
    """The coefficient is the negative gradient of the stated loss."""
    if not (subject.algorithm.coefficient and subject.algorithm.loss):
        return
    for seed in SEEDS:
        seen, term = subject.see(subject.fields(seed)), subject.term()
        on = seen.batch.loss_mask & ~seen.batch.probe[:, None]
        for head, slope in gradient_of_loss(term, seen.batch, seen.statistics).items():
            if head not in seen.gc:
                yield f"the coefficient gives nothing for {head}"
                continue
            gap = far(seen.gc[head][on], slope[on])
            if gap is not None:
                yield f"the coefficient of {head} and autograd of the loss differ by up to {gap:.3g}"


def padding(subject: Subject) -> Iterator[str]:
    """Empty places behind the answers change nothing."""
    fields = subject.fields()
    rows = len(fields["group"])
    wide = {k: torch.cat([v, torch.zeros(rows, 3, dtype=v.dtype)], 1) if v.dim() == 2 else v for k, v in fields.items()}
    seen, wanted = subject.see(wide), subject.see(fields)
    time = fields["loss_mask"].shape[1]
    yield from _compare("padding", {h: x[:, :time] for h, x in seen.push.items()}, wanted.push)
    if has_loss(subject.algorithm) and abs(seen.loss - wanted.loss) > ROUNDING * max(1.0, abs(wanted.loss)):
        yield f"padding changes the loss from {wanted.loss:.6g} to {seen.loss:.6g}"


def order(subject: Subject) -> Iterator[str]:
    """The order of answers and prompts changes nothing."""
    fields = subject.fields()
    columns = columns_for(subject.settings, len(fields["group"]))
    shuffled = torch.randperm(len(fields["group"]), generator=torch.Generator().manual_seed(7))
    moved = {k: v[shuffled] for k, v in fields.items()}
    found = subject.see(moved, {k: v[shuffled] for k, v in columns.items()})
    yield from _compare("the order of rows", found.push, {h: x[shuffled] for h, x in subject.see(fields).push.items()})


def split(subject: Subject) -> Iterator[str]:
    """Cut into the smallest parts that its scope allows, a step gives the same coefficients."""
    seen, term = subject.see(subject.fields()), subject.term()
    group = seen.batch.group.tolist()
    units: dict[int, list[int]] = {}
    for i in range(seen.batch.size):
        units.setdefault(i if term.scope == "answer" else group[i], []).append(i)
    what = "answer" if term.scope == "answer" else "prompt"
    for rows in units.values():
        part = coefficients(term, seen.batch.rows(torch.tensor(rows)), seen.statistics)
        time = next(iter(part.values())).shape[1]
        for head, value in part.items():
            whole = seen.gc[head][rows]
            gap = far(value, whole[:, :time])
            if gap is not None:
                yield (f"scope is '{term.scope}', but alone in a micro-batch one {what} gets coefficients of {head} "
                       f"that differ by up to {gap:.3g}")  # fmt: skip
                return


def short(subject: Subject) -> Iterator[str]:
    """Empty answers do not count; answers of one token, and a batch of nothing but empty ones, are no trouble."""
    fields, empty = shortened(subject.fields())
    columns = columns_for(subject.settings, len(fields["group"]))
    seen = subject.see(fields, columns)
    kept = ~empty
    without = subject.see({k: v[kept] for k, v in fields.items()}, {k: v[kept] for k, v in columns.items()})
    yield from _compare("leaving out empty answers", {h: x[kept] for h, x in seen.push.items()}, without.push)
    nothing = {**fields, "loss_mask": torch.zeros_like(fields["loss_mask"])}
    for head, push in subject.see(nothing).push.items():
        if (push != 0).any():
            yield f"{head} is pushed in a batch of empty answers"


def equal_rewards(subject: Subject) -> Iterator[str]:
    """A credit that compares answers gives exactly 0 where all rewards are equal; 0.7 has no exact mean."""
    if subject.algorithm.credit is None or subject.algorithm.answers < 2:
        return
    fields = random_fields(0, max(8, subject.answers))
    same = {"ref_logp": "old_logp", "teacher_logp": "old_logp", "logp": "old_logp"}  # so that no KL is in the way
    fields |= {name: fields[other] for name, other in same.items()}
    for dtype in (torch.float32, torch.float64):
        typed = {k: v.to(dtype) if v.is_floating_point() else v for k, v in fields.items()}
        typed["reward"] = torch.full_like(typed["reward"], 0.7)
        largest = float(subject.batch(typed).advantage.abs().max())
        if largest != 0:
            yield f"equal rewards give advantages up to {largest:.3g}, not exactly 0 ({dtype})"


def reads(subject: Subject) -> Iterator[str]:
    """Only declared fields are looked at."""
    fields, term = subject.fields(), subject.term()
    columns = columns_for(subject.settings, len(fields["group"]))
    whole = subject.see(fields)
    batch = Batch({k: v for k, v in fields.items() if k in ALWAYS | term.credit_reads}, columns)
    made = credited(term, batch).fields
    own = {k: made[k] for k in ("advantage", "returns") if k in made}
    own |= {k: fields[k] for k in ("advantage", "returns") if k not in made and k in term.reads}
    given = {k: v for k, v in fields.items() if k in ALWAYS | term.reads} | own
    batch = Batch(given, columns)
    known = statistics_of(term, batch)
    if term.algorithm.coefficient:
        yield from _compare("leaving out what is not declared", coefficients(term, batch, known), whole.gc)
    pushed = batch.plus(**{h: fields[h] for h in term.aggregations})
    if has_loss(subject.algorithm):
        gradient_of_loss(term, pushed, known)
    if term.algorithm.metrics:
        term.call("metrics", batch=pushed, statistics=known)


def through_ratio(subject: Subject) -> Iterator[str]:
    """An algorithm that looks at log-probs through their ratio alone gives the same whatever both of them are."""
    if not subject.algorithm.looks_through_ratio(subject.settings):
        return
    fields, term = subject.fields(), subject.term()
    batch = credited(term, Batch(fields, columns_for(subject.settings, len(fields["group"]))))
    known = statistics_of(term, batch)
    shift = torch.randn(fields["logp"].shape, generator=torch.Generator().manual_seed(3)).to(fields["logp"].dtype)
    moved = batch.plus(logp=fields["logp"] + shift, old_logp=fields["old_logp"] + shift)
    found, wanted = (coefficients(term, each, known) for each in (moved, batch))
    yield from _compare("moving logp and old_logp by the same", found, wanted)


def state(subject: Subject) -> Iterator[str]:
    """State survives being saved and loaded, before and after an update."""
    fields, term = subject.fields(), subject.term()
    batch = credited(term, Batch(fields, columns_for(subject.settings, len(fields["group"]))))
    known = statistics_of(term, batch)
    for when in ("initial", "updated"):
        if when == "updated":
            if term.algorithm.update is None:
                return
            found = term.call("metrics", batch=batch, statistics=known) if term.algorithm.metrics else {}
            totals = {name: float(x) / max(float(n), 1.0) for name, (x, n) in found.items()}
            term.state = dict(term.call("update", totals=totals))
        before = coefficients(term, batch, known)
        buffer = io.BytesIO()
        torch.save(term.state, buffer)
        buffer.seek(0)
        try:
            loaded = torch.load(buffer, weights_only=True)
        except pickle.UnpicklingError as error:
            yield f"the {when} state holds more than numbers, text and tensors: {str(error).splitlines()[0]}"
            return
        if set(loaded) != set(term.state):
            yield f"the {when} state loses {sorted(set(term.state) - set(loaded))} when it is saved"
        term.state = loaded
        yield from _compare(f"saving and loading the {when} state", coefficients(term, batch, known), before)


def metrics(subject: Subject) -> Iterator[str]:
    """Metrics are sums and counts: of the same answers twice they give the same means."""
    term = subject.term()
    if term.algorithm.metrics is None:
        return
    fields = subject.fields()
    batch = credited(term, Batch(fields, columns_for(subject.settings, len(fields["group"]))))
    found = term.call("metrics", batch=batch, statistics=statistics_of(term, batch))
    for name, pair in found.items():
        if not (isinstance(pair, tuple) and len(pair) == 2):
            yield f"metric '{name}' is {type(pair).__name__}; it must be (sum, count)"
        elif not all(abs(float(x)) < float("inf") for x in pair):
            yield f"metric '{name}' is ({float(pair[0])}, {float(pair[1])})"
        elif float(pair[1]) < 0:
            yield f"metric '{name}' has the count {float(pair[1])}"


def pure(subject: Subject) -> Iterator[str]:
    """Its functions do not change what they are given, and give the same twice."""
    fields = subject.fields()
    kept = {k: v.clone() for k, v in fields.items()}
    first = subject.see(fields)
    for name, value in fields.items():
        if not torch.equal(value, kept[name]):
            yield f"{name} of the batch is changed in place"
            return
    yield from _compare("asking twice", subject.see(fields).gc, first.gc)


def distribution(subject: Subject) -> Iterator[str]:
    """The push of the logits is the negative gradient of the loss, and a token does not depend on its chunk."""
    algorithm = subject.algorithm
    if algorithm.distribution is None or "logits" not in algorithm.aggregations(subject.settings):
        return
    function = Divergence(algorithm, subject.settings)
    torch.manual_seed(0)
    logits, other = torch.randn(2, 6, 3 + max(8, function.top_k), dtype=torch.float64)
    teacher: Any = (2 * other).log_softmax(-1)
    if function.top_k:
        best = teacher.topk(function.top_k, -1)
        teacher = (best.indices, best.values)

    def part(rows: slice) -> Any:
        return (teacher[0][rows], teacher[1][rows]) if isinstance(teacher, tuple) else teacher[rows]

    loss, closed = function(logits, teacher)
    if not torch.isfinite(loss).all():
        yield "the loss of a random chunk is not finite"
    if closed is not None:
        gap = far(closed, function.slope(logits, teacher))
        if gap is not None:
            yield f"the coefficient of the logits and autograd of the loss differ by up to {gap:.3g}"
    alone = torch.cat([function(logits[i : i + 1], part(slice(i, i + 1)))[0] for i in range(len(logits))])
    gap = far(alone, loss)
    if gap is not None:
        yield f"the loss of a token changes by up to {gap:.3g} with the other tokens of its chunk"


#: what must hold for anything else to be looked at, and the rest
FIRST: tuple[Callable[[Subject], Iterator[str]], ...] = (declaration, shape, finite)
REST: tuple[Callable[[Subject], Iterator[str]], ...] = (
    mask, closed_form, padding, order, split, short, equal_rewards, reads, through_ratio, state, metrics, pure,
    distribution,
)  # fmt: skip


def failures(check: Callable[[Subject], Iterator[str]], subject: Subject) -> list[str]:
    """What one check finds; an exception of the plugin is a finding as well."""
    try:
        return list(dict.fromkeys(check(subject)))
    except (UserError, PluginError) as error:
        return [str(error)]
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]
