"""Whole answers against the data's, and numbers that may differ a little."""

from __future__ import annotations

from typing import Any

import pytest

from tests.rewards.judging import judged_texts


def test_the_whole_answer_counts_and_white_space_around_it_does_not() -> None:
    said = ["Paris", " Paris\n", "Paris.", "paris", "It is Paris"]
    assert judged_texts("exact_match", said, answer="Paris") == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert judged_texts({"name": "exact_match", "strip": False}, said, answer="Paris") == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_case_and_punctuation_are_ignored_where_that_is_set() -> None:
    said = ["PARIS", "Paris.", "P-a.r!i?s"]
    assert judged_texts({"name": "exact_match", "ignore_case": True}, said, answer="Paris") == [1.0, 0.0, 0.0]
    assert judged_texts({"name": "exact_match", "ignore_punctuation": True}, said, answer="Paris") == [0.0, 1.0, 1.0]


def test_squad_drops_articles_and_spaces_but_no_letters_inside_words() -> None:
    rule = {"name": "exact_match", "normalise": "squad"}
    said = ["an  EIFFEL tower!", "Eiffel tower a", "theatre Eiffel tower", "Eiffeltower"]
    assert judged_texts(rule, said, answer="The Eiffel Tower") == [1.0, 1.0, 0.0, 0.0]


def test_any_of_several_right_answers_is_right_and_none_of_them_gives_no_judgement() -> None:
    rule = {"name": "exact_match", "column": "golds"}
    assert judged_texts(rule, ["4", "four", "5"], golds=["four", 4]) == [1.0, 1.0, 0.0]
    assert judged_texts(rule, ["4"], golds=[]) == [None]
    assert judged_texts(rule, ["None"], golds=None) == [None]
    assert judged_texts(rule, ["4"], answer="4") == [None]  # another column


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("so it costs $1,234.50.", "1234.5"),
        ("12% of them", "12"),
        ("it is 3/4", "0.75"),
        ("one and a half, 1 1/2", "1.5"),
        (r"thus \frac{3}{4} of it", "0.75"),
        ("about 2e-3 metres", "0.002"),
        ("10-7=3, so 3", 3),
        ("x is -5", "-5"),
        ("from 3-4 it is 4", 4),  # a minus between numbers joins them
        ("#### 7 and not 8", "7 and not 8"),  # a mark goes before the last number
    ],
)
def test_the_last_number_counts_where_no_mark_is_needed(said: str, right: Any) -> None:
    assert judged_texts({"name": "final_answer", "unmarked": True}, [said], answer=right) == [1.0]
    assert judged_texts("final_answer", [said], answer=right) == [float("####" in said)]


def test_a_number_may_differ_by_the_larger_of_both_tolerances() -> None:
    said = [f"#### {n}" for n in ("99", "98.9", "101", "101.1")]
    assert judged_texts({"name": "final_answer", "relative": 0.01}, said, answer=100) == [1.0, 0.0, 1.0, 0.0]
    both = {"name": "final_answer", "relative": 0.01, "absolute": 1.1}
    assert judged_texts(both, said, answer=100) == [1.0] * 4
    # 0.3 is a decimal here, not the binary number below it
    assert judged_texts({"name": "final_answer", "absolute": 0.3}, ["#### 0.3"], answer=0) == [1.0]


def test_a_number_too_long_to_be_one_is_another_text() -> None:
    said = ["#### 1e999999999", "#### " + "9" * 5000, "#### " + "9" * 5000 + " 1/2"]
    assert judged_texts("final_answer", said, answer="7") == [0.0] * 3
