"""KL estimates: values by hand, coefficients against autograd, and what they estimate on average."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from unified.settings import choose
from unified_plugins.rules import apply
from unified_plugins.rules.kl import adapt_weight, k3

SETTINGS: list[dict[str, Any]] = [
    {},
    {"importance": "old_policy"},
    {"importance": "on_policy"},
    {"log_ratio_limit": 1.0},
    {"limit": 0.5},
    {"importance": "old_policy", "limit": 0.5},
    {"straight_through": True, "limit": 0.5},
]


def _rule(name: str, **settings: Any) -> Any:
    chosen, problems = choose("kl", {"name": name, **settings})
    assert not problems
    return chosen


def _value(name: str, x: float, **settings: Any) -> float:
    return float(apply.value(_rule(name, **settings), {"log_ratio": torch.tensor([x], dtype=torch.float64)}))


def test_values_at_twice_the_reference_probability() -> None:
    # log 2 = 0.693147...: k1 = log 2, k2 = log(2)^2 / 2 = 0.240227, k3 = 1/2 - 1 + log 2 = 0.193147
    x = 0.6931471805599453
    assert _value("k1", x) == pytest.approx(0.69314718)
    assert _value("k2", x) == pytest.approx(0.24022651)
    assert _value("k3", x) == pytest.approx(0.19314718)
    assert _value("abs", -x) == pytest.approx(0.69314718)


def test_coefficients_at_twice_the_reference_probability() -> None:
    # k1: -1; k2: -log 2; k3: reference / policy - 1 = -1/2
    x = torch.tensor([2.0], dtype=torch.float64).log()
    for name, wanted in {"k1": -1.0, "k2": -0.69314718056, "k3": -0.5, "abs": -1.0}.items():
        found = apply.coefficient(_rule(name), lambda y: {"log_ratio": y}, x, ascend=False)
        assert float(found) == pytest.approx(wanted)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("name", ["k1", "k2", "k3", "abs"])
def test_the_coefficient_is_the_negative_gradient_of_the_value(name: str, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    logp = torch.randn(100, dtype=torch.float64).requires_grad_()
    ref, old = (torch.randn(100, dtype=torch.float64) for _ in range(2))
    rule = _rule(name, **settings)

    def offers(x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"log_ratio": x - ref, "old_ratio": (x - old).exp()}

    apply.value(rule, offers(logp)).sum().backward()
    found = apply.coefficient(rule, offers, logp.detach(), ascend=False)
    torch.testing.assert_close(found, -logp.grad, rtol=1e-9, atol=1e-9)


def test_k1_and_k3_are_the_kl_on_average_and_k2_is_not() -> None:
    policy, reference = torch.tensor([0.8, 0.2]), torch.tensor([0.2, 0.8])
    ratio = (policy / reference).log()
    kl = (policy * ratio).sum()
    torch.testing.assert_close((policy * k3(ratio)).sum(), kl)
    assert abs(float((policy * ratio**2 / 2).sum() - kl)) > 0.01


def test_only_a_weighted_estimate_reads_the_old_policy() -> None:
    assert apply.reads(_rule("k3")) == {"ref_logp"}
    assert apply.reads(_rule("k3", importance="old_policy")) == {"ref_logp", "old_logp"}


def test_k3_is_exactly_zero_at_the_reference() -> None:
    assert float(k3(torch.zeros(1))) == 0


def test_the_weight_grows_while_the_kl_is_above_its_target_by_at_most_a_fifth() -> None:
    # 0.15 / 0.1 - 1 = 0.5, clipped to 0.2: 0.05 (1 + 0.2 / 10) = 0.051; at 0.11: 0.05 (1 + 0.1 / 10) = 0.0505
    assert adapt_weight(0.05, 0.15, target=0.1, horizon=10) == pytest.approx(0.051)
    assert adapt_weight(0.05, 0.11, target=0.1, horizon=10) == pytest.approx(0.0505)
    assert adapt_weight(0.05, 0.0, target=0.1, horizon=10) == pytest.approx(0.049)


def test_straight_through_has_the_value_of_one_estimate_and_the_gradient_of_k2() -> None:
    # at log 2: value 1/2 - 1 + log 2, coefficient -log 2; clamping the value leaves the gradient
    x = torch.tensor([2.0], dtype=torch.float64).log()
    assert _value("k3", float(x), straight_through=True) == pytest.approx(0.19314718)
    rule = _rule("k3", straight_through=True, limit=0.1)
    assert float(apply.coefficient(rule, lambda y: {"log_ratio": y}, x, ascend=False)) == pytest.approx(-0.69314718)


def test_straight_through_cannot_be_weighted() -> None:
    _, problems = choose("kl", {"name": "k3", "straight_through": True, "importance": "old_policy"})
    assert "importance must be none" in problems[0].text()
