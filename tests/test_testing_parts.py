"""The contract suite for rewards, datasets and sources: strangers that are broken are caught by the right check."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from unified import Answer, Dataset, DataSource, Example, PromptGroup, Reward
from unified.testing import Finding, check_dataset, check_part, check_reward, check_source


def judged(judge: Callable[..., Any]) -> list[Finding]:
    return check_reward(Reward("stranger", judge=judge))


@pytest.mark.parametrize(
    ("check", "message", "judge"),
    [
        ("judgements", "it gave 1 lists for 3 groups", lambda groups: [[0.0]]),
        ("judgements", "it gave 1 entries for the 3 answers of group 0", lambda groups: [[1.0] for g in groups]),
        ("judgements", "it gave nan for 'yes'", lambda groups: [[float("nan") for a in g.answers] for g in groups]),
        ("judgements", "it gave 'good' for 'yes'", lambda groups: [["good" for a in g.answers] for g in groups]),
        (
            "judgements",
            "it gave 2 numbers for the 3 tokens",
            lambda groups: [[[0.0, 0.0]] * len(g.answers) for g in groups],
        ),
        ("judgements", "AttributeError", lambda groups: [[a.no_such_thing for a in g.answers] for g in groups]),
        (
            "order_of_groups",
            "change with the order",
            lambda groups: [[float(i) for _ in g.answers] for i, g in enumerate(groups)],
        ),
    ],
)
def test_a_broken_reward_is_caught(check: str, message: str, judge: Callable[..., Any]) -> None:
    found = judged(judge)
    assert [f.check for f in found][:1] == [check]
    assert message in found[0].message


def test_a_reward_that_writes_into_the_groups_is_caught() -> None:
    def judge(groups: list[PromptGroup]) -> list[list[float]]:
        for group in groups:
            group.columns["seen"] = True
        return [[0.0] * len(g.answers) for g in groups]

    assert [f.message for f in judged(judge)] == ["it changed the groups that it judged"]


def test_a_reward_may_refuse_made_up_text_but_not_its_own() -> None:
    def judge(groups: list[PromptGroup]) -> list[list[float]]:
        return [[float(g.columns["answer"] == a.text) for a in g.answers] for g in groups]

    part = Reward("stranger", judge=judge)
    assert check_part("reward", part) is None
    own = [PromptGroup([3], [Answer([4], "4")], "2 + 2", {"answer": "4"})]
    assert check_reward(part, groups=own) == []
    own[0].columns.clear()
    assert "KeyError" in check_reward(part, groups=own)[0].message


@pytest.mark.parametrize(
    ("message", "opened"),
    [
        ("split train has no rows", lambda: []),
        ("row 0 of train is str; it must be an Example", lambda: ["text"]),
        ("row 0 of train has 2 answers but 1 rewards", lambda: [Example("p", ["a", "b"], [1.0])]),
        ("has other rows when it is opened again", lambda: [Example("p", [str(torch.rand(()).item())])]),
    ],
)
def test_a_broken_dataset_is_caught(message: str, opened: Callable[..., Any]) -> None:
    found = check_dataset(Dataset("stranger", open=opened))
    assert message in found[0].message


@pytest.mark.parametrize(
    ("message", "collect"),
    [
        ("collect must give a list of PromptGroups", lambda prompts: None),
        ("it gave no group for 2 prompts", lambda prompts: []),
        ("it gave no answer to 'prompt 0'", lambda prompts: [PromptGroup(p.prompt, text=p.text) for p in prompts]),
        (
            "it gave sampled answers a reward",
            lambda prompts: [PromptGroup(p.prompt, [Answer([3], reward=1.0)]) for p in prompts],
        ),
        (
            "it gave other groups when asked again",
            lambda prompts: [PromptGroup([int(torch.randint(9**9, ()))], [Answer([3])]) for p in prompts],
        ),
    ],
)
def test_a_broken_source_is_caught(message: str, collect: Callable[..., Any]) -> None:
    found = check_source(DataSource("stranger", collect=collect, online=True))
    assert message in found[0].message
