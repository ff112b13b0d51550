"""Divergences of distributions and the tokens that they are taken over."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from unified import catalogue
from unified.settings import choose
from unified_plugins.rules import apply, support
from unified_plugins.rules.divergences import forward_kl, jsd, mixed_kl, reverse_kl

#: a fair and a loaded coin, as log-probs [1, 2]
STUDENT = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
TEACHER = torch.tensor([[0.75, 0.25]], dtype=torch.float64).log()
RULES: list[Any] = ["forward_kl", "reverse_kl", *({"name": "jsd", "beta": b} for b in (0.0, 0.1, 0.5, 1.0)), "mixed_kl"]


def distributions(n: int = 3, vocab: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    logits = torch.randn(2, n, vocab, dtype=torch.float64)
    return logits[0], (3 * logits[1]).log_softmax(-1)


def test_forward_kl_of_two_coins() -> None:
    # 3/4 ln (3/4 / 1/2) + 1/4 ln (1/4 / 1/2) = 3/4 ln 3/2 − 1/4 ln 2 = 0.304099 − 0.173287
    assert forward_kl(STUDENT, TEACHER).tolist() == pytest.approx([0.130812036])


def test_reverse_kl_of_two_coins() -> None:
    # 1/2 ln (1/2 / 3/4) + 1/2 ln (1/2 / 1/4) = 1/2 (ln 2/3 + ln 2) = 1/2 ln 4/3
    assert reverse_kl(STUDENT, TEACHER).tolist() == pytest.approx([0.143841036])


def test_the_symmetric_divergence_of_two_coins() -> None:
    # m = (5/8, 3/8); 1/2 (3/4 ln 6/5 + 1/4 ln 2/3) + 1/2 (1/2 ln 4/5 + 1/2 ln 4/3) = 0.017687 + 0.016135
    assert jsd(STUDENT, TEACHER, beta=0.5).tolist() == pytest.approx([0.033822075])


def test_mixed_is_the_weighted_sum_of_both() -> None:
    # 0.3 · 0.130812 + 0.7 · 0.143841
    assert mixed_kl(STUDENT, TEACHER, forward=0.3).tolist() == pytest.approx([0.139932336])


def test_the_divergence_over_its_weight_goes_to_the_kl_at_both_ends() -> None:
    # what the paper takes for the ends: JSD(β) / β → forward KL, JSD(β) / (1 − β) → reverse KL
    small = 1e-6
    torch.testing.assert_close(
        jsd(STUDENT, TEACHER, beta=small) / small, forward_kl(STUDENT, TEACHER), rtol=1e-4, atol=0
    )
    large = jsd(STUDENT, TEACHER, beta=1 - small) / small
    torch.testing.assert_close(large, reverse_kl(STUDENT, TEACHER), rtol=1e-4, atol=0)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_equal_distributions_have_divergence_0_and_no_push(rule: Any) -> None:
    logits, _ = distributions()
    view = support.whole(logits.log_softmax(-1), logits.log_softmax(-1))
    chosen, _ = choose("divergence", rule)
    assert chosen is not None
    assert apply.value(chosen, vars(view)).abs().max() < 1e-12
    slope = apply.coefficient(chosen, lambda s: {"student": s, "teacher": view.teacher}, view.student, ascend=False)
    assert view.to_logits(slope).abs().max() < 1e-12


def views(logits: Tensor, teacher: Tensor) -> dict[str, support.View]:
    """Every way to choose the tokens, as a function of the student's logits."""
    logp = logits.log_softmax(-1)
    ids = teacher.topk(3, -1).indices
    stored = teacher.gather(1, ids)
    return {
        "whole": support.whole(logp, teacher),
        "floor": support.with_floor(logp, ids, stored, floor=-30.0),
        "drop": support.renormalised(logp, ids, stored),
        "bucket": support.with_tail(logp, ids, stored, support.tail_of(stored)),
    }


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("how", ["whole", "floor", "drop", "bucket"])
def test_the_push_of_the_logits_is_the_negative_gradient_of_the_divergence(rule: Any, how: str) -> None:
    logits, teacher = distributions()
    logits.requires_grad_()
    chosen, _ = choose("divergence", rule)
    assert chosen is not None
    view = views(logits, teacher)[how]
    (wanted,) = torch.autograd.grad(apply.value(chosen, vars(view)).sum(), logits)
    slope = apply.coefficient(chosen, lambda s: {"student": s, "teacher": view.teacher}, view.student, ascend=False)
    torch.testing.assert_close(view.to_logits(slope).detach(), -wanted, rtol=1e-9, atol=1e-9)


def test_a_bucket_holds_what_the_chosen_tokens_do_not() -> None:
    # four words, student 1/4 each; the teacher is sure of 1/2 for word 0: buckets (1/4, 3/4) and (1/2, 1/2)
    logp = torch.full((1, 4), 0.25, dtype=torch.float64).log()
    stored = torch.tensor([[0.5]], dtype=torch.float64).log()
    view = support.with_tail(logp, torch.tensor([[0]]), stored, support.tail_of(stored))
    assert view.student.exp().tolist() == [pytest.approx([0.25, 0.75])]
    assert view.teacher.exp().tolist() == [pytest.approx([0.5, 0.5])]
    # forward KL pushes the logits by t − s on word 0, and the bucket's 1/2 − 3/4 shared by its words in equal parts
    assert view.to_logits(view.teacher.exp()).tolist() == [pytest.approx([0.25, -1 / 12, -1 / 12, -1 / 12])]


def test_a_teacher_that_is_sure_beyond_rounding_leaves_a_bucket_that_is_finite() -> None:
    stored = torch.tensor([[0.0, -200.0]])
    assert torch.isfinite(support.tail_of(stored)).all()


def test_a_token_of_probability_0_gives_no_nan() -> None:
    sure = torch.tensor([[0.0, -torch.inf]], dtype=torch.float64)
    assert forward_kl(STUDENT, sure).tolist() == pytest.approx([0.693147181])  # −ln 1/2
    assert torch.isfinite(reverse_kl(sure, TEACHER)).all()


def test_every_rule_of_the_kind_is_tested_here() -> None:
    tested = {rule["name"] if isinstance(rule, dict) else rule for rule in RULES}
    assert set(catalogue().names("divergence")) == tested
