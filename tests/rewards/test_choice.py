"""The letter of a multiple-choice answer."""

from __future__ import annotations

from typing import Any

import pytest

from tests.rewards.judging import judged_texts, refusal


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("Answer: B", "B"),
        ("**Answer:** (C)", "C"),
        ("The answer is B because A is too small. (A) is wrong.", "B"),
        ("Answer: A. No, wait. Answer: d", "D"),
        ("The correct option is C, option A is not.", "C"),
        (r"(A) is wrong, so \boxed{C}", "C"),
        (r"\boxed{\text{B}}", "B"),
        (r"\boxed{(D)}", "D"),
        ("not (A) but (b)", "B"),
        ("A cat and I think it is B", "B"),
        ("B", "B"),
        ("B\n\nA dog barks", "B"),  # an article is no letter
        ("Either C or D.", "D"),
    ],
)
def test_the_letter_is_found(said: str, letter: str) -> None:
    assert judged_texts("choice", [said], answer=letter) == [1.0]
    others = [other for other in "ABCD" if other != letter]
    assert judged_texts("choice", [said], answer=others) == [0.0]


@pytest.mark.parametrize(
    "said", ["", "a cat", "The answer is a mystery.", "Answer: E", "CAB", "I'd say A's right", "AB"]
)
def test_no_letter_is_found_where_none_is_named(said: str) -> None:
    assert judged_texts("choice", [said], answer=["A", "B", "C", "D"]) == [0.0]


@pytest.mark.parametrize("given", ["B", "(B)", "b.", 1, [1]])
def test_the_row_names_a_letter_or_its_number_from_zero(given: Any) -> None:
    assert judged_texts("choice", ["Answer: B", "Answer: A"], answer=given) == [1.0, 0.0]


def test_a_number_is_a_letter_where_the_letters_are_numbers() -> None:
    rule = {"name": "choice", "letters": "1234"}
    assert judged_texts(rule, ["Answer: 1", "Answer: 2", "Answer: 1.5", "12"], answer=1) == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("given", [None, "E", 4, -1, "", "A dog", True, []])
def test_a_row_that_names_no_letter_gives_no_judgement(given: Any) -> None:
    assert judged_texts("choice", ["Answer: B"], answer=given) == [None]


def test_own_patterns_are_tried_in_order_and_pass_over_what_is_no_letter() -> None:
    rule = {"name": "choice", "patterns": [r"final: (\w+)", r"maybe (\w)"], "right": 2.0, "wrong": -1.0}
    said = ["maybe A, final: B", "maybe A, final: nothing", "Answer: A"]
    assert judged_texts(rule, said, answer="A") == [-1.0, 2.0, -1.0]


def test_letters_that_stand_twice_and_patterns_without_a_group_are_refused() -> None:
    assert "letters must differ" in refusal({"name": "choice", "letters": "ABa"})
    assert "needs a group" in refusal({"name": "choice", "patterns": ["Answer"]})
    assert "no regular expression" in refusal({"name": "choice", "patterns": ["("]})
