"""Ratio rules: what is stopped where, and closed forms against autograd of the papers' objectives."""

from __future__ import annotations

import torch

from unified_plugins.rules.ratios import (
    clip,
    clip_coefficient,
    dual_clip,
    dual_clip_coefficient,
    none,
    none_coefficient,
)


def _random() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    logp = torch.randn(200, dtype=torch.float64).requires_grad_()
    return logp, logp.detach() + 0.5 * torch.randn(200, dtype=torch.float64), torch.randn(200, dtype=torch.float64)


def test_a_good_token_is_pushed_until_the_upper_bound_and_a_bad_one_until_the_lower() -> None:
    ratio = torch.tensor([0.5, 1.1, 1.5, 0.5, 0.9, 1.5])
    advantage = torch.tensor([2.0, 2.0, 2.0, -2.0, -2.0, -2.0])
    # ratio x advantage, but 0 at 1.5 > 1.2 with A > 0, and at 0.5 < 0.8 with A < 0
    wanted = torch.tensor([1.0, 2.2, 0.0, 0.0, -1.8, -3.0])
    torch.testing.assert_close(clip_coefficient(ratio, advantage, low=0.2, high=0.2), wanted)


def test_the_bounds_may_differ() -> None:
    ratio, advantage = torch.tensor([1.25, 0.75]), torch.tensor([1.0, -1.0])
    # 1.25 < 1 + 0.28 is still pushed, 0.75 < 1 - 0.2 is not
    torch.testing.assert_close(clip_coefficient(ratio, advantage, low=0.2, high=0.28), torch.tensor([1.25, 0.0]))


def test_clip_coefficient_is_the_gradient_of_the_clipped_objective() -> None:
    logp, old, advantage = _random()
    ratio = (logp - old).exp()
    objective = torch.minimum(ratio * advantage, torch.clamp(ratio, 0.8, 1.28) * advantage)  # arXiv:1707.06347, eq. 7
    objective.sum().backward()
    ratio = ratio.detach()
    torch.testing.assert_close(clip(ratio, advantage, low=0.2, high=0.28), objective.detach())
    torch.testing.assert_close(clip_coefficient(ratio, advantage, low=0.2, high=0.28), logp.grad, rtol=1e-9, atol=1e-9)


def test_dual_clip_coefficient_is_the_gradient_of_the_papers_objective() -> None:
    logp, old, advantage = _random()
    ratio = (logp - old).exp()
    clipped = torch.minimum(ratio * advantage, torch.clamp(ratio, 0.8, 1.2) * advantage)
    objective = torch.where(advantage < 0, torch.maximum(clipped, 1.5 * advantage), clipped)  # arXiv:1912.09729
    objective.sum().backward()
    ratio, keywords = ratio.detach(), {"low": 0.2, "high": 0.2, "cap": 1.5}
    assert ((advantage < 0) & (ratio > 1.5)).sum() > 5  # the cap is met
    torch.testing.assert_close(dual_clip(ratio, advantage, **keywords), objective.detach())
    torch.testing.assert_close(dual_clip_coefficient(ratio, advantage, **keywords), logp.grad, rtol=1e-9, atol=1e-9)


def test_an_infinite_ratio_that_is_clipped_gives_zero_and_not_nan() -> None:
    assert clip_coefficient(torch.tensor([torch.inf]), torch.tensor([0.5]), low=0.2, high=0.2) == 0


def test_a_token_without_credit_is_not_pushed_however_large_its_ratio() -> None:
    assert clip_coefficient(torch.tensor([torch.inf]), torch.tensor([0.0]), low=0.2, high=0.2) == 0


def test_without_a_ratio_the_push_is_the_advantage() -> None:
    logp, _, advantage = _random()
    none(logp, advantage).sum().backward()
    torch.testing.assert_close(none_coefficient(advantage), logp.grad)
