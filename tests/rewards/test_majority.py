"""The reward by vote: what most answers to a prompt say is right."""

from __future__ import annotations

from typing import Any

import pytest

from unified import Answer, PromptGroup, call_named, catalogue
from unified.settings import parse


def judged(*groups: list[str], probes: int = 0, **settings: Any) -> list[list[float]]:
    part = catalogue().get("reward", "majority")
    parsed, problems = parse(part.settings, settings, owner="reward 'majority'")
    assert not problems
    made = [
        PromptGroup([1], [Answer([1], text=t, probe=i >= len(texts) - probes) for i, t in enumerate(texts)])
        for texts in groups
    ]
    found: list[list[float]] = call_named(part.judge, groups=made, settings=parsed, models={})
    return found


def test_the_answer_that_most_give_is_worth_one_and_each_prompt_has_a_vote_of_its_own() -> None:
    assert judged(["b", "a b", "ab", "c"], ["c", "c", "b"]) == [[0, 1, 1, 0], [1, 1, 0]]


def test_equally_frequent_votes_are_all_the_majority_so_that_nothing_is_learned_from_them() -> None:
    assert judged(["a", "b", "c"]) == [[1, 1, 1]]


def test_the_vote_is_the_last_match_of_the_pattern_and_who_has_none_does_not_vote() -> None:
    # the votes are 4, 5, 4 and none: two say 4
    texts = ["#1 then #4", "#5", "#4", "four"]
    assert judged(texts, pattern=r"#(\d+)") == [[1, 0, 1, 0]]
    assert judged(["none", "at all"], pattern=r"#(\d+)") == [[0, 0]]


def test_a_probe_neither_votes_nor_wins() -> None:
    assert judged(["a", "b", "b", "a"], probes=1) == [[0, 1, 1, 0]]


def test_a_pattern_that_is_none_is_refused() -> None:
    part = catalogue().get("reward", "majority")
    assert parse(part.settings, {"pattern": "("}, owner="reward")[1]
    with pytest.raises(ValueError, match="no regular expression"):
        part.settings(pattern="(")
