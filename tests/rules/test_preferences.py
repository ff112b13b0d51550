"""Margins and links: values by hand, coefficients against autograd."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from unified.settings import choose
from unified_plugins.rules import apply
from unified_plugins.rules.links import hinge_coefficient, sigmoid, sigmoid_coefficient, squared
from unified_plugins.rules.margins import (
    length_desensitised,
    length_normalised,
    log_odds,
    reference,
    reference_free,
)
from unified_plugins.rules.matching import look_up, partners

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


def test_tokens_beyond_the_shortest_answer_of_the_prompt_weigh_less() -> None:
    # the second answer has one token: 1 and 0.5 * 0; -1. An answer that does not count is no shortest one.
    group, counts = torch.zeros(2, dtype=torch.long), torch.tensor([True, True])
    logp = torch.tensor([[-1.0, -2.0, -9.0], [-4.0, -9.0, -9.0]])
    ref = torch.tensor([[-2.0, -4.0, -7.0], [-3.0, -7.0, -7.0]])
    found = length_desensitised(logp, ref, MASK, group, counts, alpha=0.25)
    torch.testing.assert_close(found, torch.tensor([1 + 0.25 * 2, -1.0]))
    alone = length_desensitised(logp, ref, MASK, group, torch.tensor([True, False]), alpha=0.25)
    torch.testing.assert_close(alone[0], torch.tensor(3.0))


def test_the_log_odds_of_a_probability_of_three_quarters_is_log_three() -> None:
    logp = torch.full((1, 2), math.log(3 / 4))
    assert float(log_odds(logp, torch.ones(1, 2, dtype=torch.bool))) == pytest.approx(math.log(3))


@pytest.mark.parametrize(
    "name", ["reference", "reference_free", "length_normalised", "length_desensitised", "log_odds"]
)
def test_the_coefficient_of_a_margin_is_its_gradient(name: str) -> None:
    rule = _chosen("margin", name)
    leaf = LOGP.double().requires_grad_()

    def offers(x: torch.Tensor) -> dict[str, torch.Tensor]:
        same, counts = torch.zeros(2, dtype=torch.long), torch.tensor([True, True])
        return {"logp": x, "ref_logp": REF.double(), "loss_mask": MASK, "group": same, "counts": counts}

    apply.value(rule, offers(leaf)).sum().backward()
    found = apply.coefficient(rule, offers, leaf.detach(), ascend=True)
    found = found[:, None] if found.dim() == 1 else found
    torch.testing.assert_close((found * MASK).double(), leaf.grad)


@pytest.mark.parametrize(
    ("name", "settings", "value", "slope"),
    [  # of h = log 2: f'(u) and u f''(u) at u = 2, for f = u log u, -log u, Jensen-Shannon, and alpha = 1/2
        ("f_reverse_kl", {}, math.log(2), 1.0),
        ("f_forward_kl", {}, -1 / 2, 1 / 2),
        ("f_js", {}, math.log(4 / 3), 1 / 3),
        ("f_alpha", {"alpha": 0.5}, 2 * (1 - 2**-0.5), 2**-0.5),
        ("f_alpha", {"alpha": 0.0}, math.log(2), 1.0),
    ],
)
def test_transforms_of_a_doubled_probability(name: str, settings: dict[str, float], value: float, slope: float) -> None:
    rule = _chosen("transform", name, **settings)
    h = torch.tensor([2.0], dtype=torch.float64).log().requires_grad_()
    found = apply.value(rule, {"h": h})
    assert found.item() == pytest.approx(value)
    assert apply.coefficient(rule, lambda x: {"h": x}, h.detach(), ascend=True).item() == pytest.approx(slope)
    found.backward()
    assert h.grad is not None
    assert h.grad.item() == pytest.approx(slope)


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
        ("probability", {}),
        ("label_kl", {"label_smoothing": 0.1}),
        ("modulated", {"tau": 0.3}),
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


@pytest.mark.parametrize("name", ["noise_contrastive", "binary", "squared_targets", "anchored_zero", "anchored_down"])
def test_the_coefficient_of_a_two_sided_link_is_its_negative_gradient(name: str) -> None:
    torch.manual_seed(0)
    rule = _chosen("link", name)
    both = (2 * torch.randn(2, 50, dtype=torch.float64)).requires_grad_()

    def offers(x: torch.Tensor) -> dict[str, Any]:
        return {"margin": x[0] - x[1], "better": x[0], "worse": x[1], "beta": 0.3}

    apply.value(rule, offers(both)).sum().backward()
    found = apply.coefficient(rule, offers, both.detach(), ascend=False)
    assert both.grad is not None
    torch.testing.assert_close(found, -both.grad, rtol=1e-9, atol=1e-9)


def test_the_partner_has_the_same_rank() -> None:
    # 5 is the largest, 1 the smallest, 3 between
    found = partners(torch.tensor([3.0, 5.0, 1.0]), torch.tensor([10.0, 30.0, 20.0]))
    assert found.tolist() == [20, 30, 10]


def test_a_row_is_found_by_its_key_and_among_equal_keys_by_what_is_nearest() -> None:
    known = {"keys": torch.tensor([1.0, 2.0, 2.0, 4.0]), "xs": torch.tensor([5.0, 6.0, 7.0, 5.0])}
    known["values"] = torch.tensor([10.0, 20.0, 30.0, 40.0])
    key, x = torch.tensor([4.0, 2.0, 2.0, 1.0]), torch.tensor([6.9, 6.9, 6.1, 6.9])
    assert look_up(key, x, **known).tolist() == [40, 30, 20, 10]


def test_rows_that_are_the_same_share_their_partners() -> None:
    twice = torch.tensor([2.0, 2.0])
    assert look_up(twice[:1], twice[:1], keys=twice, xs=twice, values=torch.tensor([20.0, 30.0])).tolist() == [25]


def test_a_row_that_cannot_be_found_is_an_error_and_none_is_none() -> None:
    nothing = torch.zeros(0)
    known = {"keys": nothing, "xs": nothing, "values": nothing}
    assert look_up(nothing, nothing, **known).numel() == 0
    with pytest.raises(ValueError, match="hold no pair"):
        look_up(torch.ones(1), torch.ones(1), **known)
