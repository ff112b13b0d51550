"""Length that pays by correctness."""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest

from tests.rewards.judging import judged
from unified import Answer, PromptGroup
from unified.settings import choose

RULE: dict[str, Any] = {"name": "cosine_length", "of": "given", "max_tokens": 100}


def shaped(answers: list[Answer], **settings: Any) -> list[Any]:
    (found,) = judged({**RULE, **settings}, [PromptGroup([0], answers)])
    return found


def answers(reward: float | None, *lengths: int) -> list[Answer]:
    return [Answer([5] * n, reward=reward) for n in lengths]


def test_right_answers_fall_and_wrong_ones_rise_along_half_a_cosine() -> None:
    # at 0, 1/4, 1/2 of the way (1 - cos) / 2 is 0, (1 - sqrt(1/2)) / 2, 1/2
    quarter = (1 - sqrt(0.5)) / 2
    assert shaped(answers(1.0, 0, 25, 50)) == [2.0, pytest.approx(2 - quarter), pytest.approx(1.5)]
    assert shaped(answers(0.0, 0, 25, 50)) == [-10.0, pytest.approx(-10 + 10 * quarter), pytest.approx(-5.0)]


def test_an_answer_that_reaches_the_limit_has_exceeded_it_right_or_wrong() -> None:
    assert shaped([*answers(1.0, 100), *answers(0.0, 120)]) == [-10.0, -10.0]
    found = shaped([*answers(1.0, 100, 120), *answers(0.0, 100)], exceeded=None)
    assert found == [pytest.approx(1.0), pytest.approx(1.0), pytest.approx(0.0)]


def test_the_end_points_and_what_is_right_are_set() -> None:
    points = {"right_short": 1.0, "right_long": 0.5, "wrong_short": -1.0, "wrong_long": -0.5, "right_from": 0.8}
    assert shaped([*answers(0.8, 50), *answers(0.79, 50)], **points) == [pytest.approx(0.75), pytest.approx(-0.75)]


def test_a_reward_per_token_counts_by_its_sum_and_a_missing_one_stays_missing() -> None:
    by_token = Answer([5] * 2, reward=[0.25, 0.25])
    assert shaped([by_token, *answers(None, 50)], max_tokens=4) == [pytest.approx(1.5), None]


def test_the_models_of_the_reward_inside_are_loaded() -> None:
    chosen, _ = choose("reward", {**RULE, "of": {"name": "model", "model": "stage:rm"}})
    assert chosen is not None
    assert chosen.part.models(settings=chosen.settings) == {"stage:rm": "scalar"}
