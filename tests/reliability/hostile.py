"""Hostile inputs: mutated recipes, mutated data files, and prompt groups that no sound source would give.

    python -m tests.reliability.hostile --recipes 2000 --files 2000 --steps 200

Each input is either taken, or refused with an error that says what is wrong; a recipe writes nothing. Printed are the
counts by outcome; the last line is JSON. Exit code 1 where there is a defect; --keep FOLDER has what caused them.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from tests.reliability._mutations import NASTY, byte_changes, bytes_changed, changed, changes, scalars
from tests.reliability._outcomes import Outcomes, Unclear, each, judged, tree_of
from unified import UserError

RECIPES = Path(__file__).parents[2] / "recipes"
#: bytes of address space: an input that makes a reader take more is a defect, not the end of the machine
MEMORY = 12 << 30
#: of a message; what is longer hides what it says
LONGEST_MESSAGE = 60_000
MODEL = {"new": {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
                 "num_attention_heads": 2, "max_position_embeddings": 64}, "tokenizer": "random_walks"}  # fmt: skip
#: small recipes, which have what the published ones lack: files, rounds, terms, defaults, rewards that ask others
SMALL: list[dict[str, Any]] = [
    {"name": "a", "model": MODEL, "stages": {"one": {"algorithm": "sft", "data": "rows.jsonl", "max_steps": 1}}},
    {"name": "b", "model": "./base", "defaults": {"batch_size": 4, "learning_rate": "1e-5"}, "stages": {
        "one": {"algorithm": "sft", "data": {"name": "files", "path": "rows.jsonl", "columns": {"prompt": "prompt"}}},
        "two": {"terms": [{"algorithm": {"name": "dpo", "beta": 0.1}}, {"algorithm": "sft", "on": "best"}],
                "model": "stage:one", "data": "pairs.csv", "reference": "stage:one"},
    }, "profiles": {"mini": {"stages": {"one": {"max_steps": 1}}}}, "expect": [{"stage": "two", "metric": "loss"}]},
    {"name": "c", "model": MODEL, "seed": 1, "threads": 1, "stages": {"loop": {"repeat": 2, "stages": {
        "gen": {"kind": "sample", "data": {"name": "random_walks", "view": "prompts"}, "reward": "random_walks"},
        "fit": {"algorithm": "sft", "model": "base", "data": "stage:gen"}}}}},
    {"name": "d", "model": MODEL, "stages": {"rl": {
        "algorithm": {"name": "grpo", "kl_weight": 0.1}, "data": {"name": "random_walks", "view": "prompts"},
        "reward": {"name": "server", "url": "http://127.0.0.1:9/", "api_key_env": "NOBODY_KEY"},
        "source": {"group_size": 2, "max_tokens": 4}, "evaluation": {"reward": "random_walks"}}}},
    {"name": "e", "model": MODEL, "stages": {
        "merge": {"kind": "merge", "models": ["base", "./base"]},
        "look": {"kind": "evaluate", "data": "random_walks", "reward": "random_walks"}}},
]  # fmt: skip
ROWS: list[list[dict[str, Any]]] = [
    [{"prompt": "a b", "completion": "c d"}, {"prompt": "e", "completion": "f g"}],
    [{"prompt": "a", "chosen": "b c", "rejected": "d"}, {"prompt": "e", "chosen": "f", "rejected": "g h"}],
    [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}] * 2,
    [{"prompt": "a", "completion": "b", "label": True}, {"prompt": "a", "completion": "c", "label": False}],
    [{"prompt": "a", "completions": ["b", "c"], "labels": [True, False]}] * 2,
    [{"prompt": "a", "answers": ["b", "c", "d"], "rewards": [1.0, 0.5, 0.0]}] * 2,
    [{"prompt": "a", "answer": "7"}, {"prompt": "b", "answer": "8"}],
    [{"instruction": "a", "input": "", "output": "b"}, {"instruction": "a", "input": "c", "output": "d"}],
    [{"text": "a b c"}, {"text": "d e f"}],
    [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}] * 2,
    [{"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}] * 2,
    [{"prompt": "a", "responses": [{"text": "b", "score": 1}, {"text": "c", "score": 2}]}] * 2,
]
KINDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".jsonl.gz", ".json.gz", ".csv.gz", ".ndjson")


# --- recipes ---


def bases() -> list[Any]:
    """The trees that are mutated: every published recipe, and the small ones as often."""
    published = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(RECIPES.glob("*.yaml"))]
    return published + SMALL * max(1, len(published) // len(SMALL))


def recipe_texts() -> st.SearchStrategy[tuple[bytes, str | None, tuple[str, ...]]]:
    """(bytes of a recipe, a profile, texts of --set)."""
    of_tree = st.tuples(st.sampled_from(bases()), st.lists(changes, min_size=1, max_size=3)).map(_dumped)
    text = st.builds(bytes_changed, of_tree, st.just([]) | st.just([]) | st.lists(byte_changes, max_size=2))
    keys = st.sampled_from(
        ["name", "seed", "stages.one.max_steps", "stages.one", "model.path", "defaults.batch_size", "x"]
    )
    override = st.one_of(st.builds(lambda key, value: f"{key}={value}", keys, scalars), st.sampled_from(NASTY))
    profile = st.sampled_from([None, None, None, "mini", "nowhere", "../x"])
    return st.tuples(text, profile, st.lists(override, max_size=1).map(tuple))


def _dumped(drawn: tuple[Any, list[Any]]) -> bytes:
    text = yaml.safe_dump(changed(*drawn), sort_keys=False, allow_unicode=True)
    return text.encode("utf-8", errors="surrogatepass")


def try_recipes(number: int, folder: Path, keep: Path | None = None, *, start: int = 0) -> Outcomes:
    """Check so many mutated recipes, as `unified check` does."""
    from tests.tools import letter_tokenizer, tiny_config

    outcomes = Outcomes()
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "rows.jsonl", ROWS[0] * 4)
    (folder / "pairs.csv").write_text("prompt,chosen,rejected\na,b,c\nd,e,f\ng,h,i\n")
    letter_tokenizer().save_pretrained(folder / "base")
    tiny_config().save_pretrained(folder / "base")
    path = folder / "recipe.yaml"

    def one(drawn: tuple[bytes, str | None, tuple[str, ...]]) -> None:
        text, profile, sets = drawn
        path.write_bytes(text)
        before, defects = tree_of(folder), len(outcomes.defects)
        judged(outcomes, lambda: _checked(path, sets, profile), f"profile {profile!r}, sets {sets!r}")
        if tree_of(folder) != before:
            outcomes.note("defect: written", str(set(tree_of(folder)) ^ set(before)))
        _kept(outcomes, defects, path, keep)

    with _working_in(folder):
        each(recipe_texts(), number, one, start=start)
    return outcomes


def _checked(path: Path, sets: tuple[str, ...], profile: str | None) -> str:
    from unified.check import check_recipe
    from unified.recipe import load_recipe

    try:
        plan = check_recipe(load_recipe(path, sets, profile))
    except UserError as error:
        return _refused(error)
    for stage in plan.stages:
        stage.describe()
    return "taken"


# --- data files ---


def data_files() -> st.SearchStrategy[tuple[str, bytes]]:
    """(ending, bytes) of a file of rows."""
    rows = st.builds(changed, st.sampled_from(ROWS), st.lists(changes, max_size=3))
    written = st.tuples(st.sampled_from(KINDS), rows).map(lambda drawn: (drawn[0], _encoded(*drawn)))
    return st.builds(
        lambda pair, many, pack: (pair[0], _packed(pair[0], bytes_changed(pair[1], many), pack)),
        written, st.lists(byte_changes, max_size=2), st.sampled_from(["whole", "whole", "cut", "plain"]),
    )  # fmt: skip


def _encoded(ending: str, rows: Any) -> bytes:
    """The rows as a file of that kind, as far as it can hold them; else as JSON under a false name."""
    rows = rows if isinstance(rows, list) else [rows]
    try:
        if ending.startswith(".json") and not ending.startswith(".jsonl"):
            return json.dumps(rows).encode()
        if ending in (".parquet", ".arrow"):
            return _table(ending, rows)
        if ending.startswith((".csv", ".tsv")):
            return _separated("\t" if ending == ".tsv" else ",", rows)
        if ending == ".txt":
            return "\n\n".join(str(row) for row in rows).encode("utf-8", errors="surrogatepass")
    except (ValueError, TypeError, AttributeError, OverflowError, UnicodeError, RecursionError, ArithmeticError):
        pass
    except Exception as error:  # pyarrow's errors have no common base outside it
        if not type(error).__module__.startswith("pyarrow"):
            raise
    return b"\n".join(json.dumps(row).encode() for row in rows)


def _table(ending: str, rows: list[Any]) -> bytes:
    import pyarrow
    from pyarrow import ipc, parquet

    table, sink = pyarrow.Table.from_pylist(rows), io.BytesIO()
    if table.num_columns and len(str(rows)) % 5 == 0:  # a name that two columns have
        table = table.append_column(table.column_names[0], table.column(0))
    if ending == ".parquet":
        parquet.write_table(table, sink)
    else:
        with (ipc.new_file if len(rows) % 2 else ipc.new_stream)(sink, table.schema) as writer:
            writer.write_table(table)
    return sink.getvalue()


def _separated(delimiter: str, rows: list[Any]) -> bytes:
    import csv

    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, names, delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", errors="surrogatepass")


def _packed(ending: str, data: bytes, how: str) -> bytes:
    import gzip

    if not ending.endswith(".gz") or how == "plain":
        return data
    packed = gzip.compress(data, mtime=0)
    return packed[: len(packed) * 2 // 3] if how == "cut" else packed


def try_files(number: int, folder: Path, keep: Path | None = None, *, start: int = 0) -> Outcomes:
    """Read and render so many mutated files, three ways each: looked at, strictly, and streamed where they can be."""
    from tests.tools import letter_tokenizer, tiny_config

    outcomes = Outcomes()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = letter_tokenizer()
    tokenizer.save_pretrained(folder / "base")
    tiny_config().save_pretrained(folder / "base")
    count = [0]

    def one(drawn: tuple[str, bytes]) -> None:
        ending, data = drawn
        count[0] += 1
        path = folder / f"rows{ending}"
        path.write_bytes(data)
        defects = len(outcomes.defects)
        model = str(folder / "base") if count[0] % 2 else None
        judged(outcomes, lambda: _looked(path, model), f"looked at {path.name}")
        for streaming in (False, True):
            judged(outcomes_of_rows, lambda s=streaming: _rendered(path, tokenizer, s), f"opened {path.name}")
        outcomes.defects += outcomes_of_rows.defects
        outcomes_of_rows.defects.clear()
        _kept(outcomes, defects, path, keep)
        path.unlink()

    outcomes_of_rows = Outcomes()
    each(data_files(), number, one, start=start)
    return outcomes


def _looked(path: Path, model: str | None) -> str:
    from rich.console import Console

    from unified.as_json import plain
    from unified.data_page import show
    from unified.data_tool import look

    try:
        found = look(str(path), model=model)
    except UserError as error:
        return _refused(error, path)
    json.dumps(plain(found), allow_nan=False)
    show(Console(file=io.StringIO()), found)
    return "taken" if found.recognised else "no format"


def _rendered(path: Path, tokenizer: Any, streaming: bool) -> str:
    from unified.registry import call_named
    from unified.render import Renderer, render_rows
    from unified.settings import choose

    written = {"name": "files", "path": path.name, "held_out": 0, "streaming": streaming}
    data, problems = choose("dataset", written)
    assert data is not None, problems
    try:
        rows = call_named(data.part.open, settings=data.settings, split="train", seed=0, folder=path.parent)
        rows = [rows[i] for i in range(len(rows))]
    except UserError as error:
        return _refused(error, path)
    try:
        render_rows(Renderer(tokenizer, 64), rows, needs_answers=0, too_long="drop", reserve=0)
    except UserError as error:
        return _refused(error)
    return "taken"


def _refused(error: UserError, path: Path | None = None) -> str:
    """ "refused", if the error says what is wrong, and in which file."""
    text = str(error)
    if not text.strip() or len(text) > LONGEST_MESSAGE:
        raise Unclear(f"a message of {len(text)} characters: {text[:300]}")
    if path is not None and path.name not in text:
        raise Unclear(f"the message names no file: {text[:300]}")
    return "refused"


# --- the command ---


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _kept(outcomes: Outcomes, defects: int, path: Path, keep: Path | None) -> None:
    if keep is not None and len(outcomes.defects) > defects:
        keep.mkdir(parents=True, exist_ok=True)
        target = keep / f"{len(outcomes.defects):04d}-{path.name}"
        target.write_bytes(path.read_bytes())
        target.with_name(target.name + ".why").write_text(
            "\n".join(outcomes.defects[defects:]), encoding="utf-8", errors="backslashreplace"
        )


class _working_in:  # noqa: N801 - reads as a verb where it is used
    """The working folder for a while, so that what a run would write to is seen."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        self.before = Path.cwd()
        os.chdir(self.folder)

    def __exit__(self, *_: object) -> None:
        os.chdir(self.before)


def main(arguments: list[str] | None = None) -> int:
    """Try everything and print the counts; 1 where there is a defect."""
    from tests.reliability._steps import try_steps

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("recipes", 2000), ("files", 2000), ("steps", 200), ("start", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--keep", type=Path, help="a folder for the inputs that are defects")
    asked = parser.parse_args(arguments)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    total: dict[str, dict[str, int]] = {}
    defects: list[str] = []
    suites: dict[str, Callable[..., Outcomes]] = {"recipes": try_recipes, "files": try_files, "steps": try_steps}
    with tempfile.TemporaryDirectory() as folder:
        for name, work in suites.items():
            found = work(getattr(asked, name), Path(folder) / name, asked.keep, start=asked.start)
            total[name] = {"tried": found.tried, **dict(sorted(found.counts.items()))}
            defects += found.defects
            print(f"{name}: " + ", ".join(f"{number} {what}" for what, number in total[name].items()), flush=True)
    for defect in defects[:40]:
        print(defect.encode("utf-8", errors="backslashreplace").decode(), file=sys.stderr)
    print(json.dumps({**total, "defects": len(defects)}))
    return 1 if defects else 0


if __name__ == "__main__":
    sys.exit(main())
