"""The collected batch that is being learned from, in a checkpoint: put away by one number of processes, and taken out
by any other."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unified.batch import Batch
from unified.data import Answer, PromptGroup
from unified.layout import Row
from unified.running import Collected, Run, Table


def collected_state(now: Collected) -> dict[str, Any]:
    """What a process holds of it."""
    own = {f.name: getattr(now, f.name) for f in fields(now) if f.name != "table"}
    batch = now.table.batch
    groups = [_group_state(group) for group in now.table.groups]
    return {**own, "groups": groups, "fields": batch.fields, "columns": batch.columns, "top": now.table.top}


def _group_state(group: PromptGroup) -> dict[str, Any]:
    """What is looked at after the judgement: columns and messages are not, log-probs of sampling stand in the batch."""
    answers = [{f.name: getattr(a, f.name) for f in fields(a) if f.name != "sampling_logp"} for a in group.answers]
    return {"prompt": group.prompt, "text": group.text, "key": group.key, "draw": group.draw, "answers": answers}


class _Part(NamedTuple):
    """A group of one process: its state, where it came from, its number and its rows there."""

    group: dict[str, Any]
    process: int
    number: int
    rows: range

    @property
    def place(self) -> tuple[int, int, int]:
        """What orders the groups of all processes as `dealt.places` does, also where several are of one draw."""
        return self.group["draw"], self.number, self.process


def collected_of(run: Run, states: list[dict[str, Any]], *, anew: bool) -> Collected:
    """This process's share of a batch that processes have put away.

    anew: `states` are those of all of them, and the groups are shared out again, in the order in which they were drawn;
    otherwise it is this process's own.
    """
    states = [s for s in states if s["groups"]] or states[:1]
    first = states[0]
    shared = run.processes.mine(sorted(_parts(states), key=lambda part: part.place)) if anew else []
    state = _taken(states, shared) if anew else first
    groups = [PromptGroup(**{**g, "answers": [Answer(**a) for a in g["answers"]]}) for g in state["groups"]]
    batch = Batch(state["fields"], state["columns"], run.processes)
    pairs = zip(((g, a) for g in groups for a in g.answers), batch.loss_mask.tolist(), strict=True)
    rows = [Row(g.prompt, a.ids, mask[: len(a.ids)]) for (g, a), mask in pairs]
    plain = {f.name: first[f.name] for f in fields(Collected) if f.name != "table"}
    return Collected(Table(run.streams[0], groups, rows, batch, state["top"]), **plain)


def _parts(states: list[dict[str, Any]]) -> list[_Part]:
    out = []
    for process, state in enumerate(states):
        at = 0
        for number, group in enumerate(state["groups"]):
            out.append(_Part(group, process, number, range(at, at + len(group["answers"]))))
            at += len(group["answers"])
    return out


def _taken(states: list[dict[str, Any]], parts: list[_Part]) -> dict[str, Any]:
    """Groups, fields, columns and the teacher's tokens of the parts, as one process would hold them."""

    def rows_of(tensors: list[Tensor]) -> Tensor:
        """[rows, ...]; what has a time is made as long as the longest of all processes."""
        time = max((t.shape[1] for t in tensors if t.dim() > 1), default=0)
        wide = [_widened(t, time) if t.dim() > 1 else t for t in tensors]
        found = [wide[p.process][p.rows.start : p.rows.stop] for p in parts]
        return torch.cat(found) if found else wide[0][:0]

    first = states[0]
    fields_ = {name: rows_of([s["fields"][name] for s in states]) for name in first["fields"]}
    of_group = [n for n, p in enumerate(parts) for _ in p.rows]
    fields_["group"] = torch.tensor(of_group, dtype=torch.long, device=first["fields"]["group"].device)
    whole = zip((p.process for p in parts for _ in p.rows), fields_["trajectory"].tolist(), strict=True)
    numbers: dict[tuple[int, int], int] = {}
    renumbered = [numbers.setdefault(each, len(numbers)) for each in whole]
    fields_["trajectory"] = fields_["trajectory"].new_tensor(renumbered)
    columns = {name: rows_of([s["columns"][name] for s in states]) for name in first["columns"]}
    top = None if first["top"] is None else tuple(rows_of([s["top"][i] for s in states]) for i in (0, 1))
    return {"groups": [p.group for p in parts], "fields": fields_, "columns": columns, "top": top}


def _widened(tensor: Tensor, time: int) -> Tensor:
    """[rows, time, ...], zeros at the end."""
    lacking = tensor.new_zeros((tensor.shape[0], time - tensor.shape[1], *tensor.shape[2:]))
    return torch.cat([tensor, lacking], 1)
