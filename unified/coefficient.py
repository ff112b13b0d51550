"""From a declared algorithm to numbers: GC per head, the named loss, and the sum over the terms of a stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unified.aggregation import CONSTANT_IN_GROUP, Counts, normaliser
from unified.batch import Batch, Nowhere, Reach
from unified.blame import blaming, named
from unified.errors import PluginError, UserError
from unified.guard import NotFiniteError, check_state, first_not_finite, looks_finite
from unified.parts import HEADS, STATISTICS, Algorithm
from unified.registry import call_named
from unified.settings import Settings


@dataclass
class Term:
    """One summand of a stage: an algorithm with its settings, weight, rows and normaliser.

    on: "all", "best" or "worst" (the highest or lowest reward of each prompt), or a column (rows where it is not 0).
    aggregation: replaces the algorithm's own for logp. length: L of aggregation "constant", in tokens; without, that of
    the algorithm's setting `constant_length`, where it has one.
    state: what `update` changes; saved with every checkpoint.
    number: its place among the terms of a stage; from the second on, a field that several terms may have of their own
        (`advantage`, `returns`, `logits`) stands in the batch as `name#number`.
    """

    algorithm: Algorithm
    settings: Settings
    weight: float = 1.0
    on: str = "all"
    aggregation: str | None = None
    length: int | None = None
    state: dict[str, Any] = field(default_factory=dict)
    number: int = 0

    def __post_init__(self) -> None:
        self.length = self.length or getattr(self.settings, "constant_length", None)
        if self.algorithm.initial_state and not self.state:
            self.state = dict(self.call("initial_state"))
        allowed = CONSTANT_IN_GROUP - ({"group-token"} if self.scope == "step" else set())
        for head, how in self.aggregations.items():
            if how == "constant" and not self.length:
                raise UserError(f"aggregation 'constant' of {head} needs `constant_length`", "set L, in tokens")
            if self.scope != "answer" and how not in allowed:
                raise UserError(
                    f"algorithm '{self.algorithm.name}' couples answers: '{how}' of {head} would change its gradient",
                    f"choose one of: {', '.join(sorted(allowed))}; lengths belong in the margin",
                )

    @property
    def scope(self) -> str:
        """How far the coefficient of an answer looks."""
        return self.algorithm.scope_of(self.settings)

    @property
    def aggregations(self) -> dict[str, str]:
        """Per pushed head, the way its tokens are weighed."""
        own = self.algorithm.aggregations(self.settings)
        if self.aggregation:
            own |= {head: self.aggregation for head in ("logp", "logits") if head in own}
        return own

    @property
    def reads(self) -> frozenset[str]:
        """Fields and current heads that the coefficient looks at."""
        return self.algorithm.names_read(self.settings)

    @property
    def credit_reads(self) -> frozenset[str]:
        """Fields that the credit looks at."""
        return self.algorithm.names_credited(self.settings) if self.algorithm.credit else frozenset()

    @property
    def heads(self) -> frozenset[str]:
        """Current heads to compute: those pushed and those read."""
        names = frozenset(self.aggregations) | (self.reads & frozenset((*HEADS, *STATISTICS)))
        return frozenset(self.slot if h == "logits" else h for h in names)

    def own(self, name: str) -> str:
        """The name in the batch of a field that every term may have of its own."""
        return f"{name}#{self.number}" if self.number else name

    @property
    def slot(self) -> str:
        """The name of its own `logits` head."""
        return self.own("logits")

    def view(self, batch: Batch) -> Batch:
        """The batch as this term sees it: fields of its own under their plain names."""
        mine = {k: v for k, v in batch.fields.items() if self.number and k.endswith(f"#{self.number}")}
        if not mine:
            return batch
        shared = {k: v for k, v in batch.fields.items() if "#" not in k}
        return Batch({**shared, **{k.partition("#")[0]: v for k, v in mine.items()}}, batch.columns, batch.reach)

    def call(self, name: str, **arguments: Any) -> Any:
        """Call a function of the algorithm; what it raises is attributed to it."""
        function: Callable[..., Any] = getattr(self.algorithm, name)
        if "batch" in arguments:
            arguments["batch"] = self.view(arguments["batch"])
        with blaming(self.algorithm, name):
            return call_named(function, settings=self.settings, **({"state": self.state} | arguments))

    def tensors(self, name: str, given: Any, batch: Batch | None = None) -> dict[str, Tensor]:
        """What one of its functions gave, if it is a mapping to tensors on the batch's device; PluginError else."""
        if not isinstance(given, Mapping):
            raise PluginError(f"{name} of {named(self.algorithm)} gave {type(given).__name__}; it must give a mapping")
        for key, value in given.items():
            if not isinstance(value, Tensor):
                what = f"{key} as {type(value).__name__}"
                raise PluginError(f"{name} of {named(self.algorithm)} gave {what}; it must be a tensor")
            if batch is not None:
                check_tensor(value, batch, f"{key} by {name} of {named(self.algorithm)}")
        return dict(given)

    def updated(self, totals: Mapping[str, float]) -> dict[str, Any]:
        """Its state after `update`. PluginError for what is no mapping, or holds NaN or infinity."""
        given = self.call("update", totals=totals)
        if not isinstance(given, Mapping):
            raise PluginError(f"update of {named(self.algorithm)} gave {type(given).__name__}; it must give a mapping")
        check_state(named(self.algorithm), given)
        return dict(given)

    def measured(self, batch: Batch, statistics: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
        """Its metrics as (sum, count). PluginError for what is no mapping to pairs of numbers."""
        given = self.call("metrics", batch=batch, statistics=statistics)
        try:
            return {str(name): (float(value), float(number)) for name, (value, number) in given.items()}
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            what = f"metrics of {named(self.algorithm)} must give (sum, count), two numbers, by name"
            raise PluginError(f"{what}: {error}") from error

    def rows(self, batch: Batch) -> Tensor:
        """[batch] bool: the rows that the term acts on. Needs whole groups for "best" and "worst"."""
        if self.on == "all":
            return torch.ones(batch.size, dtype=torch.bool, device=batch.group.device)
        if self.on in ("best", "worst"):
            sign = 1.0 if self.on == "best" else -1.0
            reward = torch.where(batch.counts, sign * batch.total_reward, -torch.inf)
            top = torch.full((batch.groups,), -torch.inf, dtype=reward.dtype, device=reward.device)
            top = top.scatter_reduce(0, batch.group, reward, "amax")
            chosen = _first_of_group(batch.group, (reward == top[batch.group]) & batch.counts)
            return torch.isin(batch.trajectory, batch.trajectory[chosen])  # all rows of a conversation
        if self.on not in batch.columns:
            raise UserError(
                f"`on: {self.on}` names no column of the data", f"columns: {', '.join(batch.columns) or 'none'}"
            )
        return batch.columns[self.on] != 0

    def normalisers(self, batch: Batch, on: Tensor, reach: Reach) -> dict[str, Tensor]:
        """Per pushed head, weight x w of every row: [batch] float64. `batch` is the whole step of this process."""
        counts = Counts.of(batch, on, reach)
        return {
            h: self.weight * normaliser(batch, on, how, counts, length=self.length)
            for h, how in self.aggregations.items()
        }


def check_tensor(value: Tensor, batch: Batch, what: str) -> None:
    """PluginError for a tensor on another device than the batch, or of complex numbers."""
    if value.device != batch.loss_mask.device:
        raise PluginError(f"{what} lies on {value.device}; the batch is on {batch.loss_mask.device}")
    if value.is_complex():
        raise PluginError(f"{what} is of {value.dtype}; it must be real numbers")


def _first_of_group(group: Tensor, among: Tensor) -> Tensor:
    """[batch] bool: the first row of each group that is `among`, so that ties choose one answer."""
    place = torch.arange(group.numel(), device=group.device)
    lowest = torch.full((int(group.max()) + 1 if group.numel() else 0,), group.numel(), device=group.device)
    lowest = lowest.scatter_reduce(0, group, torch.where(among, place, group.numel()), "amin")
    return among & (place == lowest[group])


def coefficients(term: Term, batch: Batch, statistics: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """GC per pushed head, [batch, time], without w; 0 outside the loss mask and on probes.

    From the algorithm's closed form, or where it has none from autograd of its loss on detached heads.
    Raises PluginError for a wrong shape (both sides shown), an undeclared head, NaN or infinity.
    """
    batch = term.view(batch.plus(Nowhere()))
    algorithm = term.algorithm
    if algorithm.coefficient:
        given = term.call("coefficient", batch=batch, statistics=statistics or {})
        given = _by_head(term, "coefficient", given, "logp")
    elif algorithm.distribution and not algorithm.loss:
        given = {"logits": torch.ones(batch.size, dtype=torch.float64, device=batch.loss_mask.device)}
    else:
        given = gradient_of_loss(term, batch, statistics)
    out: dict[str, Tensor] = {}
    for head, value in given.items():
        what = f"the coefficient of {head} by {named(algorithm)}"
        check_tensor(value, batch, what)
        if not value.is_floating_point() or value.element_size() < 4:  # fewer digits would round w, true and false to 0
            value = value.to(torch.get_default_dtype())
        try:
            full = batch.expand(value, what)
        except ValueError as error:
            raise PluginError(str(error)) from error
        full = torch.where(batch.probe[:, None], torch.zeros_like(full), full)
        bad = None if looks_finite([full]) else first_not_finite(full)
        if bad is not None:
            row, time = bad
            text = f"{what} is {float(full[row, time or 0]):g}"
            raise NotFiniteError(text, quantity="coefficient", row=row, time=time)
        out[head] = full.detach()
    return out


def _by_head(term: Term, what: str, given: Any, bare: str) -> dict[str, Tensor]:
    """What an algorithm gave, by head. PluginError for what is no tensor, or of a head that it does not declare."""
    by_head = dict(given) if isinstance(given, Mapping) else {bare: given}
    who, declared = named(term.algorithm), sorted(term.aggregations)
    for head, value in by_head.items():
        if head not in declared:
            raise PluginError(f"{who} pushes '{head}' but declares {declared} in `aggregation`")
        if not isinstance(value, Tensor):
            raise PluginError(f"{what} of {who} gave {type(value).__name__} for {head}; it must be a tensor")
    return by_head


def _losses(term: Term, batch: Batch, statistics: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """The unreduced loss by head. PluginError for a shape that is not one answer, prompt or token to a number."""
    if term.algorithm.loss is None:
        return {"logits": -batch.logits}
    given = term.call("loss", batch=batch, statistics=statistics or {})
    by_head = _by_head(term, "loss", given, next(iter(term.aggregations)))
    for value in by_head.values():
        if value.shape not in (batch.loss_mask.shape, (batch.size,), (batch.groups,)):
            raise PluginError(
                f"the loss of {named(term.algorithm)} is {list(value.shape)}; it must be unreduced: "
                f"[batch, time], [batch] or [groups] = {[*batch.loss_mask.shape]}, [{batch.size}] or [{batch.groups}]"
            )
    return by_head


def gradient_of_loss(term: Term, batch: Batch, statistics: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """−∂loss/∂head per pushed head, [batch, time], by autograd on detached heads; needs no second forward.

    0 where the loss of this batch does not depend on the heads, for example because no two answers make a pair.
    """
    if not has_loss(term.algorithm):
        raise PluginError(f"algorithm '{term.algorithm.name}' has neither a coefficient nor a loss")
    batch = term.view(batch)
    with torch.enable_grad():
        leaves = {h: getattr(batch, h).detach().requires_grad_() for h in term.aggregations}
        parts = _losses(term, batch.plus(Nowhere(), **leaves), statistics).values()
        total = torch.stack([p.sum() for p in parts]).sum()
        if not total.requires_grad:
            return {h: torch.zeros_like(leaf) for h, leaf in leaves.items()}
        grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return {h: torch.zeros_like(leaf) if g is None else -g for (h, leaf), g in zip(leaves.items(), grads, strict=True)}


def has_loss(algorithm: Algorithm) -> bool:
    """Whether it states its loss; of a distribution with nothing else it is that of every token."""
    return algorithm.loss is not None or (algorithm.distribution is not None and algorithm.coefficient is None)


def named_loss(
    term: Term, batch: Batch, w: Mapping[str, Tensor], statistics: Mapping[str, Tensor] | None = None
) -> float:
    """This batch's share of the published loss: its unreduced values, each times the w of its token, answer or prompt.

    `w` is weight x w per head, [batch]. Summed over the micro-batches of a step it is the loss as the paper prints it.
    """
    if not has_loss(term.algorithm):
        return float("nan")
    with torch.no_grad():
        given = _losses(term, term.view(batch.plus(Nowhere())), statistics)
    total = 0.0
    for head, value in given.items():
        row = w[head]
        if value.dim() == 2:
            total += float((batch.expand(value) * row[:, None]).sum())
        elif value.shape[0] == batch.size:  # where every answer is a prompt of its own, row and group numbers agree
            total += float((value * row).sum())
        else:
            of_group = torch.zeros(batch.groups, dtype=row.dtype, device=row.device)
            of_group = of_group.scatter_reduce(0, batch.group, row.abs(), "amax")
            total += float((value * of_group).sum()) * (-1.0 if term.weight < 0 else 1.0)
    return total


def push(
    terms: list[Term],
    batch: Batch,
    w: list[dict[str, Tensor]],
    statistics: list[dict[str, Tensor]] | None = None,
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Σ over terms of weight · w · GC per head, [batch, time], and each term's own GC for the log.

    w: per term and head, weight x w of every row [batch] (0 off the rows it acts on).
    """
    total: dict[str, Tensor] = {}
    each = []
    for i, term in enumerate(terms):
        own = coefficients(term, batch, statistics[i] if statistics else None)
        each.append(own)
        for head, value in own.items():
            part = value * w[i][head][:, None].to(value.dtype)
            slot = term.slot if head == "logits" else head
            total[slot] = total[slot] + part if slot in total else part
    return total, each
