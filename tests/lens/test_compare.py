"""The numbers of the lens: those that papers give by hand, and those with which the engine itself would step."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy
import pytest
import torch

from tests.lens.pictures import ANSWERS, asked, data_of, group, nudged, picture, policy, pushes
from tests.tools import gradient
from unified import Example, PromptGroup, UserError
from unified.lens.compare import _settings, all_algorithms, answered, compare, in_memory
from unified.lens.example import example_rows, tiny_model
from unified.lens.pack import page_data
from unified.lens.page import page
from unified.lens.picture import Picture, alike, by_token
from unified.running import Run, forward, tabulate
from unified.set_up import set_up
from unified.settings import choose
from unified.step import accumulate, count, credit, score


def near(found: list[float], wanted: float) -> bool:
    return bool(found) and all(math.isclose(x, wanted, rel_tol=1e-12, abs_tol=1e-15) for x in found)


def test_imitation_gives_every_token_the_same_one_over_all_tokens() -> None:
    (column,) = picture("sft").columns
    # 3 + 5 + 2 tokens, aggregation "token"; what the answers are worth has no part in it
    assert all(near(one, 1 / 10) for one in pushes(column))
    assert column.sums("logp") == pytest.approx({"raised": 1.0, "lowered": 0.0, "sum": 1.0}, rel=1e-12)


def test_a_pair_is_pushed_apart_by_beta_times_the_sigmoid_of_its_margin() -> None:
    other = policy(1)
    (column,) = picture({"name": "dpo", "beta": 0.3}, groups=[group(1.0, 0.0)], reference=other).columns
    better, worse = column.seen
    assert better is not None
    assert worse is not None
    margin = 0.3 * (sum(better.fields["kl"]) - sum(worse.fields["kl"]))  # type: ignore[arg-type]
    assert abs(margin) > 0.01  # the reference is another model
    sigma = 1 / (1 + math.exp(margin))
    assert near(better.pushes("logp"), 0.3 * sigma)  # one pair, summed over tokens: w = 1
    assert near(worse.pushes("logp"), -0.3 * sigma)
    assert column.loss == pytest.approx(math.log(1 + math.exp(-margin)), rel=1e-12)


def test_groups_of_rewards_1_1_0_get_their_advantages_over_3_answers_and_their_lengths() -> None:
    # mean 2/3, deviation sqrt((1/9 + 1/9 + 4/9) / 2) = 1/sqrt(3): advantages sqrt(3)/3, sqrt(3)/3, -2 sqrt(3)/3
    (column,) = picture("grpo").columns
    root = math.sqrt(3)
    wanted = [root / 3 / 9, root / 3 / 15, -2 * root / 3 / 6]  # 3 answers of 3, 5 and 2 tokens
    for found, push, advantage in zip(pushes(column), wanted, (root / 3, root / 3, -2 * root / 3), strict=True):
        # the deviation is kept from 0 by 1e-4 or less
        assert found == pytest.approx([push] * len(found), rel=1e-3)
        seen = column.seen[wanted.index(push)]
        assert seen is not None
        assert seen.fields["advantage"] == pytest.approx([advantage] * len(found), rel=1e-3)
        assert seen.fields["ratio"] == [1.0] * len(found)
    assert column.clipped == 0


def test_a_token_is_clipped_exactly_where_its_ratio_has_left_the_region() -> None:
    (column,) = picture({"name": "grpo", "kl_weight": 0}, old=nudged(7, 0.06)).columns
    outside = inside = 0
    for seen, up in zip(column.seen, (True, True, False), strict=True):
        assert seen is not None
        for ratio, cut, push in zip(seen.fields["ratio"], seen.clipped["logp"], seen.pushes("logp"), strict=True):
            assert ratio is not None
            assert cut == (ratio > 1.2 if up else ratio < 0.8)  # clip 0.2
            assert (push == 0) == cut
            outside, inside = outside + cut, inside + (not cut)
    assert outside > 0
    assert inside > 0
    assert column.clipped == outside


def test_a_clipped_token_is_found_although_the_kl_still_pushes_it() -> None:
    models = {"old": nudged(7, 0.06), "reference": policy(1)}
    plain, both = picture({"name": "grpo", "kl_weight": 0}, {"name": "grpo", "kl_weight": 0.5}, **models).columns
    cuts = [[s.clipped["logp"] if s else None for s in c.seen] for c in (plain, both)]
    assert cuts[0] == cuts[1]
    pushed = [p for s in both.seen if s for p, cut in zip(s.pushes("logp"), s.clipped["logp"], strict=True) if cut]
    assert pushed
    assert all(pushed)


def numbers_of_page(picture: Picture) -> list[dict[str, list[list[float]]]]:
    """Per column and head: w · GC of every token of every answer, computed from the data in the page."""
    data = data_of(page(page_data({"": [picture]}, "test")))
    pool = data["pool"]
    return [
        {
            name: [[w * gc for gc in pool[place]] for w, place in zip(head["w"], head["gc"], strict=True)]
            for name, head in column["heads"].items()
        }
        for column in data["strips"][0]["pictures"][0]["columns"]
    ]


def engine_gradient(run: Run, groups: list[PromptGroup], old: Any) -> tuple[torch.Tensor, Any]:
    """The gradient of one optimiser step on these groups, and its table."""
    table = tabulate(run, run.streams[0], groups)
    model = run.roles.models["policy"]
    now = {k: v.clone() for k, v in model.state_dict().items()}
    if old is not None:
        model.load_state_dict(old.module.state_dict())
    score(run, table, several_steps=True)
    model.load_state_dict(now)
    credit(run, table)
    run.optimizer.zero_grad(set_to_none=True)
    accumulate(run, [count(run, table, list(range(len(table.rows))))])
    return gradient(run), table


@pytest.mark.parametrize(
    ("name", "sampled_before"),
    [("sft", False), ("dpo", False), ("kto", False), ("grpo", False), ("grpo", True), ("ppo", True)],
)
def test_tokens_times_the_numbers_of_the_page_are_the_gradient_of_the_step(name: str, sampled_before: bool) -> None:
    # the sum over tokens and heads of w GC grad(head), in float64
    other, old = policy(1), nudged(7, 0.03) if sampled_before else None
    groups = [group(1.0, 1.0, 0.0), group(0.0, 1.0, key=1)]
    made = picture(name, groups=groups, reference=other, old=old)
    assert made.silent == {}
    what = asked(name, reference=other)
    run = set_up(what.stage(), _settings(what, what.algorithms[0]))
    mine, _ = run.streams[0].select(list(groups))
    if name == "kto":  # with its probes, which count in the statistics
        mine = run.streams[0].collect(mine, lambda *_: [], 0)
    wanted, table = engine_gradient(run, mine, old)
    assert float(wanted.norm()) > 1e-4
    run.optimizer.zero_grad(set_to_none=True)
    (of_page,) = numbers_of_page(made)
    heads = {h: v for named in forward(run, table, range(len(table.rows)), run.asks(frozenset(of_page))).values()
             for h, v in named.items()}  # fmt: skip
    places = [i for i, answer in enumerate(a for g in mine for a in g.answers) if not answer.probe]
    total = torch.zeros((), dtype=torch.float64)
    for head, rows in of_page.items():
        for i, row in zip(places, rows, strict=True):
            total = total + (torch.tensor(row, dtype=torch.float64) * heads[head][i, : len(row)]).sum()
    (-total).backward()
    assert float((gradient(run) - wanted).norm() / wanted.norm()) < 1e-10


def test_the_model_that_was_looked_at_is_as_before() -> None:
    what = asked("grpo", "kto", "ppo", reference=policy(1), old=nudged(7, 0.03))
    before = {k: v.clone() for k, v in what.model.module.state_dict().items()}
    compare(what, [group(1.0, 1.0, 0.0)], what.model.tokenizer())
    assert all(torch.equal(v, before[k]) for k, v in what.model.module.state_dict().items())


def test_looking_leaves_the_run_and_every_random_state_as_they_were() -> None:
    from unified.lens.look import look

    what = asked({"name": "dpo"}, reference=policy(1))
    run = set_up(what.stage(), _settings(what, what.algorithms[0]))
    run.add("loss", 3.0)
    run.roles.models["policy"].train()
    states = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[union-attr]
    look(run, run.streams[0], [group(1.0, 0.0)])
    assert run.sums == {"loss": (3.0, 1.0)}
    assert run.kept == {}
    assert run.roles.models["policy"].training
    assert random.getstate() == states[0]
    assert numpy.random.get_state()[1].tolist() == states[1]  # type: ignore[union-attr]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert all(p.grad is None for p in run.roles.parameters())


def test_an_algorithm_that_cannot_judge_the_rows_says_why_and_the_others_are_shown() -> None:
    made = picture("sft", "dpo", "distill_forward", "tpo", groups=[group(None)])
    assert [c.name for c in made.columns] == ["sft"]
    assert made.silent["dpo"] == "it needs 2 answers to a prompt; these rows have 1 at most"
    assert "needs a teacher" in made.silent["distill_forward"]
    assert made.silent["tpo"].startswith("it needs 3 answers")
    made = picture("grpo", groups=[group(None, None)])
    assert made.silent == {"grpo": "it needs rewards: these rows carry none; give --reward NAME"}
    made = picture("remax", {"name": "grpo", "advantage": "greedy"}, groups=[group(1.0, 0.0)])
    assert set(made.silent) == {"remax", "grpo"}
    assert all(said.startswith("it compares answers with a probe to the same prompt") for said in made.silent.values())


def test_fields_that_an_algorithm_does_not_read_are_not_there() -> None:
    imitation, pair = picture("sft", "dpo").columns
    assert [sorted(c.seen[0].fields) for c in (imitation, pair) if c.seen[0]] == [["logp"], ["kl", "logp", "ref_logp"]]
    assert imitation.seen[0] is not None
    assert imitation.seen[0].clipped == {}


def test_an_answer_without_a_reward_has_no_part_and_keeps_its_place() -> None:
    (column,) = picture("grpo", groups=[group(1.0, None, 0.0)]).columns
    assert [one is None for one in column.seen] == [False, True, False]
    assert column.notes == ["left out: missing 1"]


def test_without_any_answer_there_is_nothing_to_look_at() -> None:
    with pytest.raises(UserError, match="no answers to look at"):
        picture("sft", groups=[PromptGroup([3], [], text="a", key=0)])


def test_two_settings_of_one_algorithm_stand_side_by_side() -> None:
    made = picture("dpo", {"name": "dpo", "beta": 0.5}, groups=[group(1.0, 0.0)])
    assert [c.name for c in made.columns] == ["dpo (defaults)", "dpo (beta=0.5)"]
    assert made.columns[1].settings == {"beta": 0.5}
    one, other = (c.seen[0].pushes("logp")[0] for c in made.columns if c.seen[0])
    assert other == pytest.approx(5 * one)  # beta sigmoid(0), 0.5 in place of 0.1


def test_algorithms_that_push_alike_are_known_as_such() -> None:
    # kl_weight has no effect where the reference is the model itself
    made = picture("grpo", {"name": "grpo", "kl_weight": 0}, "sft")
    assert alike(made.columns) == [0, 0, 2]


def test_the_example_is_one_prompt_with_rewards_1_1_0_and_every_word_is_a_token() -> None:
    what = asked("sft", model=tiny_model("credit"))
    groups, tokenizer, notes = answered(what, in_memory(example_rows("credit")))
    assert notes == []
    made = compare(what, groups, tokenizer)
    assert [a.reward for a in made.answers] == [1.0, 1.0, 0.0]
    assert made.answers[1].tokens == [" The", " capital", " is", " not", " Nanjing", ",", " it", " is", " Beijing", ".",
                                      "</s>"]  # fmt: skip
    with pytest.raises(UserError, match="did you mean 'credit'"):
        example_rows("credits")


def test_a_pair_of_answers_blames_the_words_in_which_they_differ() -> None:
    what = asked("dpo", model=tiny_model("credit"))
    groups, tokenizer, _ = answered(what, in_memory(example_rows("credit")))
    made = compare(what, groups, tokenizer)
    words = {token: total for token, total, _ in by_token(made, made.columns[0], "logp")}
    # two pairs with margin 0, each half: +0.1/2/2 for each of the better, twice that for the worse
    assert words["Nanjing"] == pytest.approx(0.025 - 0.05, rel=1e-5)
    assert words["Beijing"] == pytest.approx(2 * 0.025, rel=1e-5)
    assert words["The"] == pytest.approx(0.0, abs=1e-9)  # in all three: nothing is learned of it


def test_rows_without_answers_are_sampled_where_some_algorithm_samples_and_judged() -> None:
    reward, _ = choose("reward", {"name": "length", "target": 3, "width": 10})
    what = asked("grpo", model=policy(), reward=reward)
    rows = in_memory([Example("ab"), Example("cd", ["xyz"])])
    groups, tokenizer, notes = answered(what, rows, samples=3, max_tokens=5)
    assert [len(g.answers) for g in groups] == [3, 1]
    assert notes == ["1 of 2 rows had no answers: the model sampled them, seed 0"]
    assert all(a.reward is not None for g in groups for a in g.answers)
    assert [[a.ids for a in g.answers] for g in answered(what, rows, samples=3, max_tokens=5)[0]] == [
        [a.ids for a in g.answers] for g in groups
    ]
    imitation = asked("sft", model=policy())
    groups, _, notes = answered(imitation, rows)
    assert [g.text for g in groups] == ["cd"]
    assert notes == ["1 of 2 rows have no answers, and no algorithm here samples: left out"]
    assert compare(what, answered(what, rows, samples=3, max_tokens=5)[0], tokenizer).columns[0].notes == [
        "left out: too_few 1"
    ]


@pytest.mark.slow
def test_every_installed_algorithm_is_shown_or_says_why_not() -> None:
    what = asked(model=tiny_model("credit"))
    what.algorithms = all_algorithms()
    groups, tokenizer, _ = answered(what, in_memory(example_rows("credit")))
    made = compare(what, groups, tokenizer)
    assert len(made.columns) + len(made.silent) == len(what.algorithms) > 50
    assert len(made.columns) > 40
    assert {"sft", "dpo", "ppo", "grpo", "reward_model"} <= {c.name for c in made.columns}
    assert len(ANSWERS) == len(made.answers)
