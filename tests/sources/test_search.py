"""Best of n, beam search and tree search, on answers of 0 and 1 whose reward is the number of ones."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pytest

from unified import Answer, PromptGroup, Sampling, call_named
from unified.settings import choose

END = 9


class Coin:
    """A policy that writes 0 and 1 in turn; after `end` tokens of a call it ends the answer."""

    def __init__(self, end: int = 1000) -> None:
        self.end, self.drawn, self.calls = end, cycle([0, 1]), 0

    def __call__(self, prompts: list[PromptGroup], n: int, sampling: Sampling) -> list[list[Answer]]:
        self.calls += 1
        return [[self._answer(sampling.max_tokens) for _ in range(n)] for _ in prompts]

    def _answer(self, longest: int) -> Answer:
        ids = [next(self.drawn) for _ in range(min(longest, self.end))]
        stopped = self.end < longest
        ids = [*ids, END] if stopped else ids
        return Answer(ids, sampling_logp=[-0.5] * len(ids), finish="stop" if stopped else "length")

    def decode(self, ids: list[int]) -> str:
        return "".join(str(i) for i in ids if i != END)


class Ones:
    """A scalar model that counts ones; `asked` holds how many answers each question was about."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def score(self, groups: list[PromptGroup]) -> list[list[float | None]]:
        self.asked.append(sum(len(g.answers) for g in groups))
        return [[float(a.text.count("1")) for a in g.answers] for g in groups]


def _search(name: str, sample: Any, prompts: int = 1, **settings: Any) -> tuple[list[PromptGroup], Ones]:
    judge = Ones()
    written = {"name": name, "reward": {"name": "model", "model": "stage:prm"}, **settings}
    chosen, problems = choose("source", written)
    assert chosen is not None, [p.text() for p in problems]
    assert call_named(chosen.part.models, settings=chosen.settings) == {"stage:prm": "scalar"}
    rows = [PromptGroup([5 + i], text=f"q{i}", columns={"level": 2}, key=i) for i in range(prompts)]
    found = call_named(
        chosen.part.collect, prompts=rows, settings=chosen.settings, sample=sample, models={"stage:prm": judge},
        folder=None,
    )  # fmt: skip
    return found, judge


def test_best_of_n_keeps_the_best_and_counts_every_token() -> None:
    class Growing(Coin):
        def _answer(self, longest: int) -> Answer:
            ids = [[0, 0], [1, 1, 1], [1, 0]][next(self.order)]
            return Answer(ids, sampling_logp=[-1.0] * len(ids))

        order = iter([0, 1, 2])

    (group,), _ = _search("best_of_n", Growing(), n=3, keep=2, max_tokens=3)
    assert [(a.ids, a.reward) for a in group.answers] == [([1, 1, 1], 3.0), ([1, 0], 1.0)]
    assert [a.columns for a in group.answers] == [{"level": 2.0, "search_tokens": 7.0}] * 2
    assert (group.prompt, group.text, group.key) == ([5], "q0", 0)


def test_beam_search_goes_on_with_the_best_of_every_step() -> None:
    # one beam, two continuations a step: 0 and 1 are tried at each place, and 1 is kept
    (group,), judge = _search("beam_search", Coin(), beams=1, expand=2, step_tokens=1, max_tokens=4)
    (answer,) = group.answers
    assert (answer.ids, answer.reward, answer.finish) == ([1, 1, 1, 1], 4.0, "length")
    assert answer.sampling_logp == [-0.5] * 4
    assert answer.columns["search_tokens"] == 8  # 2 tokens at each of 4 places
    assert judge.asked == [2, 2, 2, 2]


def test_continuations_that_are_equal_take_one_beam() -> None:
    (group,), judge = _search("beam_search", Coin(), beams=2, expand=2, keep=2, step_tokens=1, max_tokens=2)
    # first step: 4 draws, 0 and 1 twice each; then 2 of each of the two beams
    assert judge.asked == [2, 4]
    assert [a.ids for a in group.answers] == [[1, 1], [1, 0]]


def test_an_answer_that_has_ended_keeps_its_place_among_the_beams_and_is_judged_once() -> None:
    found, judge = _search("beam_search", Coin(end=1), beams=1, expand=2, step_tokens=2, max_tokens=6)
    assert [a.ids for a in found[0].answers] == [[1, END]]
    assert found[0].answers[0].finish == "stop"
    assert judge.asked == [2, 0, 0]  # every process asks in every round: 6 tokens in steps of 2


def test_what_is_written_behind_the_end_of_a_step_is_thrown_away_but_was_sampled() -> None:
    found, _ = _search("beam_search", Coin(), beams=1, expand=1, step_tokens=4, step_end="1", max_tokens=4)
    # each step is sampled to 4 tokens (as far as there is room) and cut behind its first 1:
    # 0 1 | 0 1, of 4 tokens sampled and then 2
    assert [a.ids for a in found[0].answers] == [[0, 1, 0, 1]]
    assert found[0].answers[0].columns["search_tokens"] == 6


def test_a_node_of_the_tree_is_worth_the_mean_of_itself_and_all_below_it() -> None:
    settings = {"expand": 2, "step_tokens": 1, "max_tokens": 2, "exploration": 0.0, "keep": 2}
    (group,), judge = _search("tree_search", Coin(), simulations=2, **settings)
    # first 0 (worth 0) and 1 (worth 1); then below 1: 10 (worth 1) and 11 (worth 2). 1 is (1 + 1 + 2) / 3
    assert judge.asked == [2, 2]
    assert [(a.ids, a.reward) for a in group.answers] == [([1, 1], 2.0), ([1, 0], 1.0)]
    assert [a.steps for a in group.answers] == [
        [(1, pytest.approx(4 / 3)), (2, 2.0)],
        [(1, pytest.approx(4 / 3)), (2, 1.0)],
    ]


def test_with_rollouts_a_node_is_worth_an_answer_that_goes_on_from_it() -> None:
    settings = {"expand": 2, "step_tokens": 1, "max_tokens": 3, "simulations": 1, "judge": "rollout", "keep": 2}
    (group,), judge = _search("tree_search", Coin(), **settings)
    # nodes 0 and 1 are gone on with by 0 1 each: answers 001 (worth 1) and 101 (worth 2)
    assert judge.asked == [2]
    assert [(a.ids, a.reward, a.steps) for a in group.answers] == [
        ([1, 0, 1], 2.0, [(1, 2.0), (3, 2.0)]),  # the node, and the end of the answer
        ([0, 0, 1], 1.0, [(1, 1.0), (3, 1.0)]),
    ]


def test_exploration_looks_at_every_child_in_turn() -> None:
    settings = {"expand": 2, "step_tokens": 1, "max_tokens": 3, "keep": 8}
    (greedy,), _ = _search("tree_search", Coin(), simulations=3, exploration=0.0, **settings)
    (wide,), _ = _search("tree_search", Coin(), simulations=6, exploration=100.0, **settings)
    assert {a.ids[0] for a in greedy.answers} == {1}
    assert {a.ids[0] for a in wide.answers} == {0, 1}


@pytest.mark.parametrize("name", ["best_of_n", "beam_search", "tree_search"])
def test_prompts_are_searched_apart_and_keep_their_order(name: str) -> None:
    found, _ = _search(name, Coin(), prompts=3, max_tokens=2)
    assert [(g.prompt, g.key, len(g.answers)) for g in found] == [([5], 0, 1), ([6], 1, 1), ([7], 2, 1)]


def test_more_answers_than_beams_are_refused() -> None:
    _, problems = choose("source", {"name": "beam_search", "reward": "given", "beams": 2, "keep": 3})
    assert "keep is 3, but only 2 answers are left at the end" in problems[0].text()
