"""The `data` command: what a dataset is taken for, what it holds, and how its rows look to a model.

Nothing is trained and no weights are loaded; with `--model` its tokenizer and configuration are.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from unified.data import Example
from unified.data_columns import Column, columns_of, renaming, unplaced
from unified.data_rows import Shown, messages_shown, rendered_shown
from unified.errors import FormatError, UserError
from unified.made import files_of
from unified.manifest import MANIFEST, chosen_parts, read_manifest
from unified.named_models import path_problem
from unified.recipe import paths_as_files
from unified.registry import call_named, catalogue
from unified.render import CHUNK, Renderer
from unified.settings import Chosen, Settings, choice, parse
from unified.stage import ModelSettings
from unified.tree import Node, Place, located, read_yaml

#: rows longer than the limit, and rows in each place, that are named
NAMED = 5
BARS = 10
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass
class Lengths:
    """Of prompts or answers: least, median, 90 and 99 of 100, most; histogram: (from, up to, how many)."""

    number: int
    least: int
    median: int
    p90: int
    p99: int
    most: int
    histogram: list[tuple[int, int, int]]


@dataclass
class Source:
    """A dataset inside another one: its file or id, its format, what this was recognised by, its columns."""

    dataset: str
    recognised: str
    why: str
    columns: list[Column]


@dataclass
class Looked:
    """What is known of a dataset.

    recognised: its format, None where no format or several fit; then `needs` says what these take, and `unplaced`
    which columns none of them names. sources: the datasets that it is made of. why: what it was recognised by.
    rows: examples; answers: in all.
    left_out: rows by what would become of them (skipped, too long, changed by the template); places: the first of each.
    unit: of the lengths, "tokens" or "characters"; limit: of prompt with answer, in tokens.
    over: rows over the limit; cut_prompt, cut_answer: of these, how many each policy would keep.
    repeated: rows that an earlier one says word for word; repeated_prompts: that have the prompt of an earlier one.
    system, empty_system: prompts with a system message, and of these those where it says nothing.
    trained: tokens that are learned, of all.
    """

    file: str
    dataset: dict[str, Any]
    recognised: str | None = None
    why: str = ""
    about: str = ""
    columns: list[Column] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    unplaced: list[str] = field(default_factory=list)
    needs: dict[str, str] = field(default_factory=dict)
    advice: list[str] = field(default_factory=list)
    rows: int = 0
    answers: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    places: list[str] = field(default_factory=list)
    unit: str = "characters"
    limit: int | None = None
    over: dict[str, int] = field(default_factory=dict)
    prompt: Lengths | None = None
    answer: Lengths | None = None
    trained: int | None = None
    tokens: int | None = None
    repeated: int = 0
    repeated_prompts: int = 0
    system: int = 0
    empty_system: int = 0
    shown: list[Shown] = field(default_factory=list)


class _Asked(Settings):
    """What may be asked about."""

    data: Chosen = choice("dataset", description="a dataset, or the path of a file")


def look(
    text: str,
    *,
    format: str | None = None,
    columns: Iterable[str] = (),
    model: str | None = None,
    max_length: int | None = None,
    split: str | None = None,
    rows: int = 3,
    home: Path | None = None,
) -> Looked:
    """Everything that can be told of a dataset.

    Args:
        text: a file, a folder, a pattern, the folder of a stage that made a dataset, a hub id OWNER/NAME, the name of a
            dataset, or a mapping as a recipe writes it.
        format, columns: as `format:` and `columns:` of a recipe, the latter as texts "wanted=column".
        model: a folder or hub id, for its tokenizer. max_length: tokens; without, what the model can hold.
        split: "train" or "held_out", as a stage would see it; without, all rows (of a mixture, those trained on).
        rows: how many are shown.
    Raises:
        UserError: a file that cannot be read, a tokenizer that is not there, a setting that makes no sense.
    """
    home = home or Path()
    if max_length is not None and model is None:
        raise UserError("--max-length counts tokens, so it needs a tokenizer", "give --model, a folder or a hub id")
    if split not in (None, "train", "held_out"):
        raise UserError(f"--split is train or held_out, not '{split}'", "without it, all rows are looked at")
    data = _chosen(text, format, columns, split, home)
    looked = Looked(text, data.as_dict())
    try:
        where = {"split": split or "train", "seed": 0, "folder": home}
        examples: Sequence[Example] = call_named(data.part.open, settings=data.settings, **where)
    except FormatError as error:
        looked.columns = [Column(name, [], _kind(value)) for name, value in error.row.items()]
        looked.unplaced = unplaced(error.row)
        looked.advice = _advice(renaming(error.row), data)
        looked.needs, looked.why = error.needs, str(error).splitlines()[0]
        return looked
    looked.recognised = str(getattr(examples, "format", "")) or data.name
    looked.columns, looked.why, looked.about = columns_of(data, examples)
    looked.sources = [_source(inner, where) for inner in chosen_parts(data.settings) if inner.part.kind == "dataset"]
    looked.rows, looked.answers = len(examples), sum(len(one.answers) for one in examples)
    looked.left_out = dict(getattr(examples, "counts", {}))
    looked.places = list(getattr(examples, "problems", []))
    _count_repeated(looked, examples)
    if model is None:
        _measure_text(looked, examples)
        looked.shown = [messages_shown(one, place(one, i)) for i, one in enumerate(examples[:rows])]
    else:
        _measure_tokens(looked, examples, model, max_length, home, rows)
    return looked


def _advice(columns: Mapping[str, str], data: Chosen) -> list[str]:
    """A line of `columns` for a recipe, and the same for the command line; names are those of the file."""
    given: Mapping[str, str] = getattr(data.settings, "columns", {})
    named = {wanted: given.get(name, name) for wanted, name in columns.items()}
    if not named:
        return []
    written = yaml.safe_dump(named, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True).strip()
    return [f"columns: {written}", " ".join(shlex.quote(f"--columns={w}={name}") for w, name in named.items())]


# --- which dataset ---


def _chosen(text: str, format: str | None, columns: Iterable[str], split: str | None, home: Path) -> Chosen:
    """The dataset that a text means; what would stop a stage is skipped and counted."""
    wrong: list[Any] = []
    node, at = _written(text, home, wrong), Place(text)
    made = paths_as_files(Node({"data": node}, at), _Asked, home).get("data")
    value = made.plain() if made is not None else None
    told: dict[str, Any] = {"name": value} if isinstance(value, str) else dict(value) if value else {}
    if format is not None:
        told["format"] = read_yaml(format, "--format", wrong, lines=False).plain()
    pairs = [pair.partition("=") for pair in columns]
    bad = next((f"{a}{b}{c}" for a, b, c in pairs if not (a and c)), None)
    if bad is not None:
        raise UserError(f"--columns {bad}: write WANTED=COLUMN", "for example --columns prompt=Question")
    if pairs:
        told["columns"] = {**told.get("columns", {}), **{a.strip(): c.strip() for a, _, c in pairs}}
    known = _settings_of(told.get("name"))
    if "bad_rows" in known:
        told.setdefault("bad_rows", "skip")
    if "held_out" in known and split is None and "held_out_path" not in told:
        told["held_out"] = 0
    asked, problems = parse(_Asked, {"data": told}, owner="the data")
    if asked is None or wrong:
        raise UserError("\n".join([*(p.text(str(w)) for w, p in wrong), *(p.text() for p in problems)]))
    data: Chosen = asked.data
    return data


def _written(text: str, home: Path, wrong: list[Any]) -> Node:
    """A text as a recipe would have it under `data`."""
    path = home / Path(text).expanduser()
    if (path / MANIFEST).is_file():
        manifest = read_manifest(path)
        if manifest is not None and manifest.dataset is not None:
            return located({"name": "files", **files_of(manifest.dataset, path)}, Place(text))
    if text.lstrip().startswith("{"):
        return read_yaml(text, "FILE", wrong, lines=False)
    if path.exists():
        return located({"name": "files", "path": text}, Place(text))
    if _HUB_ID.fullmatch(text) and not path.parent.is_dir():
        return located({"name": "hub", "id": text}, Place(text))
    known = catalogue().find("dataset", text) is not None
    return located(text if known else {"name": "files", "path": text}, Place(text))


def _settings_of(name: Any) -> Mapping[str, Any]:
    part = catalogue().find("dataset", name) if isinstance(name, str) else None
    return part.settings.model_fields if part is not None else {}


def _called(data: Chosen) -> str:
    """A dataset by its file or hub id, else by its name."""
    return str(getattr(data.settings, "path", None) or getattr(data.settings, "id", None) or data.name)


def _source(data: Chosen, where: Mapping[str, Any]) -> Source:
    """One of the datasets that a mixture is made of; UserError was told when the mixture was opened."""
    examples: Sequence[Example] = call_named(data.part.open, settings=data.settings, **where)
    columns, why, _ = columns_of(data, examples)
    return Source(_called(data), str(getattr(examples, "format", "")) or data.name, why, columns)


# --- what is in it ---


def place(example: Example, number: int) -> str:
    """Where a row stands: file and line, or its number from 0."""
    file, line = example.columns.get("file"), example.columns.get("row")
    return f"row {number}" if file is None or line is None else f"{file}:{line}"


def _kind(value: object) -> str:
    names = {str: "text", bool: "true or false", int: "number", float: "number", list: "list", dict: "object"}
    return "empty" if value is None else names.get(type(value), type(value).__name__)


def _count_repeated(looked: Looked, examples: Sequence[Example]) -> None:
    """Rows that repeat earlier ones, and system messages."""
    whole: set[bytes] = set()
    prompts: set[bytes] = set()
    for number, one in enumerate(examples):
        asked, said = _digest(one.prompt), _digest([one.prompt, list(one.answers)])
        if said in whole:
            looked.repeated += 1
            if looked.repeated <= NAMED:
                looked.places.append(f"{place(one, number)}: repeated (an earlier row says the same)")
        looked.repeated_prompts += asked in prompts
        whole.add(said)
        prompts.add(asked)
        if not isinstance(one.prompt, str) and one.prompt and one.prompt[0].get("role") == "system":
            looked.system += 1
            looked.empty_system += not str(one.prompt[0].get("content") or "").strip()


def _digest(said: Any) -> bytes:
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).digest()


def _measure_text(looked: Looked, examples: Sequence[Example]) -> None:
    looked.prompt = lengths([len(_text(one.prompt)) for one in examples])
    looked.answer = lengths([len(_text(answer)) for one in examples for answer in one.answers])


def _text(said: Any) -> str:
    """Text, or what the turns of a conversation say."""
    return said if isinstance(said, str) else "".join(str(turn.get("content") or "") for turn in said)


def _measure_tokens(
    looked: Looked, examples: Sequence[Example], model: str, max_length: int | None, home: Path, rows: int
) -> None:
    """Every row as tokens, chunk by chunk; rows over the limit are tried with each way of cutting them."""
    from unified.models import base_context, base_tokenizer  # loads torch

    settings = ModelSettings(path=model, new=None, tokenizer=None)
    if (problem := path_problem(model, home, (), [])) is not None:
        raise UserError(f"--model: {problem.text()}")
    tokenizer = base_tokenizer(settings, home)
    looked.unit, looked.limit = "tokens", max_length or base_context(settings, home)
    whole, fitting = Renderer(tokenizer, sys.maxsize), Renderer(tokenizer, looked.limit)
    prompts, answers, done = list[int](), list[int](), Counter(looked.left_out)
    looked.trained = looked.tokens = 0
    for first in range(0, len(examples), CHUNK):
        numbers = range(first, min(first + CHUNK, len(examples)))
        chunk = [examples[i] for i in numbers]
        for i, one, made in zip(numbers, chunk, whole.groups(chunk, numbers=numbers), strict=True):
            if isinstance(made, ValueError):
                done["not_rendered"] += 1
                _name(looked, done, "not_rendered", f"{place(one, i)}: not_rendered ({made})")
                continue
            group, said = made
            prompts.append(len(group.prompt))
            answers += [len(answer.ids) for answer in group.answers]
            looked.trained += sum(sum(a.loss_mask) if a.loss_mask else len(a.ids) for a in group.answers)
            looked.tokens += len(group.prompt) + sum(len(answer.ids) for answer in group.answers)
            for name, number in said.items():
                done[name] += number
                _name(looked, done, name, f"{place(one, i)}: {name}")
            if i < rows:
                looked.shown.append(rendered_shown(group, tokenizer, place(one, i)))
            longest = len(group.prompt) + max((len(a.ids) for a in group.answers), default=0)
            if longest > looked.limit:
                _count_over(looked, fitting, one, i)
                if looked.over["rows"] <= NAMED:
                    looked.places.append(f"{place(one, i)}: too long ({longest} tokens, the limit is {looked.limit})")
    looked.left_out = dict(+done)
    looked.prompt, looked.answer = lengths(prompts), lengths(answers)


def _count_over(looked: Looked, renderer: Renderer, example: Example, number: int) -> None:
    """Whether each policy for a row over the limit would keep it."""
    looked.over["rows"] = looked.over.get("rows", 0) + 1
    ways: tuple[Any, ...] = ("cut_prompt", "cut_answer")
    for policy in ways:
        (made,) = renderer.groups([example], numbers=[number], too_long=policy)
        looked.over[policy] = looked.over.get(policy, 0) + (not isinstance(made, ValueError))


def _name(looked: Looked, done: Counter[str], name: str, text: str) -> None:
    if done[name] <= NAMED:
        looked.places.append(text)


def lengths(values: Sequence[int]) -> Lengths | None:
    """How long things are, by nearest rank: the least length that p of 100 do not exceed. None for nothing."""
    if not values:
        return None
    ordered = sorted(values)

    def at(percent: int) -> int:
        return ordered[max(-(-percent * len(ordered) // 100) - 1, 0)]

    return Lengths(len(ordered), ordered[0], at(50), at(90), at(99), ordered[-1], histogram(ordered, at(99)))


def histogram(ordered: Sequence[int], high: int) -> list[tuple[int, int, int]]:
    """(from, up to, how many) in steps of 1, 2 or 5 times a power of ten, at most BARS of them up to `high`.

    The last one reaches to the longest; ordered: lengths, shortest first.
    """
    widths = (step * 10**power for power in count() for step in (1, 2, 5))
    width = next(w for w in widths if (high - ordered[0] // w * w) // w < BARS)
    start = ordered[0] // width * width
    bars = [0] * ((high - start) // width + 1)
    for value in ordered:
        bars[min((value - start) // width, len(bars) - 1)] += 1
    ends = [start + width * (i + 1) - 1 for i in range(len(bars))]
    ends[-1] = max(ends[-1], ordered[-1])
    return [(start + width * i, end, number) for i, (end, number) in enumerate(zip(ends, bars, strict=True))]
