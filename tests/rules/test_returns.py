"""Advantages along one answer, by hand, and whitening."""

from __future__ import annotations

import torch

from unified_plugins.rules.returns import gae, monte_carlo, temporal_difference
from unified_plugins.rules.whitening import whiten

REWARD = torch.tensor([[0.0, 0.0, 1.0]])
VALUE = torch.tensor([[0.5, 0.25, 0.75]])
ALL = torch.ones(1, 3, dtype=torch.bool)


def test_gae_sums_discounted_differences() -> None:
    # d3 = 1 - 0.75 = 0.25; d2 = 0.75 - 0.25 = 0.5; d1 = 0.25 - 0.5 = -0.25
    # A3 = 0.25; A2 = 0.5 + 0.5 * 0.25 = 0.625; A1 = -0.25 + 0.5 * 0.625 = 0.0625
    found = gae(REWARD, VALUE, ALL, gamma=1.0, lam=0.5)
    torch.testing.assert_close(found["advantage"], torch.tensor([[0.0625, 0.625, 0.25]]))
    torch.testing.assert_close(found["returns"], torch.tensor([[0.5625, 0.875, 1.0]]))


def test_gamma_discounts_the_next_value() -> None:
    # lam 0: r + 0.5 V' - V: 0.125 - 0.5, 0.375 - 0.25, 1 - 0.75
    found = temporal_difference(REWARD, VALUE, ALL, gamma=0.5)["advantage"]
    torch.testing.assert_close(found, torch.tensor([[-0.375, 0.125, 0.25]]))


def test_lambda_one_is_the_return_minus_the_value() -> None:
    found = gae(REWARD, VALUE, ALL, gamma=1.0, lam=1.0)["advantage"]
    torch.testing.assert_close(found, 1.0 - VALUE)


def test_monte_carlo_is_the_reward_still_to_come() -> None:
    # 0.5 * 0.5 * 1, 0.5 * 1, 1
    found = monte_carlo(REWARD, ALL, gamma=0.5)
    torch.testing.assert_close(found["advantage"], torch.tensor([[0.25, 0.5, 1.0]]))
    torch.testing.assert_close(found["returns"], found["advantage"])


def test_a_token_that_a_tool_wrote_is_no_step_of_time() -> None:
    # the same three steps with a hole of two tokens, whose values and rewards are noise
    reward, value = torch.tensor([[0.0, 9.0, 9.0, 0.0, 1.0]]), torch.tensor([[0.5, 7.0, 7.0, 0.25, 0.75]])
    mask = torch.tensor([[True, False, False, True, True]])
    found = gae(reward, value, mask, gamma=0.5, lam=0.5)
    whole = gae(REWARD, VALUE, ALL, gamma=0.5, lam=0.5)
    for name in ("advantage", "returns"):
        torch.testing.assert_close(found[name][mask], whole[name][0])
        assert (found[name][~mask] == 0).all()


def test_padding_changes_nothing() -> None:
    reward, value = (torch.cat([x, torch.full((1, 2), 9.0)], 1) for x in (REWARD, VALUE))
    mask = torch.cat([ALL, torch.zeros(1, 2, dtype=torch.bool)], 1)
    torch.testing.assert_close(gae(reward, value, mask)["advantage"][:, :3], gae(REWARD, VALUE, ALL)["advantage"])


def test_returns_are_not_whitened() -> None:
    torch.testing.assert_close(gae(REWARD, VALUE, ALL, whiten=True)["returns"], gae(REWARD, VALUE, ALL)["returns"])


def test_whitening_divides_by_the_sample_deviation() -> None:
    # mean of 1, 2, 3 is 2; sample variance 1
    found = whiten(
        torch.tensor([[1.0, 2.0, 3.0, 99.0]]), torch.tensor([[True] * 3 + [False]]), lambda x: x.sum(0), epsilon=0
    )
    torch.testing.assert_close(found, torch.tensor([[-1.0, 0.0, 1.0, 0.0]]))


def test_whitening_by_the_population_divides_by_n() -> None:
    # variance of 1, 3 is 1
    found = whiten(
        torch.tensor([[1.0, 3.0]]), torch.ones(1, 2, dtype=torch.bool), lambda x: x.sum(0), std="population", epsilon=0
    )
    torch.testing.assert_close(found, torch.tensor([[-1.0, 1.0]]))


def test_two_processes_whiten_as_one() -> None:
    torch.manual_seed(0)
    x, mask = torch.randn(4, 5, dtype=torch.float64), torch.rand(4, 5) < 0.7
    whole = whiten(x, mask, lambda y: y.sum(0))
    # what the other process (rows 2, 3) would add: counts and sums first, then squares around the common mean
    mean = x[mask].mean()
    other = iter(
        [
            torch.stack([mask[2:].sum(1).double(), (x * mask)[2:].sum(1)], 1).sum(0),
            (((x - mean) * mask)[2:] ** 2).sum(),
        ]
    )
    half = whiten(x[:2], mask[:2], lambda y: y.sum(0) + next(other))
    torch.testing.assert_close(half, whole[:2], rtol=0, atol=1e-12)


def test_one_token_is_whitened_to_zero() -> None:
    assert float(whiten(torch.tensor([[5.0]]), torch.ones(1, 1, dtype=torch.bool), lambda x: x.sum(0))) == 0


def test_the_critic_may_learn_from_whole_returns_while_the_policy_does_not() -> None:
    # lam 0 for the advantage: r + V' - V; returns of lambda 1 are the reward, whatever the critic says
    found = gae(REWARD, VALUE, ALL, gamma=1.0, lam=0.0, value_lam=1.0)
    torch.testing.assert_close(found["advantage"], torch.tensor([[-0.25, 0.5, 0.25]]))
    torch.testing.assert_close(found["returns"], torch.ones(1, 3))


def test_lambda_grows_with_the_answer() -> None:
    # three tokens and alpha 2/3: 1 - 1 / 2 = 1/2, the first test's lambda; of one token 1 - 1 / (2/3) < 0 stands as 0
    value, reward = torch.cat([VALUE, VALUE]), torch.cat([REWARD, torch.tensor([[1.0, 0.0, 0.0]])])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    found = gae(reward, value, mask, gamma=1.0, length_alpha=2 / 3)["advantage"]
    torch.testing.assert_close(found, torch.tensor([[0.0625, 0.625, 0.25], [0.5, 0.0, 0.0]]))


def test_a_token_that_is_not_among_the_statistics_is_whitened_all_the_same() -> None:
    # mean 1 and sample deviation sqrt(2) of 0 and 2; 4 is (4 - 1) / sqrt(2)
    x, mask = torch.tensor([[0.0], [2.0], [4.0]]), torch.ones(3, 1, dtype=torch.bool)
    among = torch.tensor([[True], [True], [False]])
    found = whiten(x, mask, lambda y: y.sum(0), among=among, epsilon=0)
    torch.testing.assert_close(found, torch.tensor([[-1.0], [1.0], [3.0]]) / 2**0.5)
