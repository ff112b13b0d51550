"""The critic's clipped error."""

from __future__ import annotations

import torch

from unified_plugins.rules.value_loss import value_clipped, value_coefficient, value_loss


def test_a_value_that_ran_ahead_of_its_clip_towards_the_return_is_not_pushed() -> None:
    # V_old 0, clip 0.2, R 1. V 0.5: clipped 0.2 is worse (0.64 > 0.25), no push; V -0.5: clipped -0.2 is better
    value, returns, old = torch.tensor([0.5, -0.5, 0.1]), torch.ones(3), torch.zeros(3)
    torch.testing.assert_close(value_loss(value, returns, old, clip=0.2), torch.tensor([0.64, 2.25, 0.81]))
    torch.testing.assert_close(value_coefficient(value, returns, old, clip=0.2), torch.tensor([0.0, 3.0, 1.8]))
    assert value_clipped(value, returns, old, clip=0.2).tolist() == [True, False, False]


def test_without_a_clip_the_push_is_twice_the_error() -> None:
    found = value_coefficient(torch.tensor([0.5]), torch.ones(1), torch.zeros(1), clip=None)
    torch.testing.assert_close(found, torch.tensor([1.0]))


def test_the_coefficient_is_the_negative_gradient_of_the_larger_square() -> None:
    torch.manual_seed(0)
    value, returns, old = (torch.randn(200, dtype=torch.float64) for _ in range(3))
    leaf = value.clone().requires_grad_()
    near = torch.maximum(torch.minimum(leaf, old + 0.2), old - 0.2)
    torch.maximum((leaf - returns) ** 2, (near - returns) ** 2).sum().backward()
    torch.testing.assert_close(value_coefficient(value, returns, old, clip=0.2), -leaf.grad, rtol=1e-9, atol=1e-9)
