"""What the columns of a file become: found out by leaving each of them out of the first rows. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unified.data import Example
from unified.registry import call_named, catalogue
from unified.settings import Chosen

#: what reading a row adds
_PLACE = ("file", "row")


@dataclass
class Column:
    """One column: what it becomes (nothing: it stays a column), and what stands there.

    becomes: "prompt", "answer", "reward", "tools", "labels" (other columns are made from it, for steps, say).
    """

    name: str
    becomes: list[str]
    holds: str = ""


def columns_of(data: Chosen, examples: Sequence[Example]) -> tuple[list[Column], str, str]:
    """The columns of a dataset, what its format was recognised by, and what that format is."""
    rows: Sequence[Mapping[str, Any]] = getattr(examples, "first_rows", ())
    part = catalogue().find("format", str(getattr(examples, "format", "")))
    if not rows or part is None:
        names = dict.fromkeys(name for one in examples[:100] for name in one.columns if name not in _PLACE)
        return [Column(name, []) for name in names], "", ""
    named = getattr(data.settings, "format", None)
    settings = named.settings if named is not None else part.settings()
    columns = [Column(name, []) for name in dict.fromkeys(name for row in rows for name in row)]
    for column in columns:
        found = {role for row in rows if column.name in row for role in _roles(part, settings, row, column.name)}
        column.becomes = [role for role in ("prompt", "answer", "reward", "tools", "labels") if role in found]
    about = part.doc().partition("\n")[0]
    if named is not None:
        return columns, "named, not recognised", about
    decide = [name for name in rows[0] if not _recognised(part, rows[0], name)]
    used = decide or [column.name for column in columns if column.becomes]
    return columns, f"recognised by its columns {', '.join(used)}", about


def unplaced(row: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Columns of a row that no format names, and what to try: the same name in small letters, if a format has that."""
    known: set[str] = set()
    for name in catalogue().names("format"):
        known |= set(re.findall(r"`(\w+)`", catalogue().get("format", name).doc()))
    nobody = [name for name in row if name not in known]
    return nobody, [f"--columns {name.lower()}={name}" for name in nobody if name.lower() in known]


def _recognised(part: Any, row: Mapping[str, Any], without: str) -> bool:
    rest = {name: value for name, value in row.items() if name != without}
    try:
        return bool(part.recognises and call_named(part.recognises, columns=frozenset(rest), row=rest))
    except Exception:  # it looks at what is not there
        return False


def _roles(part: Any, settings: Any, row: Mapping[str, Any], column: str) -> set[str]:
    """What changes without the column; where nothing can be made of the row then, where its texts stand."""
    try:
        whole = _made(part, settings, row)
    except ValueError:  # the row does not fit, whatever the column
        return set()
    try:
        rest = _made(part, settings, {name: value for name, value in row.items() if name != column})
    except Exception:  # the column is needed
        rest = []
    if not whole:
        return set()
    if not rest:
        return _standing(whole, row[column])
    roles = {"prompt": lambda e: e.prompt, "answer": lambda e: list(e.answers), "reward": lambda e: e.rewards}
    changed = {role for role, of in roles.items() if [of(e) for e in whole] != [of(e) for e in rest]}
    others = [[{k: v for k, v in e.columns.items() if k != column} for e in made] for made in (whole, rest)]
    if others[0] != others[1]:
        changed.add("labels")
    if column == "tools" and any(e.columns.get("tools") for e in whole):
        changed.add("tools")
    return changed


def _standing(examples: Sequence[Example], cell: Any) -> set[str]:
    """Whether texts of a cell stand in prompts or answers, or these in them; numbers are rewards."""
    said = [text for text in _texts(cell) if text.strip()]
    if not said:
        return {"reward"} if any(e.rewards for e in examples) else set()
    whole = {
        "prompt": [text for e in examples for text in _texts(e.prompt)],
        "answer": [text for e in examples for text in _texts(list(e.answers))],
    }
    same = {role for role, texts in whole.items() if any(one.strip() == text.strip() for one in said for text in texts)}
    return same or {
        role
        for role, texts in whole.items()
        if any(one.strip() in text or (text.strip() and text.strip() in one) for one in said for text in texts)
    }


def _made(part: Any, settings: Any, row: Mapping[str, Any]) -> list[Example]:
    made = call_named(part.convert, row=dict(row), settings=settings)
    return made if isinstance(made, list) else [made]


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value, but not the roles of a conversation."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in ("role", "from"):
                yield from _texts(inner)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)
