"""NaN and infinity are caught in the step where they appear, and named: quantity, part, prompt, answer, token.

Each quantity of a batch costs one sum, and all of them together one look at the result; only where that is not finite
is it looked for. All processes decide together: what one of them finds, every one of them acts on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unified.blame import named, sample_at
from unified.errors import PluginError, UserError
from unified.warned import parted, write_warning

if TYPE_CHECKING:
    from unified.running import Run, Table

#: in front of the metrics that count what was found, by quantity
COUNTED = "nonfinite/"
#: what to do about them, for the log
MEND = "Mend the part that is named, or its data; `nonfinite: stop` ends the run where the first one appears"


class NotFiniteError(PluginError):
    """A part gave NaN or infinity. The message names the part, and the first place where it has one.

    what: without the place. quantity: its name in the count. row: of the answers that the part was given; time: token.
    """

    def __init__(self, what: str, *, quantity: str, row: int | None = None, time: int | None = None) -> None:
        super().__init__(
            what + ("" if row is None else f" at answer {row}") + ("" if time is None else f", token {time}")
        )
        self.what, self.quantity, self.row, self.time = what, quantity, row, time


@dataclass(frozen=True)
class Finding:
    """What was not finite: the quantity, the sentence that says which part gave it for which sample, how many."""

    quantity: str
    text: str
    number: int = 1


@dataclass
class Guard:
    """What one process has found and not yet settled with the others, and how many batches in a row had something."""

    pending: list[Finding] = field(default_factory=list)
    in_a_row: int = 0

    def note(self, finding: Finding) -> None:
        """Remember it until all processes settle what to do."""
        self.pending.append(finding)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps. Nothing is pending at the end of a collected batch."""
        return {"in_a_row": self.in_a_row}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint kept."""
        self.pending, self.in_a_row = [], int(state["in_a_row"])


@torch.no_grad()
def looks_finite(values: Iterable[Tensor]) -> bool:
    """Whether the sum of every tensor is finite: one pass over each, and one look at all.

    False also where a sum of finite numbers overflows; then the numbers themselves must be looked at.
    """
    sums = [v.sum().float() for v in values if v.numel()]
    return not sums or bool(torch.isfinite(torch.stack(sums)).all())


def first_not_finite(value: Tensor) -> tuple[int, int | None] | None:
    """(row, time) of the first number of [batch, time] that is not finite; time is None for [batch]. None: there is
    none."""
    places = (~torch.isfinite(value)).nonzero()
    if not len(places):
        return None
    row, *time = places[0].tolist()
    return row, time[0] if time else None


def check_table(run: Run, table: Table, names: Mapping[str, str]) -> None:
    """Note fields of a table that are not finite; their answers leave: no token of them carries a gradient any more.

    names: field -> who gave it, in words.
    """
    fields = {n: v for n, v in table.batch.fields.items() if n in names}
    if table.top is not None:  # a teacher's likeliest tokens, [batch, time, k]
        fields["teacher"], names = table.top[1].sum(-1), {**names, "teacher": "the teacher"}
    if looks_finite(fields.values()):
        return
    mask, rows = table.batch.loss_mask, torch.zeros(table.batch.size, dtype=torch.bool, device=run.device)
    for name, value in fields.items():
        bad = ~torch.isfinite(value)
        bad = bad & mask if bad.dim() == 2 else bad
        if bad.any():
            note_in(run, table, name, names[name], torch.where(bad, value, 0.0))
            rows |= bad.any(1) if bad.dim() == 2 else bad
    leave_out(table, rows)


def leave_out(table: Table, rows: Tensor) -> None:
    """Answers [batch] bool lose their loss mask, and what is not finite there becomes 0; they count no more."""
    fields = {n: v for n, v in table.batch.fields.items() if v.is_floating_point()}
    clean = {n: torch.where(rows[:, None] if v.dim() == 2 else rows, torch.zeros_like(v), v) for n, v in fields.items()}
    table.batch = table.batch.plus(**clean, loss_mask=table.batch.loss_mask & ~rows[:, None])
    out = rows.tolist()
    table.rows[:] = [
        replace(r, mask=[False] * len(r.mask)) if gone else r for r, gone in zip(table.rows, out, strict=True)
    ]


def note_in(run: Run, table: Table, quantity: str, who: str, value: Tensor, rows: list[int] | None = None) -> None:
    """Note the first number of a quantity that is not finite, with its sample.

    value: [batch] or [batch, time] of all rows of the table, or of `rows` of it.
    """
    place = first_not_finite(value)
    if place is None:
        return
    row, time = place
    number = value[row] if time is None else value[row, time]
    where = sample_at(table.groups, row if rows is None else rows[row], time, tokenizer=run.tokenizer)
    bad = ~torch.isfinite(value)
    count = int((bad.any(1) if bad.dim() == 2 else bad).sum())
    text = f"{quantity} of {who} is {float(number):g} for {where}"
    run.guard.note(Finding(quantity, text + (f", and of {count - 1} answers more" if count > 1 else ""), count))


def check_heads(run: Run, table: Table, rows: list[int], heads: Mapping[str, Tensor]) -> bool:
    """Whether current heads [rows, time] of some rows of a table are finite; what is not is noted."""
    if looks_finite(heads.values()):
        return True
    before = len(run.guard.pending)
    for head, value in heads.items():
        plain = head.partition("#")[0]
        note_in(run, table, plain, f"the {run.role_of(plain)} as it is now", value.detach(), rows)
    return len(run.guard.pending) == before


def note_error(run: Run, table: Table, rows: list[int], error: NotFiniteError) -> None:
    """Note what a part gave for some rows of a table."""
    text = error.what
    if error.row is not None:
        text += f" for {sample_at(table.groups, rows[error.row], error.time, tokenizer=run.tokenizer)}"
    run.guard.note(Finding(error.quantity, text))


def settle(run: Run) -> bool:
    """Whether some process has found something since the last time; every process must ask.

    It is counted and told. UserError, the same in every process, where the settings say stop.
    """
    guard, settings = run.guard, run.settings
    here, guard.pending = guard.pending, []
    if not run.processes.most(len(here)):
        return False
    found = run.processes.lists(here)
    for each in here:
        run.add(COUNTED + each.quantity, float(each.number), 0.0)
    more = f" (and {len(found) - 1} findings more)" if len(found) > 1 else ""
    where = f"stage '{run.stage.name}', step {run.step + 1}"
    if settings.nonfinite == "stop":
        raise UserError(f"{where}: {found[0].text}{more}", *_advice(run))
    numbers = {each.quantity: float(each.number) for each in found}
    warn(run, "nonfinite", f"{found[0].text}{more}; left out, because of `nonfinite: skip`", numbers)
    return True


def batch_done(run: Run, metrics: Mapping[str, float]) -> None:
    """Count collected batches in a row in which something was left out, from the metrics of all processes.

    UserError past the bound, where they are to be left out.
    """
    guard, most = run.guard, run.settings.max_nonfinite
    found = {k.removeprefix(COUNTED): int(v) for k, v in metrics.items() if k.startswith(COUNTED)}
    guard.in_a_row = guard.in_a_row + 1 if found else 0
    if guard.in_a_row > most:
        said = ", ".join(f"{name} {number}" for name, number in found.items())
        raise UserError(
            f"stage '{run.stage.name}', step {run.step}: {guard.in_a_row} collected batches in a row held NaN or "
            f"infinity; the last: {said}",
            f"`max_nonfinite` allows {most}; the lines above name each of them",
            "the run goes on from its last checkpoint when the same command is run again",
        )


def check_state(name: str, state: Mapping[str, Any]) -> None:
    """PluginError where a number of a part's state is NaN or infinite; `name` says whose it is."""
    for key, value in state.items():
        finite = looks_finite([value]) if isinstance(value, Tensor) and value.is_floating_point() else True
        if not finite or (isinstance(value, float) and not math.isfinite(value)):
            raise NotFiniteError(f"update of {name} gave the state {key} = {value}", quantity="state")


def warn(run: Run, kind: str, message: str, values: Mapping[str, float]) -> None:
    """Tell every plugin and the log; and whoever watches, of each kind once (what is not finite is another each time).

    The other times are counted: in the summary, and by `unified status`.
    """
    step = run.step + 1 if kind in ("nonfinite", "gradient_spike") else run.step
    stage = run.stage.name
    run.stage.notify("warning_raised", stage=stage, step=step, kind=kind, message=message, values=dict(values))
    if run.accelerator.is_main_process:
        seen, remedy = (message, MEND) if kind == "nonfinite" else parted(message)
        about: dict[str, Any] = {"kind": kind, "message": seen, "values": values, "remedy": remedy}
        write_warning(run.stage.folder, stage=stage, step=step, **about)
    if run.watch.told.get(kind, 0) <= 1:
        run.stage.say(f"warning: {stage}, step {step}: {message}")


def engine_of(run: Run) -> str:
    """Who samples, in words."""
    from unified.stream import engine_or_default

    return named(engine_or_default(run.settings.engine).part)


def _advice(run: Run) -> tuple[str, ...]:
    return (
        "nothing of this step was learned; mend it and run the same command again: the run goes on from its last "
        "checkpoint",
        "or set `nonfinite: skip`: such answers, or the step, are left out and counted, in up to `max_nonfinite` "
        f"(now {run.settings.max_nonfinite}) collected batches in a row",
    )
