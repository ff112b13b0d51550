"""What the columns of a file become: found out by leaving each of them out of the first rows. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unified.data import Example
from unified.registry import call_named, catalogue
from unified.settings import Chosen

#: what columns of questions, answers and what both are about are called, likeliest first
_NAMES = {
    "question": ("question", "problem", "query", "prompt", "task", "request", "instruction", "input"),
    "answer": ("answer", "solution", "response", "reply", "output", "completion", "result", "target"),
    "about": ("body", "context", "passage", "story", "paragraph", "background", "premise", "text"),
}
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


def unplaced(row: Mapping[str, Any]) -> list[str]:
    """Columns of a row that no format names."""
    known: set[str] = set()
    for name in catalogue().names("format"):
        known |= set(re.findall(r"`(\w+)`", catalogue().get("format", name).doc()))
    return [name for name in row if name not in known]


def renaming(row: Mapping[str, Any]) -> dict[str, str]:
    """`columns` with which exactly one format takes the row, by what its columns are called; {} where none is found.

    What a question is about (a body, a passage) stands before it, in `instruction`.
    """
    found = {role: _called(row, names) for role, names in _NAMES.items()}
    asked, answer, about = found["question"], found["answer"], found["about"]
    tried = [
        {"instruction": about, "input": asked, "output": answer},
        {"question": asked, "answer": answer},
        {"question": about, "answer": answer},
        {"prompt": asked, "answer": answer},
        {"prompt": asked},
        {"text": about},
    ]
    for columns in tried:
        named = {wanted: name for wanted, name in columns.items() if name is not None}
        if len(named) == len(columns) and _fits(row, named):
            return {wanted: name for wanted, name in named.items() if wanted != name}
    return {}


def _called(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The column whose name, in small letters and letters alone, is the first of these."""
    plain = {re.sub(r"[^a-z]", "", name.lower()): name for name, value in row.items() if value is not None}
    return next((plain[name] for name in names if name in plain), None)


def _fits(row: Mapping[str, Any], columns: Mapping[str, str]) -> bool:
    """Whether one format alone recognises the row under these names, and makes something of it."""
    renamed = {k: v for k, v in row.items() if k not in columns.values()} | {w: row[c] for w, c in columns.items()}
    parts = [catalogue().get("format", name) for name in catalogue().names("format")]
    fits = [part for part in parts if _recognised(part, renamed, "")]
    try:
        return len(fits) == 1 and bool(_made(fits[0], fits[0].settings(), renamed))
    except Exception:  # what stands in the columns is not for it
        return False


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
        return _standing(whole, row, column)
    roles = {"prompt": lambda e: e.prompt, "answer": lambda e: list(e.answers), "reward": lambda e: e.rewards}
    changed = {role for role, of in roles.items() if [of(e) for e in whole] != [of(e) for e in rest]}
    others = [[{k: v for k, v in e.columns.items() if k != column} for e in made] for made in (whole, rest)]
    if others[0] != others[1]:
        changed.add("labels")
    if column == "tools" and any(e.columns.get("tools") for e in whole):
        changed.add("tools")
    return changed


def _standing(examples: Sequence[Example], row: Mapping[str, Any], column: str) -> set[str]:
    """Whether texts of a column stand in prompts or answers, or these in them; other numbers are rewards.

    What stands whole in another column is not looked for inside longer texts: a short answer is in many of them.
    """
    said = [text for text in _texts_of(row[column]) if text.strip()]
    if isinstance(row[column], (int, float)):  # a number is an answer where one reads so
        said = [text for text in said if any(text == one.strip() for e in examples for one in _texts(list(e.answers)))]
    elsewhere = {text.strip() for name, other in row.items() if name != column for text in _texts_of(other)}
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
        if any(
            one.strip() in text or (text.strip() and text.strip() in one and text.strip() not in elsewhere)
            for one in said
            for text in texts
        )
    }


def _made(part: Any, settings: Any, row: Mapping[str, Any]) -> list[Example]:
    made = call_named(part.convert, row=dict(row), settings=settings)
    return made if isinstance(made, list) else [made]


def _texts_of(value: Any) -> Iterator[str]:
    """The texts in a value, numbers as they are read among them."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    yield from [str(value)] if isinstance(value, (int, float)) and not isinstance(value, bool) else _texts(value)


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
