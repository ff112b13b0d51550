"""Pictures as the data of a page: equal rows of numbers once, and never more than a page may hold. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from unified.lens.picture import Column, Picture, alike
from unified.report.page import embedded
from unified.report.read import number, spread

#: bytes of the data of a page, of 2 MB in all
LARGEST = 1_800_000
#: digits of a number where all of them are too many
DIGITS = 6


@dataclass
class Pool:
    """Lists that stand in the data once, and their places. digits: of a number; None for all."""

    digits: int | None = None
    lists: list[list[Any]] = field(default_factory=list)
    _places: dict[str, int] = field(default_factory=dict)

    def put(self, values: Sequence[Any]) -> int:
        """The place of a list."""
        short = [self.short(v) for v in values]
        place = self._places.setdefault(json.dumps(short), len(self.lists))
        if place == len(self.lists):
            self.lists.append(short)
        return place

    def short(self, value: Any) -> Any:
        """A number with as many digits as the pool has; everything else as it is."""
        return number(value, self.digits) if self.digits and isinstance(value, float) else value


def page_data(strips: Mapping[str, Sequence[Picture]], title: str, about: Sequence[str] = ()) -> dict[str, Any]:
    """What a page shows: for each name (of a stage; "" for the one of a command) its pictures in order.

    Where they are more than a page holds, numbers are cut to six digits, then steps are left out evenly, then answers
    from the end; what was done is told in the notes.
    """
    whole = {name: list(pictures) for name, pictures in strips.items() if pictures}
    kept, notes = dict(whole), list[str]()
    digits: int | None = None
    said = {"title": title, "about": list(about), "notes": notes}
    while True:
        data = _packed(kept, Pool(digits)) | said
        size = len(embedded(data).encode("utf-8"))
        longest = max(kept, key=lambda name: len(kept[name]), default="")
        if size <= LARGEST or not kept or not any(p.answers for p in kept[longest]):
            return data
        share = min(0.95 * LARGEST / size, 0.9)
        if digits is None:
            digits = DIGITS
            notes.append(f"numbers are shown with {DIGITS} digits; --json has all of them")
        elif len(kept[longest]) > 1:
            number, every = max(1, int(len(kept[longest]) * share)), whole[longest]
            kept[longest] = [every[i] for i in spread(list(range(len(every))), number)]
            _told(notes, f"steps of {longest or 'the pictures'}", number, len(every))
        else:
            name = max(kept, key=lambda name: len(kept[name][0].answers))
            picture = kept[name][0]
            kept[name] = [_first_answers(picture, int(len(picture.answers) * share))]
            _told(notes, f"answers of {name or 'the rows'}", len(kept[name][0].answers), len(whole[name][0].answers))


def _told(notes: list[str], what: str, shown: int, of: int) -> None:
    """One line for each thing that was left out, with the numbers as they are now."""
    begin = f"{what}: "
    notes[:] = [note for note in notes if not note.startswith(begin)]
    notes.append(f"{begin}{shown} of {of} are shown, for a page holds no more; --json has all of them")


def _first_answers(picture: Picture, count: int) -> Picture:
    columns = [replace(column, seen=column.seen[:count]) for column in picture.columns]
    return replace(picture, answers=picture.answers[:count], columns=columns)


def _packed(strips: Mapping[str, Sequence[Picture]], pool: Pool) -> dict[str, Any]:
    made = [{"name": name, "pictures": [_picture(p, pool) for p in pictures]} for name, pictures in strips.items()]
    return {"strips": made, "pool": pool.lists}


def _picture(picture: Picture, pool: Pool) -> dict[str, Any]:
    answers = [
        {"row": a.row, "ids": pool.put(a.ids), "tokens": pool.put(a.tokens), "mask": pool.put([int(m) for m in a.mask]),
         "reward": pool.short(a.reward), "finish": a.finish, "probe": a.probe}
        for a in picture.answers
    ]  # fmt: skip
    first = alike(picture.columns)
    columns = [_column(c, pool) | {"same": s} for c, s in zip(picture.columns, first, strict=True)]
    silent = [[name, why] for name, why in picture.silent.items()]
    return {"step": picture.step, "prompts": pool.put(picture.prompts), "answers": answers, "columns": columns,
            "silent": silent, "notes": picture.notes}  # fmt: skip


def _column(column: Column, pool: Pool) -> dict[str, Any]:
    heads = {}
    for head, how in column.aggregation.items():
        there = [one.heads.get(head) if one is not None else None for one in column.seen]
        heads[head] = {
            "aggregation": how,
            "w": [None if one is None else pool.short(one[0]) for one in there],
            "gc": [None if one is None else pool.put(one[1]) for one in there],
            "sums": {name: pool.short(value) for name, value in column.sums(head).items()},
        }
    names = sorted({name for one in column.seen if one for name in one.fields})
    cuts = sorted({head for one in column.seen if one for head in one.clipped})
    return {
        "name": column.name,
        "settings": [[k, v if isinstance(v, str) else json.dumps(v)] for k, v in column.settings.items()],
        "loss": pool.short(column.loss),
        "notes": column.notes,
        "heads": heads,
        "fields": {
            name: _places(pool, [one.fields.get(name) if one else None for one in column.seen]) for name in names
        },
        "clipped": {
            h: _places(pool, [_ints(one.clipped.get(h)) if one else None for one in column.seen]) for h in cuts
        },
        "cut": column.clipped if cuts else None,
    }


def _places(pool: Pool, lists: Sequence[Sequence[Any] | None]) -> list[int | None]:
    return [None if values is None else pool.put(values) for values in lists]


def _ints(values: Sequence[bool] | None) -> list[int] | None:
    return None if values is None else [int(v) for v in values]
