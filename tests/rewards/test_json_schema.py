"""Answers that are JSON and fit a schema."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.rewards.judging import judged_texts, refusal
from unified import UserError

SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}


def test_json_that_fits_is_right_and_what_does_not_or_is_none_is_worth_what_is_set() -> None:
    rule = {"name": "json_schema", "fits": SCHEMA, "right": 2, "parsed": 0.5, "wrong": -1}
    said = ['{"age": 3}', '{"age": "3"}', "{}", "{'age': 3}", "", '{"age": 3} and more', "[1", '{"age": NaN}']
    assert judged_texts(rule, said) == [2, 0.5, 0.5, -1, -1, -1, -1, -1]


def test_the_last_fenced_block_is_what_is_read() -> None:
    first, last = '```json\n{"age": "x"}\n```', '```\n{"age": 3}\n```'
    rule = {"name": "json_schema", "fits": SCHEMA}
    assert judged_texts(rule, [f"First {first} then {last} done.", f"{last}{first}"]) == [1.0, 0.0]


def test_the_schema_may_stand_in_the_row_and_one_that_is_none_gives_no_judgement() -> None:
    rule = {"name": "json_schema", "column": "schema"}
    given: list[Any] = [SCHEMA, json.dumps(SCHEMA), {"type": "nonsense"}, "{", 7, None, {"$ref": "#/nowhere"}]
    found = [judged_texts(rule, ['{"age": 3}'], schema=schema) for schema in given]
    assert found == [[1.0], [1.0], [None], [None], [None], [None], [None]]


def test_without_a_schema_any_json_fits() -> None:
    assert judged_texts("json_schema", ["[1, null]", "text"]) == [1.0, 0.0]


def test_references_lead_within_the_schema_and_nothing_is_fetched() -> None:
    inner = {"$defs": {"a": {"type": "integer"}}, "$ref": "#/$defs/a"}
    assert judged_texts({"name": "json_schema", "fits": inner}, ["3", '"3"']) == [1.0, 0.0]
    outer = {"name": "json_schema", "fits": {"$ref": "https://example.org/schema.json"}}
    with pytest.raises(UserError, match="leads nowhere within it"):
        judged_texts(outer, ["3"])


def test_what_is_nested_too_deeply_to_be_read_is_no_json() -> None:
    assert judged_texts("json_schema", ["[" * 100_000]) == [0.0]


def test_a_schema_that_is_none_and_two_of_them_are_refused() -> None:
    assert "no JSON schema: 'text' is not valid" in refusal({"name": "json_schema", "fits": {"type": "text"}})
    assert "not both" in refusal({"name": "json_schema", "fits": SCHEMA, "column": "schema"})


def test_a_missing_library_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from unified_plugins.rewards import _extras

    monkeypatch.setattr(_extras, "find_spec", lambda name: None)
    assert "pip install 'unified-post-training[json]'" in refusal({"name": "json_schema"})
    assert "pip install 'unified-post-training[math]'" in refusal({"name": "math"})
