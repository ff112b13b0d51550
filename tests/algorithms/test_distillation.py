"""The distillation presets, by numbers worked by hand; their gradients are in test_step_invariance_distillation.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.algorithms.batches import loss, mean_metrics, pushed, term
from unified import Batch
from unified.coefficient import coefficients
from unified.distribution import Divergence
from unified.settings import choose

#: one token over two words: the policy gives them 1/2 each, the teacher 3/4 and 1/4
LOGITS = torch.zeros(1, 2, dtype=torch.float64)
TEACHER = torch.tensor([[0.75, 0.25]], dtype=torch.float64).log()
PRESETS = ["distill_forward", "distill_reverse", "gkd", "minillm"]


def visit(name: str, **settings: Any) -> Divergence:
    chosen, problems = choose("algorithm", {"name": name, **settings})
    assert chosen is not None, [p.text() for p in problems]
    return Divergence(chosen.part, chosen.settings)


def seen(function: Divergence, teacher: Any = TEACHER) -> tuple[float, list[float]]:
    """(divergence, push of the logits) of the one token; the closed form must be autograd of the divergence."""
    value, push = function(LOGITS, teacher)
    assert push is not None
    torch.testing.assert_close(push, function.slope(LOGITS, teacher), rtol=1e-9, atol=1e-9)
    return float(value), push[0].tolist()


def test_forward_distillation_pushes_by_teacher_minus_policy() -> None:
    # KL = 3/4 ln 3/2 + 1/4 ln 1/2 = 0.130812; push (3/4 − 1/2, 1/4 − 1/2)
    value, push = seen(visit("distill_forward"))
    assert value == pytest.approx(0.130812036)
    assert push == pytest.approx([0.25, -0.25])


def test_reverse_distillation_pushes_by_how_far_a_token_lies_from_the_mean() -> None:
    # log-ratios ln 2/3 and ln 2, KL their mean 1/2 ln 4/3 = 0.143841; push 1/2 (KL − log-ratio) = 1/2 · 1/2 ln 3
    value, push = seen(visit("distill_reverse"))
    assert value == pytest.approx(0.143841036)
    assert push == pytest.approx([0.274653072, -0.274653072])


def test_gkd_pushes_less_than_reverse_distillation() -> None:
    # m = (5/8, 3/8), log-ratios to it ln 4/5 and ln 4/3, mean half their sum; push 1/2 · 1/2 · 1/2 ln 5/3
    value, push = seen(visit("gkd"))
    assert value == pytest.approx(0.033822075)
    assert push == pytest.approx([0.063853203, -0.063853203])


def test_minillm_pushes_a_token_exactly_and_by_what_the_teacher_thinks_of_the_rest() -> None:
    # teacher − policy is 1, −2, 4 nats: the mean of what follows is 1, 4, 0; the ratio is 1; three tokens weigh 1/3
    fields = {"old_logp": torch.tensor([[-2.0, -1.0, -5.0]]), "teacher_logp": torch.tensor([[-1.0, -3.0, -1.0]])}
    one = term("minillm")
    batch = Batch({**fields, "logp": fields["old_logp"], "loss_mask": torch.ones(1, 3, dtype=torch.bool)})
    batch = batch.plus(**one.call("credit", batch=batch), logits=torch.tensor([[-0.1, -0.2, -0.6]]))
    found = pushed(one, batch)
    assert found["logp"][0].tolist() == pytest.approx([1 / 3, 4 / 3, 0.0])
    assert found["logits"][0].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    # −(1 + 4 + 0) / 3 of the clipped objective and 0.9 / 3 of the divergence
    assert loss(one, batch) == pytest.approx(-5 / 3 + 0.3)
    assert mean_metrics(one, batch)["divergence"] == pytest.approx(0.3)


def test_on_policy_distillation_pushes_each_token_by_teacher_minus_policy() -> None:
    fields = {"old_logp": torch.tensor([[-2.0, -1.0]]), "teacher_logp": torch.tensor([[-1.0, -3.0]])}
    one = term("on_policy_distillation")
    batch = Batch({**fields, "logp": fields["old_logp"], "loss_mask": torch.ones(1, 2, dtype=torch.bool)})
    batch = batch.plus(**one.call("credit", batch=batch))
    assert pushed(one, batch)["logp"].tolist() == [[0.5, -1.0]]
    assert one.reads == frozenset()  # no ratio: the push is known before the forward
    assert one.credit_reads == {"teacher_logp", "old_logp"}


def test_temperature_softens_both() -> None:
    # odds 3 : 1 become √3 : 1, so the teacher gives 0.633975; push (0.633975 − 1/2) / 2
    assert seen(visit("distill_forward", temperature=2.0))[1] == pytest.approx([0.066987298, -0.066987298])


def test_of_a_top_1_teacher_the_rest_is_one_bucket_or_left_out() -> None:
    stored: Any = (torch.tensor([[0]]), TEACHER[:, :1])
    top = {"support": "teacher", "top_k": 1}
    assert seen(visit("distill_forward", **top), stored)[1] == pytest.approx([0.25, -0.25])  # here the bucket is word 1
    assert seen(visit("distill_forward", **top, tail="drop"), stored)[1] == [0.0, 0.0]  # nothing left to compare
    # sure of word 0, e^−100 on word 1: KL = −ln 1/2, push (1 − 1/2, −1/2)
    assert seen(visit("distill_forward", **top, tail="floor"), stored) == (
        pytest.approx(0.693147181),
        pytest.approx([0.5, -0.5]),
    )


@pytest.mark.parametrize("support", ["teacher", "student"])
@pytest.mark.parametrize("tail", ["bucket", "drop", "floor"])
@pytest.mark.parametrize("name", ["distill_forward", "distill_reverse", "gkd"])
@pytest.mark.parametrize("k", [3, 50])
def test_the_closed_form_is_the_gradient_for_every_support(name: str, support: str, tail: str, k: int) -> None:
    # also of more tokens than there are, which is all of them
    torch.manual_seed(0)
    logits, other = torch.randn(2, 4, 9, dtype=torch.float64)
    teacher: Any = (2 * other).log_softmax(-1)
    if support == "teacher":
        best = teacher.topk(min(k, 9), -1)
        teacher = (best.indices, best.values)
    function = visit(name, support=support, tail=tail, top_k=k, floor=-20.0)
    torch.testing.assert_close(
        function.coefficient(logits, teacher), function.slope(logits, teacher), rtol=1e-9, atol=1e-9
    )


def test_all_tokens_of_the_teacher_are_the_whole_distribution() -> None:
    ids = torch.tensor([[1, 0]])
    every: Any = (ids, TEACHER.gather(1, ids))
    top = {"support": "teacher", "top_k": 2}
    for tail in ("bucket", "drop", "floor"):
        assert seen(visit("distill_reverse", **top, tail=tail), every)[1] == pytest.approx([0.274653072, -0.274653072])


@pytest.mark.parametrize("name", PRESETS)
def test_gc_of_the_head_is_one_and_its_loss_the_divergence(name: str) -> None:
    one = term(name)
    mask = torch.tensor([[True, True, False]])
    noise = {n: torch.full((1, 3), -1.0) for n in ("logp", "old_logp")} | {"advantage": torch.zeros(1, 3)}
    batch = Batch({**noise, "logits": torch.tensor([[-0.5, -0.1, 7.0]]), "loss_mask": mask})
    assert coefficients(one, batch)["logits"].tolist() == [[1.0, 1.0, 0.0]]
    assert loss(one, batch) == pytest.approx(0.3)


def test_stored_tokens_cannot_be_tempered_beside_a_bucket() -> None:
    chosen, problems = choose("algorithm", {"name": "gkd", "support": "teacher", "temperature": 2.0})
    assert chosen is None
    assert "known at temperature 1 only" in problems[0].message


@pytest.mark.parametrize("name", PRESETS)
def test_the_teacher_stores_tokens_only_where_its_likeliest_are_the_support(name: str) -> None:
    assert visit(name).top_k == 0
    assert visit(name, support="student", top_k=7).top_k == 0
    assert visit(name, support="teacher", top_k=7).top_k == 7


def test_a_chunk_is_seen_like_the_whole() -> None:
    torch.manual_seed(0)
    logits, other = torch.randn(2, 6, 9, dtype=torch.float64)
    teacher: Tensor = other.log_softmax(-1)
    whole = visit("gkd").coefficient(logits, teacher)
    parts = [visit("gkd").coefficient(logits[i : i + 2], teacher[i : i + 2]) for i in (0, 2, 4)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-15)
