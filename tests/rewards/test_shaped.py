"""Rewards made of others: soft punishment of length, answers that were cut off, and several at once."""

from __future__ import annotations

from typing import Any

import pytest

from unified import Answer, PromptGroup, call_named
from unified.settings import choose


def _judge(reward: dict[str, Any], answers: list[Answer]) -> list[Any]:
    chosen, problems = choose("reward", reward)
    assert chosen is not None, problems
    group = PromptGroup([0], answers)
    (found,) = call_named(chosen.part.judge, groups=[group], settings=chosen.settings, score=None)
    return list(found)


def _of_length(n: int, reward: float | list[float] | None = 1.0) -> Answer:
    return Answer([5] * n, reward=reward)


def test_the_punishment_grows_over_the_last_tokens_before_the_limit_to_one() -> None:
    # limit 20, buffer 8: nothing up to 12 tokens, half at 16, 1 at 20 and beyond
    answers = [_of_length(n) for n in (12, 16, 20, 25)]
    assert _judge({"name": "overlong", "of": "given", "max_tokens": 20, "buffer": 8}, answers) == [1.0, 0.5, 0.0, 0.0]


def test_the_punishment_of_rewards_per_token_stands_at_the_last() -> None:
    answers = [Answer([5] * 4, reward=[1.0, 0.0, 0.0, 2.0])]
    rule = {"name": "overlong", "of": "given", "max_tokens": 4, "buffer": 2, "factor": 0.5}
    assert _judge(rule, answers) == [[1.0, 0.0, 0.0, 1.5]]


def test_a_missing_judgement_stays_missing() -> None:
    assert _judge({"name": "overlong", "of": "given", "max_tokens": 4, "buffer": 2}, [_of_length(4, None)]) == [None]
    cut = Answer([5], finish="length")
    assert _judge({"name": "cut_off", "of": "given", "value": -10}, [cut]) == [None]


def test_an_answer_that_was_cut_off_gets_another_reward_or_a_part_of_it() -> None:
    answers = [Answer([5], reward=2.0), Answer([5], reward=2.0, finish="length")]
    assert _judge({"name": "cut_off", "of": "given", "value": -10}, answers) == [2.0, -10.0]
    assert _judge({"name": "cut_off", "of": "given", "factor": 0.25}, answers) == [2.0, 0.5]
    steps = [Answer([5, 6], reward=[1.0, 3.0], finish="length")]
    assert _judge({"name": "cut_off", "of": "given", "value": -10}, steps) == [[0.0, -10.0]]


def test_several_rewards_are_summed_and_each_is_kept_as_a_column() -> None:
    length = {"reward": {"name": "length", "target": 4, "width": 4}, "weight": 0.5, "column": "short"}
    answers = [_of_length(4), _of_length(2)]
    # 1 + 0.5 * 1 and 1 + 0.5 * (1 - 2/4)
    assert _judge({"name": "several", "rewards": [{"reward": "given"}, length]}, answers) == [1.5, 1.25]
    assert [a.columns for a in answers] == [{"given": 1.0, "short": 1.0}, {"given": 1.0, "short": 0.5}]


def test_the_sum_is_missing_where_one_of_its_rewards_is() -> None:
    rewards = [{"reward": "given"}, {"reward": {"name": "length", "target": 4, "width": 4}}]
    assert _judge({"name": "several", "rewards": rewards}, [_of_length(4, None)]) == [None]


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"name": "overlong", "of": "given", "max_tokens": 4, "buffer": 5}, "buffer is 5, but answers have at most 4"),
        ({"name": "cut_off", "of": "given"}, "give `value` or `factor`, one of both"),
        (
            {"name": "several", "rewards": [{"reward": "given"}, {"reward": "given"}]},
            "two rewards have the column 'given'",
        ),
        (
            {
                "name": "several",
                "rewards": [
                    {"reward": {"name": "model", "model": "a"}},
                    {"reward": {"name": "model", "model": "b"}, "column": "b"},
                ],
            },
            "only one of several rewards may be a model",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(written: dict[str, Any], said: str) -> None:
    assert said in "\n".join(p.text() for p in choose("reward", written)[1])
