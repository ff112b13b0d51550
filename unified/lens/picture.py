"""A picture as plain numbers: answers by their tokens, and what each algorithm gives to every one. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

Numbers = list[float | None]


@dataclass
class Seen:
    """What one algorithm sees of one answer, and gives to it.

    heads: head -> (w, GC): weight x w of a token of this answer, and a number per token; their product stands before
    the gradient of the head. fields: name -> a number per token, None for one that is not finite. clipped: head ->
    whether the ratio (of `value`: the error) of each token has no part in its coefficient, where the algorithm has one.
    """

    heads: dict[str, tuple[float, Numbers]]
    fields: dict[str, Numbers]
    clipped: dict[str, list[bool]] = field(default_factory=dict)

    def pushes(self, head: str) -> list[float]:
        """w · GC of every token."""
        w, gc = self.heads[head]
        return [w * (g or 0.0) for g in gc]


@dataclass
class Shown:
    """One answer: its prompt's number in the picture, its tokens as ids and as text, which of them carry a gradient.

    reward: None where there is none. probe: compared with, never pushed.
    """

    row: int
    ids: list[int]
    tokens: list[str]
    mask: list[bool]
    reward: float | None = None
    finish: str = "stop"
    probe: bool = False


@dataclass
class Column:
    """One algorithm (a term of a stage) over the answers of a picture.

    settings: those that differ from their defaults. aggregation: per head. seen: per answer, None where it has no part.
    loss: the published loss of these rows as one step; None where the algorithm states none. notes: in words.
    """

    name: str
    settings: dict[str, Any]
    aggregation: dict[str, str]
    seen: list[Seen | None]
    loss: float | None = None
    notes: list[str] = field(default_factory=list)

    def sums(self, head: str) -> dict[str, float]:
        """Over all tokens of all answers: what is raised, what is lowered, and both together, of w · GC."""
        every = [p for one in self.seen if one is not None for p in one.pushes(head)]
        up, down = math.fsum(p for p in every if p > 0), math.fsum(p for p in every if p < 0)
        return {"raised": up, "lowered": down, "sum": math.fsum(every)}

    @property
    def clipped(self) -> int:
        """Tokens that are clipped, under any head."""
        return sum(any(at) for one in self.seen if one for at in zip(*one.clipped.values(), strict=True))


@dataclass
class Picture:
    """What one step would do to some answers.

    step: of the training stage; None outside one. prompts: as they read. silent: algorithm -> why it says nothing of
    these rows. notes: what a reader must know.
    """

    prompts: list[str]
    answers: list[Shown]
    columns: list[Column]
    silent: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    step: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with the sums per head and the number of clipped tokens of each algorithm."""
        data = asdict(self)
        for column, written in zip(self.columns, data["columns"], strict=True):
            written["sums"] = {head: column.sums(head) for head in column.aggregation}
            written["clipped"] = column.clipped
        return data

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Picture:
        """From what `as_dict` gave. KeyError, TypeError or ValueError for anything else."""
        columns = []
        for one in data["columns"]:
            seen = [None if s is None else _seen(s) for s in one["seen"]]
            columns.append(
                Column(str(one["name"]), dict(one["settings"]), dict(one["aggregation"]), seen, one.get("loss"),
                       [str(note) for note in one.get("notes", ())])
            )  # fmt: skip
        answers = [Shown(**one) for one in data["answers"]]
        picture = cls([str(p) for p in data["prompts"]], answers, columns, dict(data.get("silent", {})))
        picture.notes, picture.step = [str(note) for note in data.get("notes", ())], data.get("step")
        if any(len(c.seen) != len(answers) for c in columns) or any(a.row >= len(picture.prompts) for a in answers):
            raise ValueError("a picture has one entry per answer in each of its columns")
        return picture


def _seen(data: Mapping[str, Any]) -> Seen:
    heads = {head: (float(w), list(gc)) for head, (w, gc) in data["heads"].items()}
    return Seen(
        heads, {k: list(v) for k, v in data["fields"].items()}, {k: list(v) for k, v in data["clipped"].items()}
    )


def by_token(picture: Picture, column: Column, head: str) -> list[tuple[str, float, int]]:
    """(token, sum of its w · GC over all answers, how often it stands there), the most blamed first."""
    sums: dict[str, list[float]] = {}
    for shown, seen in zip(picture.answers, column.seen, strict=True):
        if seen is not None and head in seen.heads:
            for token, on, push in zip(shown.tokens, shown.mask, seen.pushes(head), strict=True):
                if on:
                    sums.setdefault(token.strip() or token, []).append(push)
    return sorted(((t, math.fsum(p), len(p)) for t, p in sums.items()), key=lambda one: one[1])


def alike(columns: Sequence[Column]) -> list[int]:
    """Per column, the number of the first one that pushes every token equally hard (to six digits); its own else."""
    first: dict[str, int] = {}
    return [first.setdefault(_pushed(column), number) for number, column in enumerate(columns)]


def _pushed(column: Column) -> str:
    """Its pushes as text: two columns are alike where these are the same."""
    heads = sorted(column.aggregation)
    return repr([[(h, _digits(one.pushes(h))) for h in heads] if one else None for one in column.seen])


def _digits(values: Iterable[float]) -> list[str]:
    return [f"{v:.6g}" if v else "0" for v in values]
