"""AOT: pairs re-matched by rank over the whole step, by hand and against a sort with autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.algorithms.batches import known, loss, pushed, random_fields, term
from unified import Batch
from unified.coefficient import coefficients


def steps(better: list[float], worse: list[float], ref_better: list[float], ref_worse: list[float]) -> Batch:
    """Pairs of one-token answers with these log-probs."""
    n = len(better)
    logp = torch.tensor([*better, *worse], dtype=torch.float64)[:, None]
    ref = torch.tensor([*ref_better, *ref_worse], dtype=torch.float64)[:, None]
    reward, group = torch.arange(2 * n).lt(n).double(), torch.arange(n).repeat(2)
    return Batch({"logp": logp, "ref_logp": ref, "loss_mask": logp == logp, "reward": reward, "group": group})


def test_ratios_meet_the_reference_ratio_of_their_rank() -> None:
    # a = 1, 2; b = 9, 1: sorted 1 meets 1 and 2 meets 9, so the first pair is where it should be
    batch = steps([1, 2], [0, 0], [9, 1], [0, 0])
    found = pushed(term("aot", link="hinge", beta=1.0), batch)["logp"][:, 0]
    # hinge: both margins, 0 and -7, are under 1
    assert found.tolist() == [0.5, 0.5, -0.5, -0.5]
    # (1 - 0) and (1 + 7), two prompts
    assert loss(term("aot", link="hinge", beta=1.0), batch) == pytest.approx((1 + 8) / 2)


def test_unpaired_answers_meet_those_of_their_rank_of_whichever_prompt() -> None:
    # g+ = 5, 1 and g- = 4.5, 0.5: 5 meets 4.5 and 1 meets 0.5, both leads are 1/2
    batch = steps([5, 1], [0.5, 4.5], [0, 0], [0, 0])
    assert loss(term("aot_unpaired", link="hinge", beta=1.0), batch) == pytest.approx(1 - 0.5)
    # no lead of 1 yet: every answer is pushed; within the prompts the leads would be 4.5 and -3.5
    assert pushed(term("aot_unpaired", link="hinge", beta=1.0), batch)["logp"][:, 0].tolist() == [0.5, 0.5, -0.5, -0.5]


def published(name: str, leaf: Tensor, ref: Tensor, mask: Tensor) -> Tensor:
    """arXiv:2406.05882 with the logistic loss, smoothed by 0.1; best answers first."""
    p, q = (leaf * mask).sum(1), (ref * mask).sum(1)
    if name == "aot":
        delta = (p[0::2] - p[1::2]).sort().values - (q[0::2] - q[1::2]).sort().values
    else:
        delta = (p - q)[0::2].sort().values - (p - q)[1::2].sort().values
    return (-0.9 * F.logsigmoid(0.1 * delta) - 0.1 * F.logsigmoid(-0.1 * delta)).mean()


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_the_gradient_is_that_of_sorting_the_whole_step(name: str) -> None:
    fields = {k: v[[i for i in range(12) if i % 3]] for k, v in random_fields(2).items()}
    fields["reward"] = torch.tensor([1.0, 0.0] * 4)
    leaf = fields["logp"].clone().requires_grad_()
    value = published(name, leaf, fields["ref_logp"], fields["loss_mask"])
    value.backward()
    one = term(name, link={"name": "sigmoid", "label_smoothing": 0.1})
    assert leaf.grad is not None
    torch.testing.assert_close(pushed(one, Batch(fields))["logp"], -leaf.grad, rtol=1e-9, atol=1e-9)
    assert loss(one, Batch(fields)) == pytest.approx(value.item(), abs=1e-12)


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_a_part_of_the_step_is_pushed_as_in_the_whole_also_when_its_logps_are_rounded(name: str) -> None:
    batch, one = Batch(random_fields()), term(name)
    statistics = known(one, batch)
    whole = coefficients(one, batch, statistics)["logp"]
    part = torch.arange(3, 9)
    noisy = batch.plus(logp=batch.logp * (1 + 1e-7)).rows(part, time=batch.loss_mask.shape[1])
    found = coefficients(one, noisy, statistics)["logp"]
    torch.testing.assert_close(found, whole[part], rtol=1e-6, atol=1e-9)
    assert (found != 0).any()


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_a_process_without_a_pair_has_nothing_to_match(name: str) -> None:
    batch, one = Batch(random_fields()), term(name)
    statistics = known(one, batch)
    none = batch.rows(torch.arange(0), time=1)
    assert known(one, none).keys() == statistics.keys()
    level = batch.rows(torch.arange(3)).plus(reward=torch.ones(3, dtype=torch.float64))
    assert (coefficients(one, level, statistics)["logp"] == 0).all()
