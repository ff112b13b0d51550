"""Self-play: the answer of the row against one of the policy's."""

from __future__ import annotations

import pytest

from unified import Answer, PromptGroup, Sampling, UserError, call_named
from unified.settings import choose


def _sample(prompts: list[PromptGroup], n: int, sampling: Sampling) -> list[list[Answer]]:
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.5, 0.9, 7)
    return [[Answer([9], f"own {i}", sampling_logp=[-1.0]) for i in range(n)] for _ in prompts]


def _collect(groups: list[PromptGroup], **more: object) -> list[PromptGroup]:
    written = {**more, "name": "self_play", "group_size": 2, "temperature": 0.5, "top_p": 0.9, "max_tokens": 7}
    chosen, problems = choose("source", written)
    assert chosen is not None, problems
    found: list[PromptGroup] = call_named(
        chosen.part.collect, prompts=groups, settings=chosen.settings, sample=_sample, seed=0
    )
    return found


def test_the_best_answer_of_the_row_wins_over_all_that_are_sampled() -> None:
    rows = [Answer([1], "worse", reward=0.2), Answer([2], "better", reward=0.7)]
    (group,) = _collect([PromptGroup([0], rows, "p", {"c": 3}, key=5)])
    assert [(a.text, a.reward) for a in group.answers] == [("better", None), ("own 0", None), ("own 1", None)]
    reward, problems = choose("reward", "self_play")
    assert reward is not None, problems
    assert call_named(reward.part.judge, groups=[group]) == [[1.0, 0.0, 0.0]]
    assert (group.prompt, group.text, group.columns, group.key) == ([0], "p", {"c": 3}, 5)
    assert rows[1].reward == 0.7  # the row itself is left as it was


def test_a_mark_tells_the_answer_of_the_row_from_those_that_are_sampled() -> None:
    row = PromptGroup([0], [Answer([1], "own", columns={"c": 3.0})])
    assert [a.columns for a in _collect([row], mark="given")[0].answers] == [
        {"c": 3.0, "given": 1.0}, {"given": 0.0}, {"given": 0.0},
    ]  # fmt: skip
    assert [a.columns for a in _collect([row])[0].answers] == [{"c": 3.0}, {}, {}]


def test_a_row_without_an_answer_is_refused_by_its_number() -> None:
    with pytest.raises(UserError, match="row 4 has no answer"):
        _collect([PromptGroup([0], [], key=4)])
