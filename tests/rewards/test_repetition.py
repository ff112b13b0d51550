"""The punishment of repeated n-grams."""

from __future__ import annotations

from typing import Any

import pytest

from tests.rewards.judging import judged, refusal
from unified import Answer, PromptGroup


def punished(answers: list[Answer], **settings: Any) -> list[Any]:
    (found,) = judged({"name": "repetition", **settings}, [PromptGroup([0], answers)])
    return found


def test_the_share_of_ngrams_that_stood_before_is_taken_off() -> None:
    # pairs of 5 5 5 5 5: four, of which three stood before: -3/4; of 1 2 1 2 3: 12 21 12 23: -1/4
    answers = [Answer([1, 2, 3, 4]), Answer([5] * 5), Answer([1, 2, 1, 2, 3])]
    assert punished(answers, n=2) == [0.0, -0.75, -0.25]
    assert punished(answers, n=2, max_penalty=2) == [0.0, -1.5, -0.5]


def test_an_answer_shorter_than_one_ngram_is_not_punished() -> None:
    assert punished([Answer([1, 1]), Answer([])], n=3) == [0.0, 0.0]


def test_words_are_compared_in_small_letters() -> None:
    # the cat / cat the / the cat: one of three
    assert punished([Answer([1], "The cat THE  Cat")], n=2, unit="words") == [pytest.approx(-1 / 3)]


def test_by_token_every_token_of_an_ngram_that_stood_before_is_punished() -> None:
    # 1 2 stands at 0 and again at 3: tokens 3 and 4; of 5 5 5 5 5 all but the first
    answers = [Answer([1, 2, 9, 1, 2, 8]), Answer([5] * 5), Answer([])]
    found = punished(answers, n=2, max_penalty=0.05, each="token")
    assert found == [[0, 0, 0, -0.05, -0.05, 0], [0, -0.05, -0.05, -0.05, -0.05], []]


def test_a_word_has_no_place_among_the_tokens() -> None:
    assert "needs `unit: tokens`" in refusal({"name": "repetition", "each": "token", "unit": "words"})
