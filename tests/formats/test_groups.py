"""The format that stages write: what is written reads as it was."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from unified import Answer, Example, TokenRow, catalogue
from unified_plugins.formats.groups import row_of


def convert(row: dict[str, Any]) -> Example:
    part = catalogue().get("format", "groups")
    made: Example = part.convert(row=row, settings=part.settings())
    return made


@pytest.mark.parametrize(
    "example",
    [
        Example("h", ["d f a", "a"], [1.0, 0.0], {"start": "h", "graph": {"nodes": 21}}),
        Example([{"role": "user", "content": "2+3?"}], ["5"], None, {"answer": "5"}),
        Example("h", [], [], {}),
    ],
)
def test_a_row_reads_as_the_example_that_was_written(example: Example) -> None:
    assert convert(json.loads(json.dumps(row_of(example)))) == example


def test_tokens_that_a_model_wrote_read_as_they_were() -> None:
    steps = [(1, 0.25), (2, 1.0)]
    answers = [Answer([3, 4], loss_mask=[True, False], finish="length", trajectory="0-1", steps=steps), Answer([5])]
    example = Example("h", ["d f", "a"], [1.0, 0.0])
    example.tokens = TokenRow("v", example.digest(), [7, 8], answers)
    assert convert(json.loads(json.dumps(row_of(example)))) == example


@pytest.mark.parametrize("broken", [{}, [], {"vocabulary": "v", "digest": "d", "prompt": [1], "answers": [{}]}])
def test_tokens_of_another_form_are_a_bad_row(broken: Any) -> None:
    with pytest.raises(ValueError, match="column 'tokens' is not as a sampling stage writes it"):
        convert({"prompt": "h", "answers": ["a"], "tokens": broken})


def test_where_a_row_was_read_is_not_written() -> None:
    assert row_of(Example("h", ["a"], [1.0], {"file": "x.jsonl", "row": 3, "start": "h"})) == {
        "prompt": "h", "answers": ["a"], "rewards": [1.0], "start": "h",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "h", "answers": "a"}, "'answers' must be a list of texts"),
        ({"prompt": "h", "answers": ["a"], "rewards": [1.0, 0.0]}, "there are 1 answers but 2 rewards"),
        ({"prompt": "h", "answers": ["a"], "rewards": [None]}, "'rewards' must be a list of numbers"),
        ({"prompt": "h", "answers": ["a"], "rewards": [True]}, "'rewards' must be a list of numbers"),
        ({"answers": ["a"]}, "no column 'prompt'"),
    ],
)
def test_a_row_that_does_not_fit_is_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        convert(row)
