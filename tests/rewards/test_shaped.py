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
    (found,) = call_named(chosen.part.judge, groups=[group], settings=chosen.settings, models={})
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


class _Score:
    """A scalar model that gives every answer one number."""

    def __init__(self, number: float) -> None:
        self.number = number

    def score(self, groups: list[PromptGroup]) -> list[list[float]]:
        return [[self.number] * len(group.answers) for group in groups]


def _of_models(columns: dict[str, Any], combine: str = "gate", **gate: Any) -> Any:
    """What safety 0.1 and help 0.7 become, as two models judge."""
    rewards = [
        {"reward": {"name": "model", "model": "stage:safe"}, "column": "safe", **gate},
        {"reward": {"name": "model", "model": "stage:help"}, "column": "help"},
    ]
    chosen, problems = choose("reward", {"name": "several", "combine": combine, "rewards": rewards})
    assert chosen is not None, problems
    assert call_named(chosen.part.models, settings=chosen.settings) == {"stage:safe": "scalar", "stage:help": "scalar"}
    models = {"stage:safe": _Score(0.1), "stage:help": _Score(0.7)}
    group = PromptGroup([1], [_of_length(3)], columns=columns)
    return call_named(chosen.part.judge, groups=[group], settings=chosen.settings, models=models)


def test_two_reward_models_are_gated_by_safety() -> None:
    assert _of_models({}, closed_below=0.15) == [[0.1]]  # 0.1 < 0.15: safety alone
    assert _of_models({}, closed_below=0.05) == [[0.7]]  # the gate is open: helpfulness
    assert _of_models({"unsafe": True}, closed_below=0.05, closed_by="unsafe") == [[0.1]]  # the prompt says so
    assert _of_models({"unsafe": False}, closed_below=0.05, closed_by="unsafe") == [[0.7]]


def test_a_product_holds_only_where_all_hold() -> None:
    assert _of_models({}, "product") == [[pytest.approx(0.07)]]


def test_lexicographic_order_asks_the_second_reward_only_where_the_first_is_drawn() -> None:
    length = {"reward": {"name": "length", "target": 4, "width": 4}, "column": "short"}
    written = {"name": "several", "combine": "lexicographic", "rewards": [{"reward": "given"}, length]}
    answers = [_of_length(2, 1.0), _of_length(4, 1.0), _of_length(4, 0.0), _of_length(4, None)]
    # (1, 0.5) beats one of two others, (1, 1) both, (0, 1) none; what was not judged is no other
    assert _judge(written, answers) == [0.5, 1.0, 0.0, None]
    assert _judge(written, [_of_length(4), _of_length(4)]) == [0.5, 0.5]


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
            {"name": "several", "combine": "gate", "rewards": [{"reward": "given"}, {"reward": "majority"}]},
            "every reward but the last needs `closed_below` or `closed_by`",
        ),
        (
            {"name": "several", "combine": "product", "rewards": [{"reward": "given", "weight": 2}]},
            "`weight` of 'given' has no meaning with combine: product",
        ),
        (
            {"name": "several", "rewards": [{"reward": "given", "closed_below": 1}]},
            "`closed_below` and `closed_by` of 'given' need combine: gate",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(written: dict[str, Any], said: str) -> None:
    assert said in "\n".join(p.text() for p in choose("reward", written)[1])
