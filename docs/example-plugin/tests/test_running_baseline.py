"""The example plugin, on numbers worked by hand."""

import pytest
import running_baseline as plugin
import torch

from unified import Batch, Catalogue, examine, using

SETTINGS = plugin.RunningBaselineSettings(memory=0.5)


def batch_of(reward: list[float]) -> Batch:
    """One answer of two tokens for each reward, each to a prompt of its own."""
    rows = len(reward)
    return Batch({"loss_mask": torch.ones(rows, 2), "logp": -torch.ones(rows, 2), "reward": torch.tensor(reward)})


def test_the_first_batch_is_credited_with_its_plain_rewards() -> None:
    given = plugin.credit(batch_of([1.0, 0.0]), plugin.initial_state(SETTINGS))
    assert given["advantage"].tolist() == [1.0, 0.0]


def test_the_baseline_of_equal_rewards_is_that_reward_from_the_second_batch_on() -> None:
    # sum = 0.5 * 0 + 0.5 * 3 = 1.5, weight = 0.5: 1.5 / 0.5 = 3, not 1.5 as without the correction
    state = plugin.update(plugin.initial_state(SETTINGS), {"mean_reward": 3.0}, SETTINGS)
    assert plugin.baseline(state) == 3.0


def test_later_batches_weigh_more() -> None:
    # sum = 0.5 * (0.5 * 1) + 0.5 * 4 = 2.25, weight = 0.5 * 0.5 + 0.5 = 0.75: 3, nearer to 4 than to 1
    state = plugin.initial_state(SETTINGS)
    for mean in (1.0, 4.0):
        state = plugin.update(state, {"mean_reward": mean}, SETTINGS)
    assert plugin.baseline(state) == pytest.approx(3.0)


def test_a_batch_that_teaches_nothing_leaves_the_state_as_it_was() -> None:
    state = {"sum": 1.0, "weight": 0.5}
    assert plugin.update(state, {}, SETTINGS) == state


def test_answers_without_a_token_are_not_in_the_mean() -> None:
    batch = batch_of([1.0, 9.0])
    batch = batch.plus(loss_mask=torch.tensor([[True, True], [False, False]]))
    total, number = plugin.metrics(batch)["mean_reward"]
    assert (float(total), int(number)) == (1.0, 1)


def test_the_coefficient_is_minus_the_derivative_of_the_loss() -> None:
    batch = batch_of([1.0, 0.25]).plus(advantage=torch.tensor([0.5, -0.25]))
    logp = batch.logp.clone().requires_grad_()
    spread = batch.plus(logp=logp, advantage=batch.expand(batch.advantage))
    plugin.loss(spread).sum().backward()
    torch.testing.assert_close(plugin.coefficient(spread), -logp.grad)


def test_unified_finds_the_algorithm_and_weighs_each_token_by_one_over_answers() -> None:
    with using(Catalogue({"example": plugin}, installed=False)):
        shown = examine("running_baseline", {"logp": [[-1.0, -2.0], [-1.0, -1.0]], "reward": [1.0, 0.5]})
    assert shown.coefficient["logp"].tolist() == [[1.0, 1.0], [0.5, 0.5]]
    assert shown.weight["logp"].tolist() == [0.5, 0.5]
    assert shown.loss == pytest.approx(0.5 * (1.0 + 2.0) + 0.5 * (0.5 + 0.5))
