"""Rows that ask for a program: MBPP and HumanEval, as they are published."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.tools import SHARED
from unified import Example, call_named, catalogue

MBPP = {
    "text": "Write a function to add.", "code": "def add(a, b):\r\n  return a + b", "task_id": 3, "test_setup_code": "",
    "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"], "challenge_test_list": [],
}  # fmt: skip
HUMANEVAL = {
    "task_id": "HumanEval/0", "prompt": "def one():\n    '''Return 1.'''\n", "canonical_solution": "    return 1\n",
    "test": "def check(candidate):\n    assert candidate() == 1\n", "entry_point": "one",
}  # fmt: skip


def convert(name: str, row: dict[str, Any], **settings: Any) -> Example:
    part = catalogue().get("format", name)
    out: Example = call_named(part.convert, row=row, settings=part.settings(**settings))
    return out


def recognised(row: dict[str, Any]) -> list[str]:
    known = catalogue()
    parts = [known.get("format", name) for name in known.names("format")]
    return [p.name for p in parts if call_named(p.recognises, columns=frozenset(row), row=row)]


def test_the_prompt_of_mbpp_is_the_papers_with_the_tests_shown() -> None:
    asked = (
        "You are an expert Python programmer, and here is your task: Write a function to add. "
        "Your code should pass these tests:\n\nassert add(1, 2) == 3\nassert add(0, 0) == 0\n"
    )
    assert convert("mbpp", MBPP).prompt == [{"role": "user", "content": asked}]
    assert convert("mbpp", MBPP, chat=False).prompt == asked + "[BEGIN]\n"


def test_the_answer_of_mbpp_is_its_code_with_plain_line_ends_and_the_row_stays() -> None:
    example = convert("mbpp", MBPP)
    assert example.answers == ["def add(a, b):\n  return a + b"]
    assert example.columns == MBPP
    assert example.rewards is None


def test_the_sanitized_rows_have_their_task_in_prompt() -> None:
    row = {
        "prompt": "Add.",
        "code": "x = 1",
        "test_imports": ["import math"],
        "test_list": ["assert x == 1"],
        "task_id": 2,
    }
    assert recognised(row) == ["mbpp"]
    assert "your task: Add. Your code" in convert("mbpp", row, chat=False).prompt  # type: ignore[operator]


def test_an_answer_of_humaneval_continues_its_prompt() -> None:
    example = convert("humaneval", HUMANEVAL)
    assert (example.prompt, example.answers) == (HUMANEVAL["prompt"], [HUMANEVAL["canonical_solution"]])
    assert example.columns == HUMANEVAL
    assert convert("humaneval", HUMANEVAL, chat=True).prompt == [{"role": "user", "content": HUMANEVAL["prompt"]}]


def test_each_is_recognised_by_its_columns_and_by_one_format_only() -> None:
    assert recognised(MBPP) == ["mbpp"]
    assert recognised(HUMANEVAL) == ["humaneval"]
    assert recognised({"text": "", "code": ""}) == []


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("mbpp", {**MBPP, "test_list": "assert True"}, "'test_list' must be a list of asserts"),
        ("mbpp", {**MBPP, "test_list": []}, "with at least one"),
        ("mbpp", {**MBPP, "code": None}, "column 'code' is empty"),
        ("humaneval", {**HUMANEVAL, "entry_point": None}, "column 'entry_point' is empty"),
    ],
)
def test_a_row_that_cannot_be_judged_says_why(name: str, row: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        convert(name, row)


def test_every_published_mbpp_row_is_recognised_and_converted() -> None:
    path = SHARED / "data" / "code" / "mbpp.jsonl"
    if not path.exists():
        pytest.skip("the MBPP rows are not beside the checkout")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 474
    assert {tuple(recognised(row)) for row in rows} == {("mbpp",)}
    assert all(len(convert("mbpp", row).answers) == 1 for row in rows)
