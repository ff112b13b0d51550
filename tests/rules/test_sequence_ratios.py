"""Ratios of whole answers: GSPO and its token form, whole-answer clipping, GMPO."""

from __future__ import annotations

import math

import pytest
import torch

from unified_plugins.rules.levels import at_level, cut_above
from unified_plugins.rules.sequence_ratios import (
    geometric_clip,
    geometric_clip_coefficient,
    sequence_clip,
    sequence_clip_coefficient,
)

# one answer of two tokens with ratios 2 and 1/2 (and a token of a tool): geometric mean 1; another with 2 and 2
RATIO = torch.tensor([[2.0, 0.5, 1.0], [2.0, 2.0, 1.0]], dtype=torch.float64).log()
MASK = torch.tensor([[True, True, False], [True, True, False]])


def _random() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    mask = torch.rand(40, 6) < 0.8
    mask[:, 0] = True
    log_ratio = torch.where(mask, 0.4 * torch.randn(40, 6, dtype=torch.float64), 0.0)
    return log_ratio, torch.randn(40, 1, dtype=torch.float64).expand(40, 6) * mask, mask


def test_an_answer_is_clipped_as_one_and_all_its_tokens_are_pushed_alike() -> None:
    # s = 1 in the first answer: both tokens are pushed by A = 3; s = 2 > 1.2 in the second: none is, with A > 0
    found = sequence_clip_coefficient(RATIO, 3 * MASK.double(), MASK, low=0.2, high=0.2, level="mean", per_token=False)
    torch.testing.assert_close(found[MASK], torch.tensor([3.0, 3.0, 0.0, 0.0], dtype=torch.float64))


def test_the_product_is_the_ratio_of_the_whole_answer() -> None:
    # 2 * 2 = 4; with A = -1 it is not clipped from above
    found = sequence_clip_coefficient(RATIO, -MASK.double(), MASK, low=0.2, high=0.2, level="product", per_token=False)
    torch.testing.assert_close(found[1, :2], torch.tensor([-4.0, -4.0], dtype=torch.float64))


def test_the_token_form_pushes_each_token_by_its_own_advantage() -> None:
    advantage = torch.tensor([[1.0, 3.0, 0.0]], dtype=torch.float64)
    keywords = {"low": 0.2, "high": 0.2, "level": "mean"}
    alone = sequence_clip_coefficient(RATIO[:1], advantage, MASK[:1], per_token=True, **keywords)
    torch.testing.assert_close(alone[0, :2], torch.tensor([1.0, 3.0], dtype=torch.float64))
    shared = sequence_clip_coefficient(RATIO[:1], advantage, MASK[:1], per_token=False, **keywords)
    torch.testing.assert_close(shared[0, :2], torch.tensor([2.0, 2.0], dtype=torch.float64))  # the mean of 1 and 3


def test_the_sequence_coefficient_is_the_gradient_of_the_papers_objective() -> None:
    log_ratio, advantage, mask = _random()
    leaf = log_ratio.clone().requires_grad_()
    length = mask.sum(1).double()
    s = ((leaf * mask).sum(1) / length).exp()  # arXiv:2507.18071, eq. 7
    a = advantage[:, 0]
    objective = torch.minimum(s * a, s.clamp(0.9, 1.1) * a)  # eq. 5, one number per answer
    objective.sum().backward()
    found = sequence_clip_coefficient(log_ratio, advantage, mask, low=0.1, high=0.1, level="mean", per_token=False)
    # each token weighs 1 / length beside its coefficient
    torch.testing.assert_close(found / length[:, None] * mask, leaf.grad * mask, rtol=1e-9, atol=1e-12)
    assert 5 < int((found[:, 0] == 0).sum()) < 35
    value = sequence_clip(log_ratio, advantage, mask, low=0.1, high=0.1, level="mean", per_token=False)
    torch.testing.assert_close((value * mask).sum(1) / length, objective.detach())


def test_of_one_advantage_per_answer_the_two_forms_push_the_same() -> None:
    log_ratio, advantage, mask = _random()
    one, other = (
        sequence_clip_coefficient(log_ratio, advantage, mask, low=0.1, high=0.1, level="mean", per_token=p)
        for p in (True, False)
    )
    torch.testing.assert_close(one * mask, other * mask, rtol=1e-9, atol=1e-12)


def test_the_sum_over_tokens_of_the_products_objective_is_that_of_the_answer() -> None:
    log_ratio, advantage, mask = _random()
    whole = (log_ratio * mask).sum(1).exp()
    wanted = torch.minimum(whole * advantage[:, 0], whole.clamp(0.8, 1.2) * advantage[:, 0])
    value = sequence_clip(log_ratio, advantage, mask, low=0.2, high=0.2, level="product", per_token=False)
    torch.testing.assert_close((value * mask).sum(1), wanted)


def test_the_geometric_mean_is_of_ratios_clipped_one_by_one() -> None:
    # A > 0: log 2 is clipped to 0.4, -log 2 stays: g = exp((0.4 - log 2) / 2) = 0.8637; the clipped token is not pushed
    found = geometric_clip_coefficient(RATIO[:1], MASK[:1].double(), MASK[:1], low=0.4, high=0.4)
    g = math.exp((0.4 - math.log(2)) / 2)
    torch.testing.assert_close(found[0, :2], torch.tensor([0.0, g], dtype=torch.float64))
    # A < 0: 2 stays, 1/2 is clipped to exp(-0.4)
    found = geometric_clip_coefficient(RATIO[:1], -MASK[:1].double(), MASK[:1], low=0.4, high=0.4)
    torch.testing.assert_close(found[0, :2], torch.tensor([-math.exp((math.log(2) - 0.4) / 2), 0.0]).double())


def test_the_geometric_coefficient_is_the_gradient_of_the_papers_objective() -> None:
    log_ratio, advantage, mask = _random()
    leaf = log_ratio.clone().requires_grad_()
    ratio, sign = leaf.exp(), advantage.sign()
    # arXiv:2507.20673: the product of min(ratio^sgn, clip(ratio)^sgn)^sgn to the power 1 / length, times A
    near = torch.minimum(ratio**sign, ratio.clamp(math.exp(-0.4), math.exp(0.4)) ** sign) ** sign
    length = mask.sum(1).double()
    objective = torch.where(mask, near, 1.0).prod(1) ** (1 / length) * advantage[:, 0]
    objective.sum().backward()
    found = geometric_clip_coefficient(log_ratio, advantage, mask, low=0.4, high=0.4)
    torch.testing.assert_close(found / length[:, None] * mask, leaf.grad * mask, rtol=1e-9, atol=1e-12)
    value = geometric_clip(log_ratio, advantage, mask, low=0.4, high=0.4)
    torch.testing.assert_close((value * mask).sum(1) / length, objective.detach())


def test_levels_of_a_ratio() -> None:
    assert at_level(RATIO, MASK, "token") is RATIO
    torch.testing.assert_close(at_level(RATIO, MASK, "mean").exp()[:, 0], torch.tensor([1.0, 2.0]).double())
    torch.testing.assert_close(at_level(RATIO, MASK, "product").exp()[:, 0], torch.tensor([1.0, 4.0]).double())


@pytest.mark.parametrize(("number", "above"), [(0, 0), (1, 1), (2, 3), (3, 3), (4, 4), (9, 4)])
def test_the_cut_lies_below_so_many_and_what_equals_the_last(number: int, above: int) -> None:
    x = torch.tensor([3.0, 1.0, 2.0, 2.0])
    assert int((x >= cut_above(x, number)).sum()) == above


def test_rounding_moves_nobody_across_the_cut() -> None:
    # halfway between 2 and 1
    assert float(cut_above(torch.tensor([2.0, 1.0]), 1)) == 1.5
