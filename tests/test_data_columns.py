"""Columns that `unified data` cannot place: what it says to try works; and the columns of every source of a mixture."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.test_data_tool import becomes, unified, write
from unified.data_tool import look


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


BODY = {"ID": 1, "Body": "He has 2 and 3.", "Question": "How many?", "Equation": "2 + 3", "Answer": 5.0, "Type": "+"}


@pytest.mark.parametrize(
    ("row", "columns", "prompt"),
    [
        (BODY, "{instruction: Body, input: Question, output: Answer}", "He has 2 and 3.\n\nHow many?"),
        ({"Problem": "2+3?", "Solution": "5"}, "{question: Problem, answer: Solution}", "2+3?"),
        ({"Query": "2+3?", "final_Result": "5", "response": "#### 5"}, "{question: Query, answer: response}", "2+3?"),
        ({"Passage": "It is 5.", "question": "What?", "Target": "5"},
         "{instruction: Passage, input: question, output: Target}", "It is 5.\n\nWhat?"),
        ({"Task": "Say 5."}, "{prompt: Task}", "Say 5."),
        ({"Story": "Once."}, "{text: Story}", ""),
    ],
)  # fmt: skip
def test_what_is_tried_for_columns_that_nobody_places_works_when_it_is_pasted(
    row: dict[str, Any], columns: str, prompt: str
) -> None:
    name = write("x.jsonl", row)
    assert f"try in a recipe: columns: {columns}\n" in unified(name).stdout
    looked = look(f"{{name: files, path: {name}, columns: {columns}}}")
    assert looked.recognised is not None
    shown = "".join(text for _, pieces in looked.shown[0].answers for text, learned in pieces if not learned)
    assert prompt in shown
    (line,) = [line for line in unified(name).stdout.splitlines() if "try here" in line]
    pasted = shlex.split(line.partition(": ")[2].replace("--columns=", ""))
    assert becomes(look(name, columns=pasted)) == becomes(looked)


def test_what_cannot_be_made_to_work_is_not_tried() -> None:
    result = unified(write("x.jsonl", {"Question": ["2+3?"], "Answer": {"a": 5}}))
    assert "not placed: Question, Answer" in result.stdout
    assert "    try " not in result.stdout


def test_columns_that_are_named_already_are_named_by_the_file_in_what_is_tried() -> None:
    name = write("x.jsonl", {"Frage": "2+3?", "Antwort": "5"})
    assert (
        "columns: {question: Frage, answer: Antwort}"
        in unified(name, "--columns", "problem=Frage", "--columns", "result=Antwort").stdout
    )


def test_a_mixture_shows_the_columns_of_each_source_and_what_they_become() -> None:
    first = write("x.jsonl", *2 * [{"Body": "It is 5.", "Question": "What?", "Answer": 5.0}])
    second = write("y.jsonl", *2 * [{"prompt": "2+3=", "chosen": "5", "rejected": "6"}])
    columns = "{instruction: Body, input: Question, output: Answer}"
    sources = f"[{{data: {{name: files, path: {first}, columns: {columns}}}}}, {{data: {second}}}]"
    found = look(f"{{name: mixture, sources: {sources}}}")
    told = [(one.dataset, one.recognised) for one in found.sources]
    assert told == [("x.jsonl", "instruction"), ("y.jsonl", "preference")]
    roles = [{column.name: column.becomes for column in one.columns} for one in found.sources]
    assert roles[0] == {"instruction": ["prompt"], "input": ["prompt"], "output": ["answer"]}
    assert roles[1]["rejected"] == ["answer"]
