"""Capped weight, soft gate and the bound on probabilities."""

from __future__ import annotations

import math

import torch

from unified_plugins.rules.soft_ratios import (
    clipped_weight,
    clipped_weight_coefficient,
    probability_clip,
    probability_clip_coefficient,
    soft_gate,
    soft_gate_coefficient,
)

ALL = torch.ones(1, 3, dtype=torch.bool)


def _random() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    logp = -torch.rand(1, 200, dtype=torch.float64)
    return logp, logp + 0.4 * torch.randn(1, 200, dtype=torch.float64), torch.randn(1, 200, dtype=torch.float64)


def test_the_weight_is_capped_and_no_token_is_left_out() -> None:
    # ratios 1/2, 1 and 8 with a cap of 5: the token far above is still pushed, by 5
    log_ratio = torch.tensor([[0.5, 1.0, 8.0]]).log()
    found = clipped_weight_coefficient(log_ratio, torch.ones(1, 3), ALL, low=None, high=4.0, level="token")
    torch.testing.assert_close(found, torch.tensor([[0.5, 1.0, 5.0]]))
    low = clipped_weight_coefficient(log_ratio, torch.ones(1, 3), ALL, low=0.2, high=0.28, level="token")
    torch.testing.assert_close(low, torch.tensor([[0.8, 1.0, 1.28]]))


def test_the_weight_of_a_whole_answer_is_the_mean_or_the_product() -> None:
    # 1/2 * 1 * 8 = 4, its third root 4^(1/3)
    log_ratio = torch.tensor([[0.5, 1.0, 8.0]]).log()
    for level, wanted in {"product": 4.0, "mean": 4 ** (1 / 3)}.items():
        found = clipped_weight_coefficient(log_ratio, torch.ones(1, 3), ALL, low=None, high=9.0, level=level)
        torch.testing.assert_close(found, torch.full((1, 3), wanted))


def test_the_clipped_weight_has_the_gradient_of_the_papers_objective() -> None:
    logp, old, advantage = _random()
    leaf = logp.clone().requires_grad_()
    # arXiv:2506.13585, section 3.1: sg(min(ratio, 1 + high)) A log p
    ((leaf - old).exp().clamp(max=1.2).detach() * advantage * leaf).sum().backward()
    mask = torch.ones_like(logp, dtype=torch.bool)
    keywords = {"low": None, "high": 0.2, "level": "token"}
    torch.testing.assert_close(clipped_weight_coefficient(logp - old, advantage, mask, **keywords), leaf.grad)
    again = logp.clone().requires_grad_()
    clipped_weight(again, again - old, advantage, mask, **keywords).sum().backward()
    torch.testing.assert_close(again.grad, leaf.grad)


def test_the_gate_leaves_the_advantage_at_ratio_one_and_closes_sooner_for_bad_tokens() -> None:
    # at ratio 1 the sigmoid is 1/2: 4 * 1/4 * A. At ratio 3: 4 p (1 - p) 3 with p = sigmoid(2) and sigmoid(2.1)
    ratio, advantage = torch.tensor([1.0, 3.0, 3.0]), torch.tensor([2.0, 1.0, -1.0])
    found = soft_gate_coefficient(ratio, advantage, positive=1.0, negative=1.05)
    p, q = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-2.1))
    torch.testing.assert_close(found, torch.tensor([2.0, 12 * p * (1 - p), -12 * q * (1 - q)]))
    assert abs(found[2]) < abs(found[1])


def test_the_gate_has_the_gradient_of_the_papers_objective() -> None:
    logp, old, advantage = _random()
    leaf = logp.clone().requires_grad_()
    ratio = (leaf - old).exp()
    tau = torch.where(advantage > 0, torch.ones_like(advantage), torch.full_like(advantage, 1.05))
    (torch.sigmoid(tau * (ratio - 1)) * 4 / tau * advantage).sum().backward()  # arXiv:2511.20347
    ratio = ratio.detach()
    found = soft_gate_coefficient(ratio, advantage, positive=1.0, negative=1.05)
    torch.testing.assert_close(found, leaf.grad, rtol=1e-9, atol=1e-12)
    assert torch.isfinite(soft_gate(ratio, advantage, positive=1.0, negative=1.05)).all()


def test_the_gate_of_an_infinite_ratio_pushes_nothing() -> None:
    found = soft_gate_coefficient(torch.tensor([torch.inf]), torch.ones(1), positive=1.0, negative=1.0)
    assert float(found) == 0


def test_a_rare_token_may_move_by_a_large_ratio_and_a_likely_one_may_not() -> None:
    # 0.001 -> 0.004: ratio 4, moved by 0.003; 0.5 -> 0.75: ratio 1.5, moved by 0.25 > 0.2
    old, now = torch.tensor([0.001, 0.5]).log(), torch.tensor([0.004, 0.75]).log()
    keywords = {"low": 0.2, "high": 0.2, "symmetric": False, "pull": 0.0}
    ratio = (now - old).exp()
    found = probability_clip_coefficient(ratio, now - old, now, old, torch.ones(2), **keywords)
    torch.testing.assert_close(found, torch.tensor([4.0, 0.0]))
    # a bad token that has become likelier is pushed back, unless the bounds are symmetric
    back = probability_clip_coefficient(ratio, now - old, now, old, -torch.ones(2), **keywords)
    torch.testing.assert_close(back, torch.tensor([-4.0, -1.5]))
    both = probability_clip_coefficient(ratio, now - old, now, old, -torch.ones(2), **{**keywords, "symmetric": True})
    torch.testing.assert_close(both, torch.tensor([-4.0, 0.0]))


def test_the_pull_is_on_every_token() -> None:
    # log-ratio 1: -2 * 0.1 * 1 beside the push, which is stopped
    one, zero = torch.zeros(1), torch.full((1,), -1.0)
    keywords = {"low": 0.2, "high": 0.2, "symmetric": False, "pull": 0.1}
    found = probability_clip_coefficient(torch.ones(1).exp(), torch.ones(1), one, zero, torch.ones(1), **keywords)
    torch.testing.assert_close(found, torch.tensor([-0.2]))
    value = probability_clip(torch.ones(1).exp(), torch.ones(1), one, zero, torch.ones(1), **keywords)
    torch.testing.assert_close(value, torch.tensor([-0.1]))
