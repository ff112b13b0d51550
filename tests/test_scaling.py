"""The scaling law: its values by hand, and its optimum against the points beside it."""

from __future__ import annotations

import pytest

from unified import UserError
from unified.devices import hardware
from unified.scaling import answer, best_for, loss, parameters_for, quantity, short, tokens_for


def test_the_loss_is_that_of_the_published_fit() -> None:
    # N = 1e9: 406.4 / 10^(9·0.34) = 406.4 / 1148.15 = 0.35396
    # D = 1e10: 410.7 / 10^(10·0.28) = 410.7 / 630.96 = 0.65091
    assert loss(1e9, 1e10) == pytest.approx(1.69 + 0.35396 + 0.65091, abs=1e-4)


def test_no_other_split_of_the_same_compute_has_a_lower_loss() -> None:
    n, d = best_for(6e21)
    assert 6 * n * d == pytest.approx(6e21)
    assert loss(n, d) < min(loss(n * 1.01, d / 1.01), loss(n / 1.01, d * 1.01))


def test_the_best_data_for_a_model_and_the_best_model_for_data_are_one_relation() -> None:
    n, d = best_for(6e21)
    assert tokens_for(n) == pytest.approx(d)
    assert parameters_for(d) == pytest.approx(n)


def test_a_budget_is_days_of_one_device_at_the_assumed_share_of_its_peak() -> None:
    # 10 days · 86400 s · 989.5e12 FLOP/s · 0.4 = 3.4197e20
    n, d = best_for(10 * 86_400 * 989.5e12 * 0.4)
    said = answer("budget", gpu_days=10, hardware=hardware("8xH100"))
    assert f"{short(n)} parameters and {short(d)} tokens" in said[0]
    assert "(1.25 days of 8)" in said[0]
    assert "3.42e+20 operations" in said[1]


def test_every_answer_names_the_law_and_its_limits() -> None:
    for said in (
        answer("data", parameters="7B"),
        answer("model", tokens="1.4T"),
        answer("loss", parameters="1B", tokens="20B", larger="7B"),
    ):
        text = "\n".join(said)
        assert "arXiv:2203.15556" in text
        assert "says nothing of fine-tuning" in text
    assert f"{loss(1e9, 2e10):.3f}" in said[0]
    assert f"{loss(7e9, 2e10):.3f} ({loss(7e9, 2e10) - loss(1e9, 2e10):+.3f})" in said[0]


@pytest.mark.parametrize(
    ("text", "value"), [("7B", 7e9), ("1.4t", 1.4e12), ("350M", 3.5e8), ("2e9", 2e9), ("12", 12.0)]
)
def test_a_quantity_is_read_as_people_write_it(text: str, value: float) -> None:
    assert quantity(text, "--tokens") == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "x", "-1", "0", "7Q", "1.2.3"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--tokens .*: not a number above 0"):
        quantity(text, "--tokens")


@pytest.mark.parametrize(("value", "text"), [(7e9, "7B"), (1.4e12, "1.4T"), (950, "950"), (5.76e23, "5.76e+23")])
def test_a_quantity_is_written_as_people_read_it(value: float, text: str) -> None:
    assert short(value) == text


def test_a_question_says_what_it_lacks() -> None:
    with pytest.raises(UserError, match="--scaling loss needs --tokens and --larger"):
        answer("loss", parameters="7B")
    with pytest.raises(UserError, match="--scaling why: no such question"):
        answer("why")
