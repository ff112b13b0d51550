"""Columns that a reward reads and no row has: told by the check; a row that lacks one gives the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.rewards.judging import judged
from unified import Answer, PromptGroup, UserError, call_named, catalogue
from unified.check import check_recipe
from unified.recipe import load_recipe
from unified.settings import choose

HERE = frozenset({"prompt", "solution", "target", "file", "row"})
HAVE = "the data have: file, prompt, row, solution, target"


def problems(reward: Any, columns: frozenset[str] | None = HERE) -> list[str]:
    chosen, wrong = choose("reward", reward)
    assert chosen is not None, [p.text() for p in wrong]
    about = {"settings": chosen.settings, "home": Path(), "columns": columns}
    return [p.text(".".join(map(str, p.at))) for p in call_named(chosen.part.check, **about)]


@pytest.mark.parametrize(
    ("reward", "at", "column"),
    [
        ("exact_match", "column", "answer"),
        ("final_answer", "column", "answer"),
        ({"name": "final_answer", "column": "result"}, "column", "result"),
        ("choice", "column", "answer"),
        ({"name": "math", "column": "gold"}, "column", "gold"),
        ({"name": "json_schema", "column": "schema"}, "column", "schema"),
        ({"name": "language", "column": "asked"}, "column", "asked"),
        ({"name": "server", "url": "http://h", "columns": ["solution", "level"]}, "columns", "level"),
        ({"name": "by_column", "column": "kind", "rewards": {"a": "constant"}}, "column", "kind"),
    ],
)
def test_a_column_that_no_row_has_is_told_with_those_that_are_there(reward: Any, at: str, column: str) -> None:
    assert problems(reward) == [f"{at}: no row of the data has a column '{column}'\n    {HAVE}"]
    assert problems(reward, HERE | {column}) == []
    assert problems(reward, None) == []  # rows that are not known yet


def test_a_column_that_is_misspelt_is_told_with_the_nearest_one() -> None:
    told = f"column: no row of the data has a column 'soltion'\n    did you mean 'solution'?\n    {HAVE}"
    assert problems({"name": "exact_match", "column": "soltion"}) == [told]


def test_rewards_that_can_do_without_a_column_are_not_refused() -> None:
    other = {"name": "by_column", "column": "kind", "rewards": {"a": "constant"}, "otherwise": "constant"}
    assert problems(other) == []
    assert problems({"name": "language", "language": "en"}) == []
    assert problems("json_schema") == []


def test_ifeval_needs_both_of_its_columns() -> None:
    told = [line.partition("\n")[0] for line in problems("ifeval")]
    assert told == [
        "instructions: no row of the data has a column 'instruction_id_list'",
        "arguments: no row of the data has a column 'kwargs'",
    ]


@pytest.mark.parametrize(
    ("columns", "fine"), [({"test_list"}, True), ({"test", "entry_point"}, True), ({"test"}, False)]
)
def test_code_needs_tests_in_one_of_two_forms(columns: set[str], fine: bool) -> None:
    found = problems("code", frozenset(columns))
    told = "no row of the data has tests for reward 'code'\n    they stand in a column `test_list`"
    assert found == [] if fine else found[0].startswith(told)


def test_a_gate_that_no_row_can_close_is_told() -> None:
    gate = {"reward": "constant", "closed_by": "unsafe"}
    several = {"name": "several", "combine": "gate", "rewards": [gate, {"reward": "exact_match"}]}
    (told,) = problems(several)
    assert told.startswith("rewards.0.closed_by: no row of the data has a column 'unsafe'")
    assert problems({**several, "rewards": [{**gate, "closed_below": 0}, {"reward": "exact_match"}]}) == []


RECIPE = """\
name: a
model:
  new: {model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2}
  tokenizer: random_walks
stages:
  rl:
    algorithm: grpo
    source: {max_tokens: 4}
    data: {name: files, path: rows.jsonl, held_out: 1}
    reward:
      name: several
      rewards:
        - reward: exact_match
        - reward: {name: final_answer, column: gold}
    evaluation:
      data: {name: files, path: others.jsonl, held_out: 1}
      reward: {name: exact_match, column: answer}
"""


def test_the_check_tells_the_line_of_a_reward_inside_another_and_looks_at_its_own_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": "h", "answer": "a"}) + "\n" for _ in range(4)))
    (tmp_path / "others.jsonl").write_text("".join(json.dumps({"prompt": "h", "target": "a"}) + "\n" for _ in range(4)))
    (tmp_path / "r.yaml").write_text(RECIPE)
    with pytest.raises(UserError) as raised:
        check_recipe(load_recipe(tmp_path / "r.yaml"))
    assert str(raised.value).replace(f"{tmp_path}/", "").splitlines() == [
        "r.yaml:14: stage 'rl': no row of the data has a column 'gold'",
        "    the data have: answer, file, prompt, row",
        "r.yaml:17: stage 'rl': no row of the data has a column 'answer'",
        "    the data have: file, prompt, row, target",
        "2 problems in r.yaml; nothing was run",
    ]


# --- why an answer is missing ---


def reasons(reward: Any, *texts: str, **columns: Any) -> list[str]:
    group = PromptGroup([1], [Answer([2], text) for text in texts], "p", columns)
    assert judged(reward, [group]) == [[None] * len(texts)]
    return group.reasons


@pytest.mark.parametrize(
    ("reward", "columns", "why"),
    [
        ("exact_match", {}, "column 'answer' of the row is not there or empty, so that there is no right answer"),
        ("exact_match", {"answer": []}, "column 'answer' of the row holds no right answer"),
        ("final_answer", {"answer": None}, "column 'answer' of the row is not there or empty, so that there is no"),
        ("choice", {"answer": "Z"}, "column 'answer' of the row holds no letter of ABCD"),
        ({"name": "json_schema", "column": "s"}, {"s": "{"}, "column 's' of the row holds no JSON schema"),
        ("ifeval", {"instruction_id_list": [], "kwargs": []}, "column 'instruction_id_list' of the row lists no"),
        ("code", {"answer": 3}, "the row has no tests: they stand in a column `test_list`, or in `test` beside "),
        ("code", {"test_list": []}, "the row has no tests"),
        ("math", {}, "column 'answer' of the row is not there or empty, so that there is no right answer "),
    ],
)
def test_a_row_that_cannot_be_judged_says_once_why(reward: Any, columns: dict[str, Any], why: str) -> None:
    (said,) = reasons(reward, "a", "b", **columns)
    assert said.startswith(why)


def test_every_reward_with_a_setting_for_one_column_has_a_check() -> None:
    named = {"column", "columns", "instructions"}
    parts = [catalogue().get("reward", name) for name in catalogue().names("reward")]
    with_one = [part for part in parts if named & set(part.settings.model_fields)]
    assert len(with_one) >= 7
    assert [part.name for part in with_one if part.check is None] == []
