"""The mapping table: which of our settings mean the same as a peer's function and its configuration.

One entry for each function of a peer, in the `peers_*` files. An entry knows no case: it takes the configuration key by
key, refuses what it does not know, and computes with the engine what the peer computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tests.oracles.cases import Case, Config, DiffersError, Inputs, NotMappedError, compare
from unified import Batch, Chosen
from unified.aggregation import Counts, normaliser
from unified.batch import Here
from unified.coefficient import Term, coefficients, gradient_of_loss, named_loss
from unified.settings import choose

#: (part of the project's name, end of the function's name) -> (entry, expected values that have no meaning here)
TABLE: dict[tuple[str, str], tuple[Callable[[Config, Inputs], Mapping[str, Any]], frozenset[str]]] = {}


def peer(project: str, *functions: str, skip: frozenset[str] = frozenset()) -> Callable[[Any], Any]:
    """Enter a function (config, inputs) -> {expected name: ours, "where": mask} into the table.

    Where "where" is given, tables of its shape are compared on that mask alone.
    """

    def enter(function: Any) -> Any:
        for name in functions:
            TABLE[project, name] = (function, skip)
        return function

    return enter


def check(case: Case) -> int:
    """Compare every instance; the number compared. Raises NotMappedError or DiffersError, which say why."""
    if case.data["family"] == "e2e":
        return end_to_end.check(case)
    known = [v for (project, name), v in TABLE.items() if project in case.project and case.function.endswith(name)]
    if len(known) != 1:
        raise NotMappedError(f"{len(known)} entries of the table fit {case.project} {case.function}")
    entry, skip = known[0]
    done = 0
    for seed, inputs, expected in case.instances():
        config = case.config()
        ours = dict(entry(config, inputs))
        config.finish()
        where = ours.pop("where", None)
        missing = set(expected) - set(ours) - skip
        if missing:
            raise NotMappedError(f"nothing to compare with {', '.join(sorted(missing))}")
        for name in set(expected) - skip:
            compare(f"seed {seed}: {name}", ours[name], expected[name], case.tolerance, where)
        done += 1
    if not done:
        raise DiffersError("the case has no instance")
    return done


def chosen(kind: str, name: str, **settings: Any) -> Chosen:
    """A part with settings, as a recipe would choose it; settings that are None are left at their defaults."""
    found, problems = choose(kind, {"name": name, **{k: v for k, v in settings.items() if v is not None}})
    if found is None or problems:
        raise NotMappedError("; ".join(p.text() for p in problems))
    return found


@dataclass
class Step:
    """What one optimiser step makes of a batch: per head w GC [batch, time], and the named loss."""

    push: dict[str, Tensor] = field(default_factory=dict)
    loss: float = 0.0

    def __add__(self, other: Step) -> Step:
        heads = {**{h: torch.zeros_like(x) for h, x in other.push.items()}, **self.push}
        return Step({h: x + other.push.get(h, torch.zeros_like(x)) for h, x in heads.items()}, self.loss + other.loss)


def step(
    algorithm: str,
    settings: Mapping[str, Any],
    batch: Batch,
    *,
    how: str | None = None,
    counts: Mapping[str, float] | None = None,
    length: int | None = None,
    weight: float = 1.0,
    on: str = "all",
    state: Mapping[str, Any] | None = None,
) -> Step:
    """One term through the engine.

    how: normaliser in place of the algorithm's own, for all its heads. counts: {"tokens", "answers", "groups"} of a
    step of which the batch is only a part. weight: scales the term. state: of the algorithm, before the step. The
    closed form must agree with the loss.
    """
    part = chosen("algorithm", algorithm, **settings)
    term = Term(part.part, part.settings, on=on, aggregation=how, length=length, state=dict(state or {}))
    rows = term.rows(batch)
    number = replace(Counts.of(batch, rows, Here()), **(counts or {}))
    w = {
        head: weight * normaliser(batch, rows, how or own, number, length=length)
        for head, own in term.aggregations.items()
    }
    known = dict(term.call("statistics", batch=batch)) if term.scope == "step" else {}
    gc = coefficients(term, batch, known)
    for head, slope in gradient_of_loss(term, batch, known).items():
        compare(
            f"closed form and loss, {head}", torch.where(batch.loss_mask, slope, 0.0), gc[head].tolist(), (1e-9, 1e-9)
        )
    return Step({head: gc[head].double() * w[head][:, None] for head in gc}, named_loss(term, batch, w, known))


def credited(settings: Mapping[str, Any], batch: Batch) -> dict[str, Tensor]:
    """Advantage and returns [batch, time] that the policy-gradient family gives a collected batch, 0 off the mask."""
    written = settings["advantage"]
    rule = chosen("advantage", **({"name": written} if isinstance(written, str) else written))
    kind = "ppo" if "old_value" in rule.part.names_read(rule.settings) else "grpo"
    part = chosen("algorithm", kind, **{"kl_weight": 0.0, **settings})
    found = Term(part.part, part.settings).call("credit", batch=batch)
    return {name: batch.expand(x) for name, x in found.items()}


def rows(x: Tensor) -> Tensor:
    """One number per answer, [batch], from the same number at each of its tokens [batch, time] (0 off the mask)."""
    return torch.where(x.abs().amax(1) > x.amax(1), x.amin(1), x.amax(1))


# the entries
from tests.oracles import (  # noqa: E402
    end_to_end,
    peers_advantages,  # noqa: F401
    peers_distillation,  # noqa: F401
    peers_kl,  # noqa: F401
    peers_policy,  # noqa: F401
    peers_policy_others,  # noqa: F401
    peers_policy_verl,  # noqa: F401
    peers_preference,  # noqa: F401
    peers_rows,  # noqa: F401
    peers_shaping,  # noqa: F401
    peers_unpaired,  # noqa: F401
)
