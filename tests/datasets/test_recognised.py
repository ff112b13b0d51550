"""A format is recognised by the first rows of a file, not by the first row alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unified import UserError, call_named, catalogue
from unified.data_tool import look
from unified.settings import parse
from unified_plugins.datasets._examples import LOOKED_AT

ASKED = {"prompt": "2+3=", "completion": "5"}
PAIR = {"prompt": "2+3=", "chosen": "5", "rejected": "6"}


def read(folder: Path, rows: list[Any], **settings: Any) -> Any:
    (folder / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    part = catalogue().get("dataset", "files")
    parsed, problems = parse(part.settings, {"path": "x.jsonl", "held_out": 0, **settings}, owner="dataset 'files'")
    assert not problems
    return call_named(part.open, settings=parsed, split="train", seed=0, folder=folder)


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_two_formats_are_said_to_be_mixed_with_the_first_line_of_each(streaming: bool, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        read(tmp_path, [ASKED, ASKED, PAIR, ASKED, PAIR], streaming=streaming)
    first, *lines = str(raised.value).splitlines()
    assert first == f"{tmp_path}/x.jsonl: its rows are of several formats"
    assert lines[:2] == [
        "    'prompt_completion' from row 1: completion, prompt",
        "    'preference' from row 3: chosen, prompt, rejected",
    ]
    assert "name: mixture" in lines[2]


def test_the_page_of_a_mixed_file_names_the_formats_and_ends_without_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps(ASKED) + "\n" + json.dumps(PAIR) + "\n")
    found = look("x.jsonl", home=tmp_path)
    assert (found.recognised, set(found.needs)) == (None, {"prompt_completion", "preference"})
    assert found.why.endswith("its rows are of several formats")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_first_row_that_fits_nothing_does_not_decide(streaming: bool, tmp_path: Path) -> None:
    rows = read(tmp_path, [{"comment": "of 2024"}, ASKED, ASKED], bad_rows="skip", streaming=streaming)
    assert (rows.format, len(rows), rows.counts) == ("prompt_completion", 2, {"skipped_bad": 1})


def test_a_first_row_that_fits_two_formats_is_told_apart_by_the_others(tmp_path: Path) -> None:
    class_of_news = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    judged = {**class_of_news, "label": True}
    with pytest.raises(UserError, match=r"'messages' from row 1: .*\n.*'unpaired' from row 2: "):
        read(tmp_path, [class_of_news, judged])


def test_rows_most_of_which_fit_nothing_are_of_no_format(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no format fits its columns\n    the file has: comment"):
        read(tmp_path, [{"comment": "x"}, {"comment": "y"}, ASKED])


def test_a_format_that_is_named_is_not_asked_what_the_rows_are(tmp_path: Path) -> None:
    rows = read(tmp_path, [ASKED, PAIR], format="prompt_completion", bad_rows="skip")
    assert (len(rows), rows.counts) == (1, {"skipped_bad": 1})


def test_rows_far_behind_the_first_ones_are_held_against_what_these_were(tmp_path: Path) -> None:
    many = [ASKED] * LOOKED_AT
    with pytest.raises(UserError, match=rf"x.jsonl:{LOOKED_AT + 1}: no column 'completion'"):
        read(tmp_path, [*many, PAIR])
    with pytest.raises(UserError, match=rf"'preference' from row {LOOKED_AT}: "):
        read(tmp_path, [*many[1:], PAIR])


def test_the_limit_holds_for_what_a_format_is_recognised_by(tmp_path: Path) -> None:
    assert read(tmp_path, [ASKED, PAIR], limit=1).format == "prompt_completion"
    assert read(tmp_path, [ASKED, PAIR], limit=1, streaming=True).format == "prompt_completion"
