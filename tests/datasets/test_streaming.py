"""Rows that stay in their file: the same rows as without streaming, and nothing of them is held."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from unified import UserError, call_named, catalogue
from unified_plugins.datasets._streaming import Streamed

ROWS = [{"question": f"q{i} " + "ä" * (i % 7), "answer": f"a{i}", "weight": i} for i in range(50)]


def read(folder: Path, split: str = "train", **settings: Any) -> Any:
    part = catalogue().get("dataset", "files")
    return call_named(part.open, settings=part.settings(**settings), split=split, seed=0, folder=folder)


def write(folder: Path, kind: str) -> str:
    import pyarrow
    from pyarrow import ipc, parquet

    path, table = folder / f"x.{kind.split()[0]}", pyarrow.Table.from_pylist(ROWS)
    if kind == "jsonl":
        lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
        path.write_bytes(("\ufeff" + "\r\n\r\n".join(lines)).encode())  # a byte-order mark, empty lines, no end
    elif kind == "parquet":
        parquet.write_table(table, path, row_group_size=7)
    else:
        opener = ipc.new_file if kind == "arrow file" else ipc.new_stream
        with opener(str(path), table.schema) as out:
            out.write_table(table, max_chunksize=7)
    return path.name


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow", "arrow file"])
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_streamed_rows_are_those_that_are_held_in_any_order_of_asking(tmp_path: Path, kind: str, split: str) -> None:
    name = write(tmp_path, kind)
    held, streamed = read(tmp_path, split, path=name), read(tmp_path, split, path=name, streaming=True)
    assert isinstance(streamed, Streamed)
    assert len(held) == len(streamed) == {"train": 45, "held_out": 5}[split]
    order = list(range(len(held)))
    random.Random(0).shuffle(order)
    assert [streamed[i] for i in order] == [held[i] for i in order]
    assert (streamed[-1], streamed[1:4]) == (held[-1], held[1:4])
    assert list(streamed) == list(held)
    assert streamed.format == held.format == "question_answer"
    with pytest.raises(IndexError):
        streamed[len(held)]


def test_a_row_is_read_anew_each_time_and_not_kept(tmp_path: Path) -> None:
    rows = read(tmp_path, path=write(tmp_path, "jsonl"), streaming=True)
    assert rows[3] is not rows[3]
    kept = sum(len(a) * a.itemsize for a in (rows._shelf, rows._key, rows._number, rows._part))
    assert kept == 20 * len(rows)


def test_several_files_are_one_sequence_and_the_limit_counts_over_all(tmp_path: Path) -> None:
    for name, rows in (("a", ROWS[:3]), ("b", []), ("c", ROWS[3:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    streamed = read(tmp_path, path=".", streaming=True, held_out=0, limit=5)
    assert [e.columns["weight"] for e in streamed] == [0, 1, 2, 3, 4]
    assert [Path(e.columns["file"]).name for e in streamed] == ["a.jsonl"] * 3 + ["c.jsonl"] * 2
    assert [e.columns["row"] for e in streamed] == [1, 2, 3, 1, 2]
    assert list(streamed) == list(read(tmp_path, path=".", held_out=0, limit=5))


def test_a_file_that_changes_under_a_run_is_noticed_where_a_row_is_no_longer_there(tmp_path: Path) -> None:
    name = write(tmp_path, "jsonl")
    rows = read(tmp_path, path=name, streaming=True, held_out=0)
    (tmp_path / name).write_text(json.dumps(ROWS[0]) + "\n")
    with pytest.raises(UserError, match=r"x\.jsonl:99: the row is not what it was when the stage began"):
        rows[49]  # line 1 + 2 * 49


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl.gz", "x.json", "x.txt"])
def test_a_kind_whose_rows_cannot_be_read_one_by_one_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(
        UserError, match=r"(?s)`streaming` reads rows one by one.*\.jsonl, \.ndjson, \.parquet, \.arrow"
    ):
        read(tmp_path, path=name, streaming=True)
