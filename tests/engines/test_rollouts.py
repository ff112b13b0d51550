"""Data sources: rows as they stand, and answers asked of the rollout engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from unified import Answer, PromptGroup, Sampling, call_named, catalogue


def prompts() -> list[PromptGroup]:
    own = [Answer([9], "old", reward=1.0)]
    return [PromptGroup([1, 2], own, "one", {"answer": 42, "name": "x"}, 7), PromptGroup([3], [], "two", {}, 8)]


def test_rows_are_handed_on_as_they_are():
    part, groups = catalogue().get("source", "rows"), prompts()
    assert call_named(part.collect, prompts=groups, settings=part.settings(), sample=None, seed=0) == groups
    assert not part.online


def test_rollouts_replace_the_answers_and_keep_the_rest_of_the_row():
    asked: list[tuple[int, Sampling]] = []

    def sample(groups: list[PromptGroup], n: int, sampling: Sampling) -> Any:
        asked.append((n, sampling))
        return [[Answer([i, j], f"{i}{j}", sampling_logp=[0, 0]) for j in range(n)] for i in range(len(groups))]

    part, groups = catalogue().get("source", "rollouts"), prompts()
    settings = part.settings(group_size=3, temperature=0.5, top_p=0.9, top_k=4, max_tokens=6)
    new = call_named(part.collect, prompts=groups, settings=settings, sample=sample, seed=0)
    assert asked == [(3, Sampling(0.5, 0.9, 4, 6))]
    assert [[a.text for a in g.answers] for g in new] == [["00", "01", "02"], ["10", "11", "12"]]
    assert [(g.prompt, g.text, g.columns, g.key) for g in new] == [(g.prompt, g.text, g.columns, g.key) for g in groups]
    assert new[0].answers[0].columns == {"answer": 42.0}  # numbers of the row reach each answer
    assert new[0].answers[0].reward is None
    assert groups[0].answers[0].text == "old"  # the rows themselves are not changed
    assert part.online


def test_by_default_eight_answers_are_drawn_from_the_whole_distribution():
    settings = catalogue().get("source", "rollouts").settings()
    assert settings.group_size == 8
    assert Sampling(settings.temperature, settings.top_p, settings.top_k, settings.max_tokens) == Sampling()
    assert Sampling().whole


def test_the_greedy_answer_stands_beside_the_sampled_ones_as_a_probe():
    asked: list[tuple[int, Sampling]] = []

    def sample(groups: list[PromptGroup], n: int, sampling: Sampling) -> Any:
        asked.append((n, sampling))
        return [
            [Answer([i], "greedy" if sampling.temperature == 0 else "drawn") for _ in range(n)]
            for i in range(len(groups))
        ]

    part = catalogue().get("source", "rollouts_and_greedy")
    settings = part.settings(temperature=0.5, max_tokens=6)
    new = call_named(part.collect, prompts=prompts(), settings=settings, sample=sample, seed=0)
    assert asked == [(1, Sampling(0.5, max_tokens=6)), (1, Sampling(0.0, max_tokens=6))]
    assert [[(a.text, a.probe) for a in g.answers] for g in new] == [[("drawn", False), ("greedy", True)]] * 2
    assert new[0].answers[1].columns == {"answer": 42.0}


def test_min_p_and_stop_strings_reach_the_sampler_and_the_draw_stays_with_its_group():
    asked: list[Sampling] = []

    def sample(groups: list[PromptGroup], n: int, sampling: Sampling) -> Any:
        asked.append(sampling)
        assert [g.draw for g in groups] == [5, 6]
        return [[Answer([1]) for _ in range(n)] for _ in groups]

    rows = [replace(group, draw=5 + i, answers=[Answer([2])]) for i, group in enumerate(prompts())]
    for name in ("rollouts", "self_play"):
        part = catalogue().get("source", name)
        settings = part.settings(min_p=0.1, stop=["end"], max_tokens=4)
        new = call_named(part.collect, prompts=rows, settings=settings, sample=sample, seed=0)
        assert asked.pop() == Sampling(max_tokens=4, min_p=0.1, stop=("end",))
        assert [g.draw for g in new] == [5, 6]
