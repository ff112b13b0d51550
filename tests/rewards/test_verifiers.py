"""Rules on text: the final answer against the data's, and the form of an answer or of its words."""

from __future__ import annotations

from typing import Any

import pytest

from unified import Answer, PromptGroup, call_named
from unified.settings import choose


def _judge(reward: dict[str, Any], texts: list[str], **columns: Any) -> list[Any]:
    chosen, problems = choose("reward", reward)
    assert chosen is not None, problems
    group = PromptGroup([0], [Answer([5], text) for text in texts], columns=columns)
    (found,) = call_named(chosen.part.judge, groups=[group], settings=chosen.settings, models={})
    return list(found)


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("so it is #### 1,200", "1200"),
        (r"first \boxed{3}, no: \boxed{42}", "42"),  # the last one counts
        (r"\boxed{\frac{1}{2}}", "0.5"),
        ("#### 40%", "40"),
        ("#### $18.00", "long way\n#### 18"),  # the data marks its answer too
        (r"\boxed{x^{2} + 1}", "x^{2}+1"),
        ("#### 7", ["6", "7"]),  # any of several right ones
    ],
)
def test_the_last_marked_answer_is_right_where_it_is_the_same_number_or_text(said: str, right: Any) -> None:
    assert _judge({"name": "final_answer"}, [said], answer=right) == [1.0]


def test_a_wrong_number_an_unmarked_answer_and_a_wrong_text_are_not_right() -> None:
    said = ["#### 41", "it is 42", "#### about forty", r"\boxed{42", "#### 4 2 0", "#### 1/0"]
    assert _judge({"name": "final_answer"}, said, answer="42") == [0.0] * 6


def test_a_wrong_number_is_worth_something_only_where_a_number_is_asked_for() -> None:
    rule = {"name": "final_answer", "wrong_number": 0.1}
    assert _judge(rule, ["#### 41", "#### none", "nothing"], answer=42) == [0.1, 0.0, 0.0]
    assert _judge(rule, ["#### 41"], answer="(B)") == [0.0]


def test_a_row_without_a_right_answer_gives_no_judgement() -> None:
    assert _judge({"name": "final_answer"}, ["#### 1"]) == [None]
    assert _judge({"name": "final_answer"}, ["#### 1"], answer=[]) == [None]


def test_another_mark_is_found_by_its_pattern_and_needs_a_group() -> None:
    rule = {"name": "final_answer", "column": "key", "pattern": r"The answer is (\S+)\."}
    assert _judge(rule, ["The answer is B.", "The answer is A."], key="B") == [1.0, 0.0]
    for bad in ("The answer", "(open"):
        chosen, problems = choose("reward", {"name": "final_answer", "pattern": bad})
        assert chosen is None
        assert "pattern" in problems[0].message


def test_the_form_must_be_that_of_the_whole_answer_over_all_its_lines() -> None:
    rule = {"name": "pattern", "pattern": r"<think>.+</think>\s*<answer>.+</answer>"}
    good = " <think>one\ntwo</think>\n<answer>3</answer>\n"
    assert _judge(rule, [good, good + "more", "<think></think><answer>3</answer>", ""]) == [1.0, 0.0, 0.0, 0.0]


def test_of_words_it_is_the_share_of_those_that_match() -> None:
    # four words, one of which has a letter that is not ASCII
    rule = {"name": "pattern", "pattern": r"[\x00-\x7f]+", "of": "words"}
    assert _judge(rule, ["so 2 + größer", "", "all fine"]) == [0.75, 0.0, 1.0]
