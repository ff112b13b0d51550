"""Margins and links: values by hand, coefficients against autograd."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from unified.settings import choose
from unified_plugins.rules import apply
from unified_plugins.rules.links import hinge_coefficient, sigmoid, sigmoid_coefficient, squared
from unified_plugins.rules.margins import length_normalised, reference, reference_free

MASK = torch.tensor([[True, True, False], [True, False, False]])
LOGP = torch.tensor([[-1.0, -2.0, -9.0], [-4.0, -9.0, -9.0]])
REF = torch.tensor([[-2.0, -2.0, -7.0], [-3.0, -7.0, -7.0]])


def _chosen(kind: str, name: str, **settings: Any) -> Any:
    chosen, problems = choose(kind, {"name": name, **settings})
    assert not problems
    return chosen


def test_the_reference_margin_sums_log_ratios_over_tokens_that_count() -> None:
    # (-1 + 2) + (-2 + 2) = 1; -4 + 3 = -1
    torch.testing.assert_close(reference(LOGP, REF, MASK), torch.tensor([1.0, -1.0]))


def test_the_reference_free_margin_sums_log_probs() -> None:
    torch.testing.assert_close(reference_free(LOGP, MASK), torch.tensor([-3.0, -4.0]))


def test_the_length_normalised_margin_is_a_mean() -> None:
    torch.testing.assert_close(length_normalised(LOGP, MASK, REF), torch.tensor([0.5, -1.0]))
    torch.testing.assert_close(length_normalised(LOGP, MASK, reference=False), torch.tensor([-1.5, -4.0]))


def test_the_length_normalised_margin_without_reference_reads_none() -> None:
    assert apply.reads(_chosen("margin", "length_normalised", reference=False)) == {"logp"}


@pytest.mark.parametrize("name", ["reference", "reference_free", "length_normalised"])
def test_the_coefficient_of_a_margin_is_its_gradient(name: str) -> None:
    rule = _chosen("margin", name)
    leaf = LOGP.double().requires_grad_()

    def offers(x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logp": x, "ref_logp": REF.double(), "loss_mask": MASK}

    apply.value(rule, offers(leaf)).sum().backward()
    found = apply.coefficient(rule, offers, leaf.detach(), ascend=True)
    torch.testing.assert_close(found[:, None] * MASK, leaf.grad)


def test_no_margin_costs_one_bit() -> None:
    assert float(sigmoid(torch.zeros(1))) == pytest.approx(math.log(2))
    assert float(sigmoid_coefficient(torch.zeros(1))) == pytest.approx(0.5)


def test_a_margin_of_log_three_is_right_three_times_in_four() -> None:
    m = torch.tensor([3.0]).log()
    assert float(sigmoid(m)) == pytest.approx(math.log(4 / 3))
    assert float(sigmoid_coefficient(m)) == pytest.approx(1 / 4)
    # smoothed by 0.1: 0.9 / 4 - 0.1 * 3 / 4 = 0.15; robust: (0.9 / 4 + 0.1 * 3 / 4) / 0.8 = 0.375
    assert float(sigmoid_coefficient(m, label_smoothing=0.1)) == pytest.approx(0.15)
    assert float(sigmoid_coefficient(m, label_smoothing=0.1, robust=True)) == pytest.approx(0.375)


def test_the_hinge_stops_at_one() -> None:
    torch.testing.assert_close(hinge_coefficient(torch.tensor([0.9, 1.1])), torch.tensor([1.0, 0.0]))


def test_the_squared_link_wants_the_unscaled_margin_at_half_the_inverse_beta() -> None:
    # beta 0.1: h = 5 is the goal, m = 0.5; h = 6, m = 0.6 is off by 1
    torch.testing.assert_close(squared(torch.tensor([0.5, 0.6]), 0.1), torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("sigmoid", {}),
        ("sigmoid", {"label_smoothing": 0.2}),
        ("sigmoid", {"label_smoothing": 0.2, "robust": True}),
        ("hinge", {}),
        ("squared", {}),
    ],
)
def test_the_coefficient_of_a_link_is_its_negative_gradient(name: str, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    rule = _chosen("link", name, **settings)
    margin = (2 * torch.randn(50, dtype=torch.float64)).requires_grad_()

    def offers(x: torch.Tensor) -> dict[str, Any]:
        return {"margin": x, "beta": 0.3}

    apply.value(rule, offers(margin)).sum().backward()
    found = apply.coefficient(rule, offers, margin.detach(), ascend=False)
    torch.testing.assert_close(found, -margin.grad, rtol=1e-9, atol=1e-9)
