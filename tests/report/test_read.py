"""Files that a run is still writing, or that a kill cut off, are read as far as they go; what is lost is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.report.runs import sample
from unified import UserError
from unified.report.read import number, read_metrics, read_samples, spread


def test_half_a_last_line_is_not_there_yet_and_no_error(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    found = read_metrics(path)
    assert [row["step"] for row in found.rows] == [1]
    assert found.unreadable == 0


def test_a_line_in_the_middle_that_is_no_row_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\nnonsense\n[1]\n{"loss": 1}\n{"step": true}\n\xff\xfe\n\n{"step": 2}\n')
    found = read_metrics(path)
    assert [row["step"] for row in found.rows] == [1, 2]
    assert found.unreadable == 5  # nonsense, a list, no step, a truth value, bytes that are no text; not the empty line


def test_steps_that_were_done_again_replace_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s, "n": n}) + "\n" for n, s in enumerate([1, 2, 3, 2, 3])))
    found = read_metrics(path)
    assert [(row["step"], row["n"]) for row in found.rows] == [(1, 0), (2, 1), (2, 3), (3, 4)]
    assert found.replaced == 1


def test_a_file_that_is_not_there_has_no_rows(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "no").rows == []
    rows, counts = read_samples(tmp_path / "no", steps=3, characters=100, longest=10)
    assert (rows, counts["lines"]) == ([], 0)


def test_a_file_that_cannot_be_opened_is_a_mistake_that_can_be_mended(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_samples_of_a_few_steps_are_kept_the_first_and_the_last_among_them(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(sample(s, answer=f"a{s}")) + "\n\n" for s in range(1, 102) for _ in range(2)))
    rows, counts = read_samples(path, steps=5, characters=10_000, longest=100)
    assert [row[0] for row in rows] == [1, 1, 26, 26, 51, 51, 76, 76, 101, 101]
    assert [row[2] for row in rows[::2]] == ["a1", "a26", "a51", "a76", "a101"]
    assert counts == {"lines": 202, "steps": 101, "unreadable": 0, "cut": 0}


def test_long_texts_are_cut_with_their_length_and_many_leave_fewer_steps(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(sample(s, prompt="", answer="x" * 5000)) + "\n" for s in range(1, 9)))
    rows, counts = read_samples(path, steps=8, characters=300, longest=100)
    assert {row[2] for row in rows} == {"x" * 100 + " … (5,000 characters)"}
    assert [row[0] for row in rows] == [1, 8]  # 8 and 4 texts of 121 characters are more than 300
    assert counts["cut"] == 2


def test_evenly_spread_values_keep_both_ends() -> None:
    assert spread([1, 2, 3, 4, 5, 6, 7], 3) == [1, 4, 7]
    assert spread([1, 2], 3) == [1, 2]
    assert spread([1, 2, 3], 1) == [3]


def test_numbers_keep_the_digits_that_are_asked_for_and_whole_ones_lose_their_point() -> None:
    assert [number(v) for v in (1480.0, 0.123456789, 1e-7, 123456.7)] == [1480, 0.12346, 1e-7, 123460]
    assert json.dumps(number(2.0)) == "2"
