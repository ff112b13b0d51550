"""One reward for each kind of row: which judges what, all of a kind together, and every model asked equally often."""

from __future__ import annotations

from typing import Any

import pytest

from tests.rewards.judging import judged, refusal
from unified import Answer, PromptGroup, UserError, call_named
from unified.settings import choose


def group(source: Any, *texts: str, reward: float | None = 0.5, **columns: Any) -> PromptGroup:
    told = columns if source is None else {"source": source, **columns}
    return PromptGroup([0], [Answer([5], text, reward=reward) for text in texts], columns=told)


def by(rewards: Any, **more: Any) -> dict[str, Any]:
    return {"name": "by_column", "rewards": rewards, **more}


WORDS = {"name": "contains", "words": ["yes"]}


def test_each_prompt_is_judged_by_the_reward_of_its_value_in_the_order_of_the_prompts() -> None:
    groups = [group("chat", "yes", "no"), group("math", "x"), group("chat", "no"), group("math", "y", reward=0.25)]
    assert judged(by({"chat": WORDS, "math": "given"}), groups) == [[1.0, 0.0], [0.5], [0.0], [0.25]]
    assert groups[0].answers[0].columns == {"source/chat": 1.0}
    assert groups[1].answers[0].columns == {"source/math": 0.5}


def test_another_column_and_values_that_are_no_text_are_read_as_yaml_writes_them() -> None:
    groups = [group(None, "no", level=level) for level in (1, 2.0, True, "1")]
    rewards = {level: {"name": "constant", "value": i + 1.0} for i, level in enumerate([1, 2, "true"])}
    assert judged(by(rewards, column="level"), groups) == [[1.0], [2.0], [3.0], [1.0]]


def test_otherwise_judges_rows_with_another_value_and_with_none() -> None:
    groups = [group("code", "yes"), group(None, "yes"), group("chat", "yes")]
    assert judged(by({"chat": WORDS}, otherwise="given"), groups) == [[0.5], [0.5], [1.0]]
    assert groups[1].answers[0].columns == {"source/otherwise": 0.5}


@pytest.mark.parametrize(("source", "said"), [("code", "'code' in column 'source'"), (None, "nothing in that column")])
def test_a_value_that_no_reward_is_for_is_refused_and_not_guessed(source: str | None, said: str) -> None:
    with pytest.raises(UserError, match=rf"(?s){said}.*there are rewards for: chat.*otherwise"):
        judged(by({"chat": WORDS}), [group(source, "yes")])


def test_a_judgement_that_failed_stays_missing() -> None:
    missing = group("math", "x", reward=None)
    assert judged(by({"math": "given"}), [missing]) == [[None]]
    assert missing.answers[0].columns == {}


class Model:
    """A scalar model that notes how many prompts it was asked for at once."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def score(self, groups: list[PromptGroup]) -> list[list[float]]:
        self.asked.append(len(groups))
        return [[2.0] * len(g.answers) for g in groups]


def test_prompts_of_one_reward_are_handed_over_together_and_a_model_without_any_is_asked_all_the_same() -> None:
    of_model = {"name": "model", "model": "stage:rm"}
    chosen, _ = choose("reward", by({"chat": of_model, "math": {**of_model, "model": "stage:other"}, "code": "given"}))
    assert chosen is not None
    assert call_named(chosen.part.models, settings=chosen.settings) == {"stage:rm": "scalar", "stage:other": "scalar"}
    models = {"stage:rm": Model(), "stage:other": Model()}
    for groups in ([group("chat", "a"), group("code", "b"), group("chat", "c", "d")], [group("code", "e")], []):
        found = call_named(chosen.part.judge, groups=groups, settings=chosen.settings, models=models)
        assert [len(each) for each in found] == [len(g.answers) for g in groups]
    assert models["stage:rm"].asked == [2, 0, 0]
    assert models["stage:other"].asked == [0, 0, 0]


def test_a_list_means_the_same_as_the_mapping_and_is_what_a_manifest_writes() -> None:
    chosen, problems = choose("reward", by({"chat": WORDS}))
    assert chosen is not None, problems
    written = chosen.as_dict()
    again, problems = choose("reward", written)
    assert again is not None, problems
    assert again.as_dict() == written
    assert written["rewards"][0]["value"] == "chat"


def test_what_makes_no_sense_is_refused() -> None:
    assert "'chat'" in refusal(by([{"value": "chat", "reward": "given"}] * 2))
    assert "no reward 'contians'" in refusal(by({"chat": "contians"}))
    assert "cannot judge both" in refusal(
        by({"a": {"name": "model", "model": "m"}, "b": {"name": "rubric", "model": "m"}})
    )
    assert "needs 'rewards'" in refusal({"name": "by_column"})
