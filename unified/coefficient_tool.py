"""The `coefficients` command: what an algorithm does to each token of a batch given as numbers. No model is needed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from unified.batch import EITHER, Batch, Here, from_numbers
from unified.coefficient import Term, coefficients, named_loss
from unified.errors import Problem, UserError, did_you_mean
from unified.parts import Algorithm
from unified.registry import catalogue
from unified.settings import Chosen, parse
from unified.stage import TermSettings
from unified.tree import Node, Place, merge, parse_override

#: a field of the past -> what it equals on the first step after sampling
FIRST_STEP = {"old_logp": "logp", "sampling_logp": "old_logp", "old_value": "value"}
_OF_TERM = ("weight", "on", "aggregation", "constant_length")


@dataclass
class Examined:
    """What one algorithm does to a batch.

    coefficient, weighted: per head [batch, time], GC and weight x w x GC.
    weight: per head [batch], weight x w of a token.
    loss: the published loss of the batch, NaN for an algorithm that declares none. notes: what was filled in.
    """

    term: Term
    batch: Batch
    coefficient: dict[str, Tensor]
    weight: dict[str, Tensor]
    loss: float
    notes: list[str] = field(default_factory=list)

    @property
    def weighted(self) -> dict[str, Tensor]:
        """weight x w x GC per head, [batch, time]: what stands before the gradient of the head."""
        return {h: gc * self.weight[h][:, None].to(gc.dtype) for h, gc in self.coefficient.items()}

    def as_dict(self) -> dict[str, Any]:
        """The numbers for a machine; a loss that there is none of is null."""
        heads = {
            head: {
                "aggregation": self.term.aggregations[head],
                "coefficient": gc.tolist(),
                "weight": self.weight[head].tolist(),
                "weighted": self.weighted[head].tolist(),
            }
            for head, gc in self.coefficient.items()
        }
        return {
            "algorithm": self.term.algorithm.name,
            "settings": self.term.settings.model_dump(mode="json"),
            "heads": heads,
            "loss": None if math.isnan(self.loss) else self.loss,
            "notes": self.notes,
        }


def examine(algorithm: str, data: Mapping[str, Any], sets: Iterable[str] = ()) -> Examined:
    """Compute what `algorithm` does to the batch `data` (see `unified.batch.from_numbers`).

    `sets` are KEY=VALUE of the algorithm's settings, or of its term: weight, on, aggregation, constant_length.
    Credit is run when the batch has no advantage. Raises UserError for a batch that lacks what the algorithm reads.
    """
    term = _term(algorithm, sets)
    try:
        batch = from_numbers(data)
    except (ValueError, AttributeError) as error:
        raise UserError(f"the batch does not fit: {error}") from error
    notes: list[str] = []
    if term.algorithm.credit and "advantage" not in data:
        batch = _credited(term, batch, data, notes)
    batch = _filled(batch, (term.reads | frozenset(term.aggregations)) - {"reward"}, term, notes)
    batch = _expanded(batch)
    statistics = term.call("statistics", batch=batch) if term.algorithm.statistics else {}
    try:
        weight = term.normalisers(batch, term.rows(batch), Here())
    except ValueError as error:
        raise UserError(str(error)) from error
    gc = coefficients(term, batch, statistics)
    return Examined(term, batch, gc, weight, named_loss(term, batch, weight, statistics), notes)


def read_batch(path: Path) -> Mapping[str, Any]:
    """The numbers of a JSON file. UserError for a file that is missing or no JSON object, with the line."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: this is no JSON: {error.msg} (column {error.colno})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text: {error}") from error
    if not isinstance(data, dict):
        raise UserError(
            f"{path}: a batch is an object of fields", 'for example {"logp": [[-1.0, -2.0]], "reward": [1.0]}'
        )
    return data


def _term(name: str, sets: Iterable[str]) -> Term:
    part: Algorithm = catalogue().get("algorithm", name)
    problems: list[tuple[Place, Problem]] = []
    root = Node({}, Place("--set"))
    for text in sets:
        root = merge(root, parse_override(text, problems), is_part=False)
    own_keys = part.settings.model_fields
    of_term = {
        key: value
        for key, value in root.plain().items()
        if key not in own_keys and did_you_mean(key, [*own_keys, *_OF_TERM]) in _OF_TERM
    }
    data = {key: value for key, value in root.plain().items() if key not in of_term}
    settings, found = parse(
        part.settings, data, owner=f"algorithm '{name}'", provider=catalogue().provider("algorithm", name)
    )
    own = Chosen(part, settings) if not found else name
    term, also = parse(TermSettings, {"algorithm": own, **of_term}, owner="the term")
    problems += [(root.place_of(p.at), p) for p in [*found, *(p for p in also if p.at[:1] != ("algorithm",))]]
    if problems or term is None:
        raise UserError("\n".join(problem.text(str(place)) for place, problem in problems))
    return Term(part, settings, term.weight, term.on, term.aggregation, term.constant_length)


def _credited(term: Term, batch: Batch, data: Mapping[str, Any], notes: list[str]) -> Batch:
    """The batch with what the algorithm's credit gives."""
    if "reward" not in data:
        raise UserError(
            f"algorithm '{term.algorithm.name}' makes advantages from rewards: give `reward` or `advantage`"
        )
    batch = _filled(batch, term.credit_reads - {"reward"}, term, notes)
    given = term.call("credit", batch=batch)
    notes.append(f"{' and '.join(given)} from the credit of {term.algorithm.name}")
    return batch.plus(**given)


def _filled(batch: Batch, names: Iterable[str], term: Term, notes: list[str]) -> Batch:
    """The batch with fields of the past filled as on the first step; UserError for others that are missing."""
    missing = []
    for name in sorted(names):
        if batch.has(name):
            continue
        like: str | None = name
        while like is not None and not batch.has(like):
            like = FIRST_STEP.get(like)
        if like is None:
            missing.append(name)
            continue
        batch = batch.plus(**{name: getattr(batch, like)})
        notes.append(f"{name} is not given: taken to be {like}, as on the first step")
    if missing:
        lacking = ", ".join(f"`{name}`" for name in missing)
        raise UserError(
            f"the batch has no {lacking}, which algorithm '{term.algorithm.name}' reads",
            f"it has: {', '.join(sorted(batch.fields))}",
        )
    return batch


def _expanded(batch: Batch) -> Batch:
    """Numbers per answer as numbers per token, as the engine gives them to a coefficient."""
    rows: dict[str, Any] = {
        n: batch.expand(v, n) for n, v in batch.fields.items() if n in EITHER - {"reward"} and v.dim() == 1
    }
    return batch.plus(**rows)


def as_text(examined: Examined) -> str:
    """A page for a person: per head a line per answer, a number per token; `.` where the loss mask is off."""
    lines = [f"algorithm {examined.term.algorithm.name}"]
    for head, gc in examined.coefficient.items():
        lines += ["", f"GC before the gradient of {head}"]
        lines += _rows(gc, examined.batch)
        lines += ["", f"w x GC of {head}, aggregation {examined.term.aggregations[head]} (w per token on the left)"]
        lines += _rows(examined.weighted[head], examined.batch, examined.weight[head])
    loss = "none declared" if math.isnan(examined.loss) else f"{examined.loss:.6g}"
    return "\n".join([*lines, "", f"loss: {loss}", *(f"note: {note}" for note in examined.notes)])


def _rows(table: Tensor, batch: Batch, weight: Tensor | None = None) -> list[str]:
    lines = []
    for row in range(batch.size):
        cells = [
            f"{value:+.5g}" if on else "."
            for value, on in zip(table[row].tolist(), batch.loss_mask[row].tolist(), strict=True)
        ]
        left = f" ({float(weight[row]):.5g})" if weight is not None else ""
        lines.append((f"  answer {row}, prompt {int(batch.group[row])}{left}:", "  ".join(f"{c:>11}" for c in cells)))
    wide = max((len(left) for left, _ in lines), default=0)
    return [f"{left:<{wide}} {cells}" for left, cells in lines]
