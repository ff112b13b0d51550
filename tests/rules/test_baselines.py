"""Advantages against other baselines than the mean, and those made of others; all by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.algorithms.batches import term
from unified import Batch, PluginError
from unified_plugins.rules.advantages import group_advantage
from unified_plugins.rules.baselines import greedy, length_weighted, pass_at_k
from unified_plugins.rules.steps import optimal_token, process

ONE = torch.zeros(3, dtype=torch.long)


def _credit(advantage: Any, *, columns: dict[str, torch.Tensor] | None = None, **fields: Any) -> torch.Tensor:
    fields.setdefault("loss_mask", torch.ones(len(fields["reward"]), 1, dtype=torch.bool))
    one = term("grpo", advantage=advantage, kl_weight=0.0)
    found: torch.Tensor = one.call("credit", batch=Batch(fields, columns))["advantage"]
    return found


def test_the_baseline_by_length_weighs_long_answers_more() -> None:
    # lengths 1, 1, 2: (4 + 0 + 2 * 2) / 4 = 2
    mask = torch.tensor([[True, False], [True, False], [True, True]])
    found = length_weighted(torch.tensor([4.0, 0.0, 2.0]), ONE, mask)["advantage"]
    torch.testing.assert_close(found, torch.tensor([2.0, -2.0, 0.0]))


def test_equal_rewards_are_worth_exactly_nothing_whatever_their_lengths() -> None:
    mask = torch.tensor([[True, False, False], [True, True, False], [True, True, True]])
    assert (length_weighted(torch.full((3,), 0.7), ONE, mask)["advantage"] == 0).all()


def test_only_the_best_answer_is_pushed_by_what_it_beats_the_second() -> None:
    # 4 - 2; the sample deviation of 4, 2, 0 is 2
    reward = torch.tensor([2.0, 4.0, 0.0])
    torch.testing.assert_close(pass_at_k(reward, ONE, std="none")["advantage"], torch.tensor([0.0, 2.0, 0.0]))
    torch.testing.assert_close(pass_at_k(reward, ONE)["advantage"], torch.tensor([0.0, 1.0, 0.0]))


def test_two_best_answers_are_worth_nothing_and_neither_is_a_single_one() -> None:
    assert (pass_at_k(torch.tensor([4.0, 4.0, 0.0]), ONE)["advantage"] == 0).all()
    assert float(pass_at_k(torch.tensor([4.0]), torch.zeros(1))["advantage"]) == 0


def test_the_greedy_answer_of_the_same_prompt_is_the_baseline() -> None:
    # 3 - 1 and 0 - 1 in the first prompt, 5 - 5 in the second
    reward, group = torch.tensor([3.0, 0.0, 1.0, 5.0, 5.0]), torch.tensor([0, 0, 0, 1, 1])
    probe = torch.tensor([False, False, True, False, True])
    torch.testing.assert_close(greedy(reward, group, probe)["advantage"], torch.tensor([2.0, -1.0, 0.0, 0.0, 0.0]))


def test_a_prompt_without_its_greedy_answer_teaches_nothing_and_a_batch_without_any_is_refused() -> None:
    reward, group = torch.tensor([3.0, 1.0, 7.0]), torch.tensor([0, 0, 1])
    found = greedy(reward, group, torch.tensor([False, True, False]))["advantage"]
    torch.testing.assert_close(found, torch.tensor([2.0, 0.0, 0.0]))
    with pytest.raises(PluginError, match="use `source: rollouts_and_greedy`"):
        _credit("greedy", reward=reward, group=group)


def test_the_deviation_may_be_that_of_all_answers() -> None:
    # means 1 and 5 of two prompts; rewards 0, 2, 4, 6: sample variance (9 + 1 + 1 + 9) / 3 = 20/3
    reward, group = torch.tensor([0.0, 2.0, 4.0, 6.0]), torch.tensor([0, 0, 1, 1])
    found = group_advantage(reward, group, over="batch")["advantage"]
    torch.testing.assert_close(found, torch.tensor([-1.0, 1.0, -1.0, 1.0]) / (20 / 3) ** 0.5)


# --- made of others ---


def test_an_advantage_is_whitened_over_answers() -> None:
    # leave-one-out of (0, 4) and (0, 2): -4, 4, -2, 2, mean 0, sample variance 40/3
    rule = {"name": "whitened", "of": "leave_one_out", "epsilon": 0.0}
    found = _credit(rule, reward=torch.tensor([0.0, 4.0, 0.0, 2.0]), group=torch.tensor([0, 0, 1, 1]))
    torch.testing.assert_close(found, torch.tensor([-4.0, 4.0, -2.0, 2.0]) / (40 / 3) ** 0.5)


def test_over_tokens_a_long_answer_counts_more() -> None:
    # -1 on one token and 1 on three: mean 1/2, population variance (9/4 + 3/4) / 4 = 3/4
    rule = {"name": "whitened", "of": {"name": "group", "std": "none"}, "over": "tokens", "std": "population"}
    mask = torch.tensor([[True, False, False], [True, True, True]])
    found = _credit({**rule, "epsilon": 0.0}, reward=torch.tensor([0.0, 2.0]), group=torch.zeros(2), loss_mask=mask)
    wanted = torch.tensor([[-1.5, 0.0, 0.0], [0.5, 0.5, 0.5]]) / 0.75**0.5
    torch.testing.assert_close(found, wanted)


def test_rows_of_one_trajectory_are_all_whitened_and_count_once_as_an_answer() -> None:
    # answers 0 (two rows) and 2: -1, -1, 1 with a mean of 0 over two answers and sample deviation sqrt(2)
    rule = {"name": "whitened", "of": {"name": "group", "std": "none"}, "epsilon": 0.0}
    fields = {"group": torch.zeros(3), "trajectory": torch.tensor([0, 0, 1])}
    found = _credit(rule, reward=torch.tensor([0.0, 0.0, 2.0]), **fields)
    torch.testing.assert_close(found, torch.tensor([-1.0, -1.0, 1.0]) / 2**0.5)


def test_an_advantage_per_token_cannot_be_whitened_over_answers() -> None:
    with pytest.raises(PluginError, match="whiten it `over: tokens`"):
        _credit({"name": "whitened", "of": "monte_carlo"}, reward=torch.zeros(2))


def test_several_rewards_are_normalised_before_they_are_summed() -> None:
    # each of a = (0, 2) and b = (30, 10) becomes -+ 1 / sqrt(2): 1 * (-1, 1) + 0.5 * (1, -1). Summed first b would win
    rule = {"name": "per_reward", "rewards": {"a": 1.0, "b": 0.5}}
    columns = {"a": torch.tensor([0.0, 2.0]), "b": torch.tensor([30.0, 10.0])}
    found = _credit(rule, reward=torch.zeros(2), group=torch.zeros(2), columns=columns)
    torch.testing.assert_close(found, torch.tensor([-0.5, 0.5]) / 2**0.5)


def test_a_reward_that_is_no_column_is_refused_with_those_that_are() -> None:
    rule = {"name": "per_reward", "rewards": {"c": 1.0}}
    with pytest.raises(PluginError, match="no column 'c'; columns of these answers: a"):
        _credit(rule, reward=torch.zeros(2), columns={"a": torch.zeros(2)})


def test_outcomes_are_compared_before_the_kl_is_taken_off_each_token() -> None:
    # outcomes 3 and 1 less their mean: 1 and -1. KL 0.1 * (1, 2) on the first answer: still to come 1 - 0.3 and 1 - 0.2
    one = term(
        "grpo",
        advantage={"name": "monte_carlo", "baseline": {"name": "group", "std": "none"}},
        kl="k1",
        kl_weight=0.1,
        kl_place="reward",
    )
    fields = {
        "old_logp": torch.tensor([[1.0, 2.0], [0.0, 0.0]]),
        "ref_logp": torch.zeros(2, 2),
        "group": torch.zeros(2),
    }
    batch = Batch({"reward": torch.tensor([3.0, 1.0]), "loss_mask": torch.ones(2, 2, dtype=torch.bool), **fields})
    found = one.call("credit", batch=batch)["advantage"]
    torch.testing.assert_close(found, torch.tensor([[0.7, 0.8], [-1.0, -1.0]]))


# --- along one answer ---


def test_steps_of_all_answers_are_pooled_and_summed_from_here_on() -> None:
    # scores 1, 3 in one answer, 2 in the other: mean 2, sample deviation 1. Sums of what is still to end
    reward = torch.tensor([[0.0, 1.0, 3.0], [0.0, 2.0, 0.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    found = process(reward, torch.zeros(2), mask)["advantage"]
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))
    plain = process(reward + torch.tensor([[0.0, 0, 3], [0, 0, 0]]), torch.zeros(2), mask, std="none")["advantage"]
    torch.testing.assert_close(plain, torch.tensor([[1.0, 1.0, 3.0], [-1.0, -1.0, 0.0]]))  # 1, 6, 2: mean 3


def test_steps_that_all_have_one_score_are_worth_exactly_nothing() -> None:
    assert (
        process(torch.full((2, 3), 0.7), torch.zeros(2), torch.ones(2, 3, dtype=torch.bool))["advantage"] == 0
    ).all()


def test_the_optimal_baseline_weighs_returns_by_the_energy_so_far() -> None:
    # one token each, p = 1/2 and 1/4 of two: sum p^2 = 1/2 and 5/8; energies 1/2 and 9/8; returns 0 and 13
    # baseline (13 * 9/8) / (13/8) = 9; the second token of the second answer has nothing to be compared with
    logp = torch.tensor([[0.5, 0.5], [0.25, 0.5]]).log()
    square = torch.tensor([[0.5, 0.5], [0.625, 0.5]]).log()
    mask = torch.tensor([[True, False], [True, True]])
    reward = torch.tensor([[0.0, 9.0], [0.0, 13.0]])
    found = optimal_token(reward, logp, square, torch.zeros(2, dtype=torch.long), mask)["advantage"]
    torch.testing.assert_close(found, torch.tensor([[-9.0, 0.0], [4.0, 0.0]]))
    tail = optimal_token(reward, logp, square, torch.zeros(2, dtype=torch.long), mask, push_tail=True)["advantage"]
    torch.testing.assert_close(tail, torch.tensor([[-9.0, 0.0], [4.0, 13.0]]))


def test_equal_returns_are_worth_exactly_nothing_against_the_optimal_baseline() -> None:
    logp, reward = torch.rand(3, 2).log(), torch.tensor([[0.0, 0.7], [0.7, 9.0], [0.0, 0.7]])
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    assert (optimal_token(reward, logp, logp, ONE, mask)["advantage"] == 0).all()


def test_a_hole_does_not_move_the_tokens_that_are_compared() -> None:
    # the same, with a tool's token between
    logp = torch.tensor([[0.5, 0.5, 0.5], [0.25, 0.9, 0.5]]).log()
    square = torch.tensor([[0.5, 0.5, 0.5], [0.625, 0.9, 0.5]]).log()
    mask = torch.tensor([[True, False, False], [True, False, True]])
    reward = torch.tensor([[0.0, 0.0, 9.0], [0.0, 5.0, 13.0]])
    found = optimal_token(reward, logp, square, torch.zeros(2, dtype=torch.long), mask)["advantage"]
    torch.testing.assert_close(found, torch.tensor([[-9.0, 0.0, 0.0], [4.0, 0.0, 0.0]]))
