"""Group-relative and leave-one-out advantages, by hand."""

from __future__ import annotations

import pytest
import torch

from unified_plugins.rules.advantages import group_advantage, leave_one_out

ONE_GROUP = torch.zeros(4, dtype=torch.long)


def test_one_success_in_four_is_worth_one_and_a_half_sample_deviations() -> None:
    # mean 1/4, sample deviation sqrt((9/16 + 3/16) / 3) = 1/2: (3/4) / (1/2) = 3/2, (-1/4) / (1/2) = -1/2
    found = group_advantage(torch.tensor([1.0, 0, 0, 0]), ONE_GROUP)["advantage"]
    torch.testing.assert_close(found, torch.tensor([1.5, -0.5, -0.5, -0.5]))


def test_the_population_deviation_divides_by_n() -> None:
    # sqrt((9/16 + 3/16) / 4) = sqrt(3) / 4: (3/4) / (sqrt(3) / 4) = sqrt(3)
    found = group_advantage(torch.tensor([1.0, 0, 0, 0]), ONE_GROUP, std="population")["advantage"]
    torch.testing.assert_close(found[0], torch.tensor(3.0).sqrt())


def test_without_a_deviation_it_is_the_distance_from_the_mean() -> None:
    found = group_advantage(torch.tensor([1.0, 0, 0, 0]), ONE_GROUP, std="none")["advantage"]
    torch.testing.assert_close(found, torch.tensor([0.75, -0.25, -0.25, -0.25]))


def test_epsilon_is_added_to_the_deviation() -> None:
    # (3/4) / (1/2 + 1/4) = 1
    found = group_advantage(torch.tensor([1.0, 0, 0, 0]), ONE_GROUP, epsilon=0.25)["advantage"]
    torch.testing.assert_close(found[0], torch.tensor(1.0))


@pytest.mark.parametrize("rule", [group_advantage, leave_one_out])
def test_equal_rewards_give_exactly_zero(rule) -> None:
    # the plain formula in float32 gives 0.9 here: 0.7 has no exact mean
    found = rule(torch.full((8,), 0.7), torch.zeros(8, dtype=torch.long))["advantage"]
    assert (found == 0).all()


@pytest.mark.parametrize("rule", [group_advantage, leave_one_out])
def test_a_prompt_with_one_answer_gives_exactly_zero(rule) -> None:
    assert rule(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0, 1, 1]))["advantage"][0] == 0


def test_rewards_of_another_prompt_do_not_matter() -> None:
    group = torch.tensor([5, 2, 5, 2])  # any numbers, in any order
    found = group_advantage(torch.tensor([1.0, 100.0, 3.0, 300.0]), group)["advantage"]
    # each prompt: mean 2, sample deviation sqrt(2): -+ 1 / sqrt(2), whatever its unit
    torch.testing.assert_close(found, torch.tensor([-1.0, -1.0, 1.0, 1.0]) / 2**0.5)


def test_tiny_spread_is_no_division_by_zero() -> None:
    # the squares, 1e-60, underflow in float32
    found = group_advantage(torch.tensor([1e-30, 3e-30]), torch.zeros(2, dtype=torch.long))["advantage"]
    torch.testing.assert_close(found, torch.tensor([-1.0, 1.0]) / 2**0.5)


def test_a_probe_is_compared_with_the_answers_but_is_not_in_their_mean() -> None:
    counts = torch.tensor([True, True, False])
    found = group_advantage(torch.tensor([0.0, 2.0, 10.0]), torch.zeros(3, dtype=torch.long), counts, std="none")
    torch.testing.assert_close(found["advantage"], torch.tensor([-1.0, 1.0, 9.0]))  # mean of 0 and 2


def test_answers_that_do_not_count_leave_equal_ones_at_zero() -> None:
    counts = torch.tensor([True, True, False])
    found = group_advantage(torch.tensor([2.0, 2.0, 10.0]), torch.zeros(3, dtype=torch.long), counts)["advantage"]
    assert (found == 0).all()


def test_leave_one_out_subtracts_the_mean_of_the_others() -> None:
    # 4 - (1 + 1) / 2 = 3; 1 - (4 + 1) / 2 = -3/2
    found = leave_one_out(torch.tensor([4.0, 1.0, 1.0]), torch.zeros(3, dtype=torch.long))["advantage"]
    torch.testing.assert_close(found, torch.tensor([3.0, -1.5, -1.5]))


def test_shapes_that_differ_are_shown() -> None:
    with pytest.raises(ValueError, match=r"reward is \[3\], group \[4\]"):
        group_advantage(torch.zeros(3), ONE_GROUP)
