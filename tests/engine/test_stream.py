"""Rows in seeded order, judgements that are refused, and what leaves before anything is counted."""

from __future__ import annotations

import random
import re
from typing import Any

import numpy
import pytest
import torch

from unified import (
    Algorithm,
    Answer,
    Chosen,
    DataSource,
    Field,
    PluginError,
    PromptGroup,
    Reward,
    Rule,
    Settings,
    UserError,
    catalogue,
)
from unified.coefficient import Term
from unified.stream import Sampler, Stream, seed_all, seed_of


def chosen(part: Any, **written: Any) -> Chosen:
    return Chosen(part, part.settings(**written))


def stream_of(
    judge: Any = None,
    *,
    rows: int = 5,
    seed: int = 0,
    answers: int = 1,
    filters: tuple[Rule, ...] = (),
    source: Any = None,
) -> Stream:
    groups = [PromptGroup([3], [Answer([4, 5], "first"), Answer([6], "second")], key=i) for i in range(rows)]
    term = Term(Algorithm("mine", coefficient=lambda batch: batch.logp, answers=answers), Settings())
    return Stream(
        "rl", groups, chosen(source or catalogue().get("source", "rows")),
        None if judge is None else chosen(Reward("rule", judge=judge)), [term], seed,
        filters=[chosen(f) for f in filters],
    )  # fmt: skip


# --- order ---


def keys(stream: Stream, n: int) -> list[int]:
    return [group.key for _, group in stream.draw(n)]


def test_every_pass_visits_every_row_once_in_an_order_of_its_own() -> None:
    stream = stream_of(rows=12)
    passes = [keys(stream, 12) for _ in range(3)]
    assert all(sorted(p) == list(range(12)) for p in passes)
    assert len({tuple(p) for p in passes}) == 3
    assert passes[0] != list(range(12))


def test_a_draw_may_reach_into_the_next_pass() -> None:
    straight, pieces = stream_of(), stream_of()
    wanted = keys(straight, 15)
    assert [k for n in (3, 4, 7, 1) for k in keys(pieces, n)] == wanted
    assert [sorted(wanted[i : i + 5]) for i in (0, 5, 10)] == [list(range(5))] * 3


def test_running_numbers_count_on() -> None:
    stream = stream_of()
    assert [number for number, _ in stream.draw(3) + stream.draw(4)] == list(range(7))
    assert stream.position == 7


@pytest.mark.parametrize("done", [0, 3, 5, 8, 11])
def test_the_position_alone_says_where_to_go_on(done: int) -> None:
    before, after = stream_of(), stream_of()
    keys(before, done)
    after.position = before.position  # all that a checkpoint keeps
    assert keys(after, 9) == keys(before, 9)


def test_without_shuffling_every_pass_has_the_order_of_the_data_also_when_it_goes_on() -> None:
    before, after = stream_of(), stream_of(seed=7)
    before.shuffle = after.shuffle = False
    assert keys(before, 12) == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    after.position = before.position
    assert keys(after, 4) == [2, 3, 4, 0]


def test_the_order_follows_from_the_seed() -> None:
    assert keys(stream_of(rows=12, seed=3), 12) == keys(stream_of(rows=12, seed=3), 12)
    assert keys(stream_of(rows=12, seed=3), 12) != keys(stream_of(rows=12, seed=4), 12)


def test_seeds_depend_on_every_part_and_are_the_same_everywhere() -> None:
    assert len({seed_of("a", 1), seed_of("a", 2), seed_of("b", 1), seed_of("a", 1, 0), seed_of("a1")}) == 5
    assert seed_of("order", 0, 0) == 6842717984295184508  # of sha256, not of Python's hash
    assert torch.Generator().manual_seed(seed_of("x")).initial_seed() >= 0


# --- judging ---


def judged(judge: Any) -> list[list[Any]]:
    stream = stream_of(judge, rows=2)
    groups = [row for _, row in stream.draw(2)]
    stream.judge(groups)
    return [[a.reward for a in g.answers] for g in groups]


def test_rewards_are_written_to_the_answers_per_answer_or_per_token() -> None:
    assert judged(lambda groups: [[1.0, None], [[0.5, 0.25], 2]]) == [[1.0, None], [[0.5, 0.25], 2]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([[1.0, 2.0]], r"stage 'rl': reward 'rule' gave \[2\] judgements for \[2, 2\] answers"),
        ([[1.0, 2.0], [1.0]], r"reward 'rule' gave \[2, 1\] judgements for \[2, 2\] answers"),
        ([1.0, 2.0, 3.0, 4.0], r"gave no lists judgements for \[2, 2\] answers; it must give a list for every group"),
        (None, r"reward 'rule' gave NoneType judgements for \[2, 2\] answers"),
        ([["good", 1.0]] * 2, "reward 'rule' gave 'good' for the answer 'first'"),
        ([[[1.0, None], 1.0]] * 2, "reward 'rule' gave None for the answer 'first'"),
        ([[[1.0, 2.0, 3.0], 1.0]] * 2, "stage 'rl': reward 'rule' gave 3 numbers for the 2 tokens of 'first'"),
    ],
)  # fmt: skip
def test_judgements_that_do_not_fit_are_named_with_stage_and_reward(given: Any, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        judged(lambda groups: given)


@pytest.mark.parametrize(
    ("given", "which"),
    [
        ([[1.0, float("nan")]] * 2, r"nan for prompt 0 \(''\), answer 1 \('second'\)"),
        ([[float("-inf"), 1.0]] * 2, r"-inf for prompt 0 \(''\), answer 0 \('first'\)"),
        ([[[1.0, float("nan")], 1.0]] * 2, r"nan for prompt 0 \(''\), answer 0 \('first'\)"),
    ],
)
def test_a_reward_that_is_not_finite_is_named_with_its_sample_or_told_and_missing(given: Any, which: str) -> None:
    with pytest.raises(UserError, match=f"stage 'rl': reward 'rule' gave {which}"):
        judged(lambda groups: given)
    stream = stream_of(lambda groups: given, rows=2)
    stream.shuffle = False
    groups, found = [row for _, row in stream.draw(2)], []
    stream.judge(groups, found.append)
    assert [f.quantity for f in found] == ["reward"] * 2
    assert re.search(which, found[0].text)
    assert [[a.reward is None for a in g.answers].count(True) for g in groups] == [1, 1]
    assert all(len(g.reasons) == 1 for g in groups)


def test_a_reward_that_raises_is_named_with_its_stage() -> None:
    def broken(groups: Any) -> Any:
        raise KeyError("solution")

    with pytest.raises(PluginError, match="stage 'rl': judge of reward 'rule' raised KeyError: 'solution'"):
        judged(broken)


def test_without_a_reward_function_rows_keep_what_they_have() -> None:
    stream = stream_of(None, rows=1)
    stream.rows[0].answers[0].reward = 0.5
    stream.judge(stream.rows)
    assert [a.reward for a in stream.rows[0].answers] == [0.5, None]


# --- selecting ---


def groups_with(*rewards: list[float | None]) -> list[PromptGroup]:
    return [PromptGroup([3], [Answer([4], reward=r) for r in row], key=i) for i, row in enumerate(rewards)]


def test_answers_without_a_judgement_leave_and_are_counted() -> None:
    kept, counts = stream_of(lambda groups: []).select(groups_with([1.0, None, 0.0], [None, None, 2.0]))
    assert [[a.reward for a in g.answers] for g in kept] == [[1.0, 0.0], [2.0]]
    assert counts == {"missing": 3, "too_few": 0, "filtered": 0}


def test_a_missing_judgement_is_not_a_reward_of_0() -> None:
    kept, counts = stream_of(lambda groups: []).select(groups_with([0.0, None]))
    assert [a.reward for a in kept[0].answers] == [0.0]
    assert counts["missing"] == 1


def test_prompts_left_with_fewer_answers_than_the_algorithm_needs_leave_and_are_counted() -> None:
    stream = stream_of(lambda groups: [], answers=2)
    kept, counts = stream.select(groups_with([1.0, None], [1.0, 0.0], [None, None], [1.0, 0.0, None]))
    assert [g.key for g in kept] == [1, 3]
    assert counts == {"missing": 4, "too_few": 2, "filtered": 0}


def test_probes_are_no_answers_of_which_two_are_needed() -> None:
    groups = groups_with([1.0, 0.0])
    groups[0].answers[1].probe = True
    assert stream_of(lambda groups: [], answers=2).select(groups)[1]["too_few"] == 1
    kept, _ = stream_of(lambda groups: [], answers=1).select(groups)
    assert len(kept[0].answers) == 2  # the probe stays for statistics


def test_without_a_reward_function_answers_need_no_judgement() -> None:
    kept, counts = stream_of(None).select(groups_with([None, None]))
    assert len(kept[0].answers) == 2
    assert counts["missing"] == 0


def test_the_groups_that_were_judged_are_left_as_they_are() -> None:
    groups = groups_with([1.0, None])
    stream_of(lambda groups: []).select(groups)
    assert len(groups[0].answers) == 2


class Least(Settings):
    """A setting of a filter."""

    least: float = Field(0.5, description="lowest total reward of a prompt")


def rich(groups: list[PromptGroup], least: float) -> list[PromptGroup]:
    """Prompts whose rewards add up to enough."""
    return [g for g in groups if sum(a.total_reward or 0.0 for a in g.answers) >= least]


def test_filters_act_in_turn_with_their_settings_and_what_they_drop_is_counted() -> None:
    first = Rule("rich", Least, of="filter", value=rich)
    second = Rule("odd", of="filter", value=lambda groups: [g for g in groups if g.key % 2])
    stream = stream_of(lambda groups: [], filters=(first, second))
    kept, counts = stream.select(groups_with([0.0], [1.0], [2.0], [0.25], [0.5]))
    assert [g.key for g in kept] == [1]  # 0.5 and more: 1, 2, 4; odd: 1
    assert counts == {"missing": 0, "too_few": 0, "filtered": 4}


def test_a_filter_that_raises_is_named() -> None:
    bad = Rule("bad", of="filter", value=lambda groups: groups[99])
    with pytest.raises(PluginError, match="stage 'rl': value of filter 'bad' raised IndexError"):
        stream_of(lambda groups: [], filters=(bad,)).select(groups_with([1.0]))


def test_nothing_selected_is_an_answer_too() -> None:
    assert stream_of(lambda groups: []).select([]) == ([], {"missing": 0, "too_few": 0, "filtered": 0})


# --- sources and sampling ---


def test_a_source_is_asked_with_what_it_names_and_named_when_it_raises() -> None:
    def collect(prompts: Any, seed: int) -> Any:
        return [PromptGroup(p.prompt, [Answer([seed])]) for p in prompts]

    stream = stream_of(source=DataSource("mine", collect=collect))
    made = stream.collect(stream.rows[:2], lambda *_: [], 7)
    assert [g.answers[0].ids for g in made] == [[7], [7]]
    broken = stream_of(source=DataSource("mine", collect=lambda prompts: prompts[99]))
    with pytest.raises(PluginError, match="stage 'rl': collect of source 'mine' raised IndexError"):
        broken.collect(broken.rows, lambda *_: [], 7)


def test_log_probs_speak_of_the_temperature_of_sampling_and_of_1_for_rows_of_data() -> None:
    stream = stream_of()
    assert stream.temperature == 1.0
    stream.source = chosen(catalogue().get("source", "sampled"), temperature=0.5)
    assert stream.temperature == 0.5


def test_sampled_answers_carry_the_version_of_the_weights() -> None:
    class Engine:
        """The stranger's engine without its model."""

        name, kind = "fixed", "engine"

        @staticmethod
        def generate(prompts: list[list[int]], n: int, sampling: Any) -> list[list[Answer]]:
            return [[Answer([sum(p), k]) for k in range(n)] for p in prompts]

    sample = Sampler(Chosen(Engine, Settings()), None, None, 17)
    answers = sample([PromptGroup([1, 2]), PromptGroup([5])], 2, None)  # type: ignore[arg-type]
    assert [[a.ids for a in group] for group in answers] == [[[3, 0], [3, 1]], [[5, 0], [5, 1]]]
    assert {a.version for group in answers for a in group} == {17}


class Seeds:
    """An engine that answers with the seeds it was given."""

    name, kind = "seeds", "engine"

    @staticmethod
    def generate(prompts: list[list[int]], n: int, seeds: list[list[int]]) -> list[list[Answer]]:
        assert [len(own) for own in seeds] == [n] * len(prompts)
        return [[Answer([seed]) for seed in own] for own in seeds]


def sampler_at(*place: object) -> Sampler:
    return Sampler(Chosen(Seeds, Settings()), None, None, 0, place)


def seeds_given(sample: Sampler, *draws: int, n: int = 2) -> list[list[int]]:
    prompts = [PromptGroup([3, draw], draw=draw) for draw in draws]
    return [[a.ids[0] for a in group] for group in sample(prompts, n, None)]  # type: ignore[arg-type]


def test_the_seed_of_an_answer_depends_on_its_draw_and_not_on_the_prompts_beside_it() -> None:
    whole = seeds_given(sampler_at(1, "train", 5), 10, 11, 12, 13)
    assert len({seed for own in whole for seed in own}) == 8
    halves = [seeds_given(sampler_at(1, "train", 5), *draws) for draws in ((10, 12), (11, 13))]
    assert [halves[0][0], halves[1][0], halves[0][1], halves[1][1]] == whole
    one = sampler_at(1, "train", 5)
    assert [seeds_given(one, draw)[0] for draw in (13, 11, 12, 10)][::-1] == [whole[0], whole[2], whole[1], whole[3]]
    assert seeds_given(sampler_at(1, "train", 5), 10, n=5)[0][:2] == whole[0]  # more answers change no earlier one


def test_other_places_draws_and_times_give_other_seeds() -> None:
    sample = sampler_at(1, "train", 5)
    found = [*seeds_given(sample, 10, 10), *seeds_given(sample, 10), *seeds_given(sampler_at(1, "train", 6), 10)]
    found += [*seeds_given(sampler_at(2, "train", 5), 10), *seeds_given(sampler_at(1, "text", 5), 10)]
    assert len({seed for own in found for seed in own}) == 2 * len(found) == 12


def test_a_prompt_that_was_not_drawn_is_known_by_its_tokens() -> None:
    def asked(*prompts: list[int]) -> list[int]:
        groups = [PromptGroup(p) for p in prompts]
        return [own[0].ids[0] for own in sampler_at("judge")(groups, 1, None)]  # type: ignore[arg-type]

    assert asked([4, 5], [6]) == [*asked([4, 5]), *asked([6])]
    assert len(set(asked([4, 5], [6], [4, 5]))) == 3


def test_judging_a_row_in_one_pass_leaves_it_as_the_data_say_for_the_next() -> None:
    def judge(groups: list[PromptGroup]) -> list[list[float]]:
        for group in groups:
            for answer in group.answers:
                answer.columns["own"] = 3.0
        return [[(a.total_reward or 0.0) / 2 for a in g.answers] for g in groups]

    rows = [PromptGroup([1], [Answer([2], reward=1.0)])]
    stream = Stream("s", rows, None, Chosen(Reward("half", judge=judge), Settings()), [], 0)
    for _ in range(3):  # and the parts of the reward are reported in every pass
        groups = stream.collect([rows[0]], None, 0)  # type: ignore[arg-type]
        assert stream.judge(groups) == {"own": (3.0, 1)}
        assert groups[0].answers[0].reward == 0.5
    assert (rows[0].answers[0].reward, rows[0].answers[0].columns) == (1.0, {})


def test_what_a_reward_draws_from_any_global_generator_follows_from_its_place_in_the_run() -> None:
    def drawn(*place: object) -> tuple[float, float, float]:
        seed_all(*place)
        return random.random(), float(numpy.random.rand()), float(torch.rand(()))

    first = drawn("judge", 0, 3)
    assert drawn("judge", 0, 3) == first
    assert all(a != b for a, b in zip(drawn("judge", 0, 4), first, strict=True))
