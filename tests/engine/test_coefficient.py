"""From an algorithm's declaration to numbers: GC per head, the named loss, rows of a term, and mistakes named."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from unified import Algorithm, Batch, PluginError, UserError, catalogue
from unified.batch import Here
from unified.coefficient import Term, coefficients, gradient_of_loss, named_loss, push


def term_of(name: str, **written: Any) -> Term:
    """A term of the stranger's algorithm of that name."""
    algorithm = catalogue().get("algorithm", name)
    return Term(algorithm, algorithm.settings(), **written)


def own(coefficient: Callable[..., Any] | None = None, **declared: Any) -> Term:
    """A term of an algorithm that a test makes up."""
    return Term(
        Algorithm("mine", coefficient=coefficient, **declared), catalogue().get("algorithm", "imitate").settings()
    )


def batch_of(**fields: Any) -> Batch:
    """Two prompts with two answers each; the second answer has one token, the rest two. Log-probs of 0.1 steps."""
    given = {
        "loss_mask": torch.tensor([[1, 1], [1, 0], [1, 1], [1, 1]]).bool(),
        "group": torch.tensor([0, 0, 1, 1]),
        "reward": torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64),
        "logp": torch.tensor([[-0.1, -0.2], [-0.3, 0.0], [-0.5, -0.6], [-0.7, -0.8]], dtype=torch.float64),
        "ref_logp": torch.tensor([[-0.2, -0.4], [-0.1, 0.0], [-0.5, -0.5], [-1.0, -0.8]], dtype=torch.float64),
    }
    columns = fields.pop("columns", None)
    return Batch({**given, **{k: torch.as_tensor(v) for k, v in fields.items()}}, columns)


def w_of(term: Term, batch: Batch) -> dict[str, Tensor]:
    return term.normalisers(batch, term.rows(batch), Here())


# --- coefficients ---


def test_where_only_a_loss_is_given_its_negative_gradient_is_the_coefficient() -> None:
    # log-ratios: 0.3 (row 0), −0.2 (1), −0.1 (2), 0.3 (3). The stranger's gap is 0.5 (better − worse), its loss −log σ:
    # prompt 0: gap = 0.25, prompt 1: gap = 0.2; −dloss/dlogp of the better row = 0.5 σ(−gap), of the worse −0.5 σ(−gap)
    first, second = 0.5 / (1 + math.exp(0.25)), 0.5 / (1 + math.exp(0.2))
    given = coefficients(term_of("prefer"), batch_of())["logp"]
    wanted = [[first, first], [-first, 0.0], [-second, -second], [second, second]]
    torch.testing.assert_close(given, torch.tensor(wanted, dtype=torch.float64), atol=1e-12, rtol=0)


def test_a_closed_form_is_the_negative_gradient_of_the_loss_beside_it() -> None:
    term = term_of("imitate")
    expanded = batch_of().expand(gradient_of_loss(term, batch_of())["logp"])
    torch.testing.assert_close(coefficients(term, batch_of())["logp"], expanded, atol=1e-12, rtol=0)


def test_a_loss_of_the_score_pushes_the_last_token_alone() -> None:
    # scores 2 and 1 of the rows 0 and 1: gap 1, σ(−1) = 0.268941; prompt 1 gives 0 and 0: gap 0, σ = 1/2
    score = torch.tensor([[9.0, 2.0], [1.0, 9.0], [9.0, 0.0], [9.0, 0.0]], dtype=torch.float64)
    given = coefficients(term_of("scored"), batch_of(score=score))
    wanted = [[0.0, 0.2689414214], [-0.2689414214, 0.0], [0.0, -0.5], [0.0, 0.5]]
    assert set(given) == {"score"}
    torch.testing.assert_close(given["score"], torch.tensor(wanted, dtype=torch.float64), atol=1e-9, rtol=0)


def test_a_number_per_answer_is_spread_over_its_tokens_and_is_0_off_the_mask_and_on_probes() -> None:
    term = own(lambda batch: {"logp": torch.tensor([1.0, 2.0, 3.0, 4.0])})
    batch = batch_of(probe=[False, False, True, False])
    assert coefficients(term, batch)["logp"].tolist() == [[1, 1], [2, 0], [0, 0], [4, 4]]


def test_true_and_false_stand_for_1_and_0_and_are_still_weighed_by_w() -> None:
    # rejection sampling: 1 where the answer is right. "token": w = 1/7
    term = own(lambda batch: batch.reward > 0, aggregation="token")
    total, each = push([term], batch_of(), [w_of(term, batch_of())])
    assert each[0]["logp"].tolist() == [[1, 1], [0, 0], [0, 0], [1, 1]]
    assert total["logp"][0].tolist() == pytest.approx([1 / 7, 1 / 7])
    whole = own(lambda batch: torch.ones(4, dtype=torch.long), aggregation="token")
    assert push([whole], batch_of(), [w_of(whole, batch_of())])[0]["logp"][1].tolist() == pytest.approx([1 / 7, 0.0])


def test_a_loss_that_does_not_depend_on_the_heads_pushes_nothing() -> None:
    # a plugin may give plain zeros where no two answers make a pair
    term = own(loss=lambda batch: torch.zeros(batch.groups), aggregation="group", scope="group")
    assert coefficients(term, batch_of())["logp"].abs().sum() == 0


def test_the_coefficient_is_a_constant_of_the_backward_pass() -> None:
    logp = batch_of().logp.requires_grad_()
    assert not coefficients(own(lambda batch: batch.logp.exp()), batch_of().plus(logp=logp))["logp"].requires_grad


# --- mistakes ---


def nan_at_row_2(batch: Batch) -> Tensor:
    gc = torch.ones_like(batch.logp)
    gc[2, 1] = torch.nan
    gc[1, 1] = torch.nan  # off the mask: nobody looks there
    return gc


def test_nan_and_infinity_are_named_with_algorithm_head_answer_and_token() -> None:
    with pytest.raises(PluginError, match="coefficient of logp by algorithm 'mine' is nan at answer 2, token 1"):
        coefficients(own(nan_at_row_2), batch_of())
    with pytest.raises(PluginError, match="coefficient of logp by algorithm 'mine' is inf at answer 0, token 0"):
        coefficients(own(lambda batch: batch.logp.abs() / 0), batch_of())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(4, 3), r"coefficient of logp by algorithm 'mine' is \[4, 3\] but loss_mask is \[4, 2\]"),
        (torch.zeros(2), r"coefficient of logp by algorithm 'mine' is \[2\] but loss_mask is \[4, 2\]"),
        ({"value": torch.zeros(4)}, r"algorithm 'mine' pushes 'value' but declares \['logp'\] in `aggregation`"),
        (1.0, "coefficient of algorithm 'mine' gave float for logp; it must be a tensor"),
        (None, "coefficient of algorithm 'mine' gave NoneType for logp; it must be a tensor"),
        ({"logp": [1.0]}, "coefficient of algorithm 'mine' gave list for logp; it must be a tensor"),
    ],
)
def test_what_is_no_coefficient_is_named(given: Any, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        coefficients(own(lambda batch: given), batch_of())


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda batch: batch.logp.mean(), r"the loss of algorithm 'mine' is \[\]; .* = \[4, 2\], \[4\] or \[2\]"),
        (lambda batch: batch.logp[:, :1], r"the loss of algorithm 'mine' is \[4, 1\]; it must be unreduced"),
        (lambda batch: batch.logp.sum(1)[:3], r"the loss of algorithm 'mine' is \[3\]; it must be unreduced"),
        (lambda batch: {"value": batch.logp}, "algorithm 'mine' pushes 'value' but declares"),
        (lambda batch: 0.5, "loss of algorithm 'mine' gave float for logp; it must be a tensor"),
    ],
)  # fmt: skip
def test_a_loss_that_is_reduced_or_of_a_wrong_shape_is_named(loss: Any, message: str) -> None:
    term = own(loss=loss)
    with pytest.raises(PluginError, match=message):
        coefficients(term, batch_of())
    with pytest.raises(PluginError, match=message):
        named_loss(term, batch_of(), {"logp": torch.ones(4), "value": torch.ones(4)})


def test_what_a_plugin_raises_is_named_with_function_and_algorithm_and_keeps_its_cause() -> None:
    def broken(batch: Batch) -> Tensor:
        return 1 / 0 * batch.logp

    with pytest.raises(
        PluginError, match="coefficient of algorithm 'mine' raised ZeroDivisionError: division by zero"
    ) as caught:
        coefficients(own(broken), batch_of())
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(PluginError, match="loss of algorithm 'mine' raised AttributeError: this batch has no 'value'"):
        coefficients(own(loss=lambda batch: batch.value), batch_of())


def test_neither_coefficient_nor_loss_is_named() -> None:
    with pytest.raises(PluginError, match="algorithm 'mine' has neither a coefficient nor a loss"):
        coefficients(own(), batch_of())


def test_a_coefficient_may_not_ask_other_processes() -> None:
    # it runs once per micro-batch, of which processes have different numbers: asking would hang
    message = "raised RuntimeError: batch.total and batch.gather work in credit and statistics"
    with pytest.raises(PluginError, match=message):
        coefficients(own(lambda batch: batch.total(batch.logp)), batch_of())
    with pytest.raises(PluginError, match=message):
        coefficients(own(loss=lambda batch: batch.gather(batch.logp)), batch_of())


@pytest.mark.parametrize("scope", ["group", "step"])
def test_a_coupled_algorithm_may_not_be_weighed_by_the_length_of_each_answer(scope: str) -> None:
    with pytest.raises(
        UserError, match=r"'mine' couples answers: .*'sequence' of logp.*\n.*lengths belong in the margin"
    ):
        own(lambda batch: batch.logp, scope=scope, aggregation="sequence")
    with pytest.raises(UserError, match="'sequence' of logp would change its gradient"):
        term_of("prefer", aggregation="sequence")
    own(lambda batch: batch.logp, scope=scope, aggregation="group")


def test_weights_that_differ_between_prompts_are_refused_where_prompts_are_coupled() -> None:
    own(lambda batch: batch.logp, scope="group", aggregation="group-token")
    with pytest.raises(UserError, match="'group-token' of logp would change its gradient"):
        own(lambda batch: batch.logp, scope="step", aggregation="group-token")


# --- rows of a term ---


def rows_of(on: str, batch: Batch) -> list[bool]:
    return list(term_of("imitate", on=on).rows(batch).tolist())


def test_all_best_and_worst_rows_of_each_prompt() -> None:
    batch = batch_of(reward=[3.0, -1.0, 2.0, 5.0])
    assert rows_of("all", batch) == [True] * 4
    assert rows_of("best", batch) == [True, False, False, True]
    assert rows_of("worst", batch) == [False, True, True, False]


def test_of_equal_rewards_the_first_is_the_best_and_the_worst() -> None:
    batch = batch_of(reward=[1.0, 1.0, 0.5, 0.5])
    assert rows_of("best", batch) == rows_of("worst", batch) == [True, False, True, False]


def test_the_best_is_sought_among_answers_that_count() -> None:
    # row 0 is a probe, row 3 has no loss token: the others are best and worst of their prompts
    mask = torch.tensor([[1, 1], [1, 0], [1, 1], [0, 0]]).bool()
    batch = batch_of(loss_mask=mask, probe=[True, False, False, False], reward=[9.0, 1.0, 1.0, 9.0])
    assert rows_of("best", batch) == rows_of("worst", batch) == [False, True, True, False]
    nothing = batch_of(loss_mask=torch.zeros(4, 2).bool())
    assert rows_of("best", nothing) == [False] * 4
    assert rows_of("best", batch.rows(torch.tensor([], dtype=torch.long))) == []


def test_a_column_of_the_data_chooses_rows_where_it_is_not_0() -> None:
    batch = batch_of(columns={"expert": torch.tensor([0.0, 1.0, -2.0, 0.0])})
    assert rows_of("expert", batch) == [False, True, True, False]
    with pytest.raises(UserError, match=r"`on: exprt` names no column of the data\n.*columns: expert"):
        rows_of("exprt", batch)


def test_rows_off_the_term_do_not_count_and_get_w_0() -> None:
    # tokens of the best answers: 2 + 2
    assert w_of(term_of("imitate", on="best"), batch_of())["logp"].tolist() == [0.25, 0.0, 0.0, 0.25]


def test_weight_multiplies_w_and_terms_add() -> None:
    # imitate on all: w = 1/7; 0.5 imitate on best: 0.5 / 4. Both push with 1
    terms = [term_of("imitate"), term_of("imitate", on="best", weight=0.5)]
    total, each = push(terms, batch_of(), [w_of(t, batch_of()) for t in terms])
    wanted = [[1 / 7 + 1 / 8, 1 / 7 + 1 / 8], [1 / 7, 0.0], [1 / 7, 1 / 7], [1 / 7 + 1 / 8, 1 / 7 + 1 / 8]]
    torch.testing.assert_close(total["logp"], torch.tensor(wanted, dtype=torch.float64), atol=1e-12, rtol=0)
    assert all((gc["logp"][0] == 1).all() for gc in each)


def test_heads_are_weighed_apart() -> None:
    # the stranger's "valued": logp by sequence-sum (4 answers), value by token (7 tokens)
    term = term_of("valued")
    w = w_of(term, batch_of())
    assert (w["logp"].tolist(), w["value"].tolist()) == ([1 / 4] * 4, pytest.approx([1 / 7] * 4))


def test_a_recipe_may_replace_the_aggregation_of_logp_only() -> None:
    assert term_of("valued", aggregation="constant", length=8).aggregations == {"logp": "constant", "value": "token"}
    assert term_of("scored", aggregation="token").aggregations == {"score": "group"}


# --- the named loss ---


def test_the_loss_per_token_is_a_mean_over_tokens() -> None:
    # 0.1 + 0.2 + 0.3 + 0.5 + 0.6 + 0.7 + 0.8 = 3.2 over 7 tokens
    term = term_of("imitate")
    assert named_loss(term, batch_of(), w_of(term, batch_of())) == pytest.approx(3.2 / 7, abs=1e-12)


def test_the_loss_per_prompt_is_a_mean_over_prompts() -> None:
    # −log σ(0.25) = 0.575939, −log σ(0.2) = 0.598139
    term = term_of("prefer")
    wanted = (math.log1p(math.exp(-0.25)) + math.log1p(math.exp(-0.2))) / 2
    assert named_loss(term, batch_of(), w_of(term, batch_of())) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("weight", [2.0, -0.5])
def test_the_loss_is_multiplied_by_the_weight_of_the_term_whatever_its_sign(weight: float) -> None:
    for name in ("imitate", "prefer"):
        plain, weighed = term_of(name), term_of(name, weight=weight)
        wanted = weight * named_loss(plain, batch_of(), w_of(plain, batch_of()))
        assert named_loss(weighed, batch_of(), w_of(weighed, batch_of())) == pytest.approx(wanted, abs=1e-12)


def test_a_loss_per_answer_is_weighed_by_the_row_it_stands_at_also_where_every_answer_is_a_prompt() -> None:
    # losses 1, 10, 100 of answers of 1, 2, 2 tokens in prompts numbered 5, 3, 4: 1/3 (1/1 + 10/2 + 100/2) = 56/3
    fields = {"loss_mask": torch.tensor([[1, 0], [1, 1], [1, 1]]).bool(), "group": torch.tensor([5, 3, 4])}
    batch = Batch({**fields, "logp": torch.zeros(3, 2, dtype=torch.float64)})
    term = own(loss=lambda batch: torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64), aggregation="sequence")
    assert named_loss(term, batch, w_of(term, batch)) == pytest.approx(56 / 3)


def test_losses_of_micro_batches_add_up_to_that_of_the_step() -> None:
    for name in ("imitate", "prefer", "centred"):
        term, batch = term_of(name), batch_of()
        w = w_of(term, batch)
        if term.algorithm.loss is None:
            assert math.isnan(named_loss(term, batch, w))
            continue
        parts = [torch.tensor([2, 3]), torch.tensor([0, 1])]
        total = sum(named_loss(term, batch.rows(i), {h: x[i] for h, x in w.items()}) for i in parts)
        assert total == pytest.approx(named_loss(term, batch, w), abs=1e-12)


# --- state ---


def test_state_begins_as_the_algorithm_says_and_each_term_has_its_own() -> None:
    first, second = term_of("centred"), term_of("centred")
    assert first.state == {"updates": 0.0}
    first.state = first.call("update", totals={})
    assert (first.state, second.state) == ({"updates": 1.0, "depth": 0.0}, {"updates": 0.0})
    assert term_of("centred", state={"updates": 7.0}).state == {"updates": 7.0}


def test_heads_to_compute_are_those_pushed_and_those_read() -> None:
    assert term_of("valued").heads == {"logp", "value"}
    assert term_of("prefer").heads == {"logp"}
    assert term_of("valued").credit_reads == {"old_value"}
