"""DPO: coefficients by hand, and the paper's loss."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tests.algorithms.batches import loss, mean_metrics, pushed, random_fields, term
from unified import Batch


def _pair(gap: float) -> Batch:
    """One pair; the better answer has two tokens and gained `gap` nats over the reference, the worse lost nothing."""
    zeros = torch.zeros(2, 2, dtype=torch.float64)
    logp = zeros.clone()
    logp[1, 0] = gap
    mask = torch.tensor([[True, False], [True, True]])
    return Batch(
        {
            "logp": logp,
            "ref_logp": zeros,
            "loss_mask": mask,
            "reward": torch.tensor([0.0, 1.0]),
            "group": torch.zeros(2),
        }
    )


def test_the_first_loss_is_log_two_and_every_token_is_pushed_by_half_of_beta() -> None:
    # m = 0: sigmoid(0) = 1/2, times beta 0.1, + on the better, - on the worse answer, of one prompt
    assert loss(term("dpo"), _pair(0.0)) == pytest.approx(math.log(2), abs=1e-12)
    wanted = torch.tensor([[-0.05, 0.0], [0.05, 0.05]], dtype=torch.float64)
    torch.testing.assert_close(pushed(term("dpo"), _pair(0.0))["logp"], wanted)


def test_a_pair_that_is_already_apart_is_pushed_less() -> None:
    # m = 0.1 * 10 log 3 = log 3: sigmoid(-log 3) = 1/4
    torch.testing.assert_close(pushed(term("dpo"), _pair(10 * math.log(3)))["logp"][1, 0].item(), 0.025)


def test_the_gradient_is_that_of_the_papers_loss() -> None:
    fields = random_fields()
    pair = {k: v[[i for i in range(12) if i % 3]] for k, v in fields.items()}  # two answers a prompt
    pair["reward"] = torch.tensor([1.0, 0.0] * 4)
    leaf = pair["logp"].clone().requires_grad_()
    h = ((leaf - pair["ref_logp"]) * pair["loss_mask"]).sum(1)
    published = -F.logsigmoid(0.1 * (h[0::2] - h[1::2])).mean()  # arXiv:2305.18290, eq. 7
    published.backward()
    torch.testing.assert_close(pushed(term("dpo"), Batch(pair))["logp"], -leaf.grad, rtol=1e-9, atol=1e-9)
    assert loss(term("dpo"), Batch(pair)) == pytest.approx(published.item(), abs=1e-12)


def test_a_ranked_list_weighs_as_much_as_a_pair() -> None:
    # prompt 0: three answers at equal log-ratios, three pairs; prompt 1: one pair. Each prompt has half the weight.
    zeros = torch.zeros(5, 1, dtype=torch.float64)
    reward, group = torch.tensor([2.0, 1.0, 0.0, 1.0, 0.0]), torch.tensor([0, 0, 0, 1, 1])
    fields = {"logp": zeros, "ref_logp": zeros, "loss_mask": zeros == 0, "reward": reward, "group": group}
    # the best of three wins two of its prompt's three pairs: 1/2 * 0.05 * 2/3, the middle one wins and loses one
    wanted = torch.tensor([2 / 3, 0, -2 / 3, 1, -1], dtype=torch.float64) * 0.05 / 2
    torch.testing.assert_close(pushed(term("dpo"), Batch(fields))["logp"][:, 0], wanted)


def test_answers_that_are_equally_good_make_no_pair() -> None:
    batch = _pair(1.0).plus(reward=torch.ones(2))
    assert (pushed(term("dpo"), batch)["logp"] == 0).all()


def test_metrics_are_the_implicit_rewards() -> None:
    # beta h: 0.1 * 2 for the better, 0 for the worse
    wanted = {"rewards/accuracies": 1.0, "rewards/margins": 0.2, "rewards/chosen": 0.2, "rewards/rejected": 0.0}
    assert mean_metrics(term("dpo"), _pair(2.0)) == pytest.approx(wanted)
