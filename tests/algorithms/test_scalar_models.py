"""Scalar models beyond pairs: rankings, labels of answers and of steps, and comparison token by token."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tests.algorithms.batches import loss, mean_metrics, pushed, random_fields, term
from unified import Answer, Batch, PromptGroup, UserError, call_named, catalogue


def scored(scores: list[float], rewards: list[float]) -> Batch:
    """Answers to one prompt, of two tokens, of which the first has a score that only a token model reads."""
    score = torch.tensor([[0.0, s] for s in scores], dtype=torch.float64)
    reward = torch.tensor(rewards, dtype=torch.float64)
    return Batch({"score": score, "loss_mask": score == score, "reward": reward, "group": torch.zeros(len(scores))})


def test_a_ranking_of_equal_scores_is_pushed_apart_rank_by_rank() -> None:
    # the first of three is chosen with 1/3, the second of two with 1/2
    found = pushed(term("plackett_luce"), scored([0, 0, 0], [2, 1, 0]))["score"][:, 1]
    torch.testing.assert_close(found, torch.tensor([2 / 3, 1 / 6, -5 / 6], dtype=torch.float64))
    assert loss(term("plackett_luce"), scored([0, 0, 0], [2, 1, 0])) == pytest.approx(math.log(6))


def test_answers_of_one_rank_do_not_compete() -> None:
    # both better ones are chosen over the worst alone: 1/2, 1/2, -1
    found = pushed(term("plackett_luce"), scored([0, 0, 0], [1, 1, 0]))["score"][:, 1]
    torch.testing.assert_close(found, torch.tensor([0.5, 0.5, -1], dtype=torch.float64))


def test_the_ranking_model_is_the_gradient_of_the_plackett_luce_likelihood() -> None:
    fields = random_fields()
    fields["reward"] = torch.tensor([2.0, 1.0, 0.0] * 4)
    batch = Batch(fields)
    leaf = fields["score"].clone().requires_grad_()
    s = (leaf * batch.last).sum(1).reshape(4, 3)  # best first
    published = -sum((s[:, k] - s[:, k:].logsumexp(1)).mean() for k in range(3))
    assert isinstance(published, torch.Tensor)
    published.backward()
    assert leaf.grad is not None
    torch.testing.assert_close(pushed(term("plackett_luce"), batch)["score"], -leaf.grad, rtol=1e-9, atol=1e-9)
    assert loss(term("plackett_luce"), batch) == pytest.approx(published.item())


def test_a_class_is_pushed_by_label_minus_probability() -> None:
    # sigmoid(log 3) = 3/4: 1 - 3/4, 0 - 3/4, and a soft label 1/2 - 3/4; three answers
    batch = scored([math.log(3)] * 3, [1.0, 0.0, 0.5])
    found = pushed(term("pointwise"), batch)["score"]
    torch.testing.assert_close(found[:, 1] * 3, torch.tensor([0.25, -0.75, -0.25], dtype=torch.float64))
    assert (found[:, 0] == 0).all()
    wanted = F.binary_cross_entropy_with_logits(batch.score[:, 1], batch.reward).item()
    assert loss(term("pointwise"), batch) == pytest.approx(wanted)


def test_a_number_is_pushed_by_the_error() -> None:
    batch = scored([1.0, 5.0], [3.0, 5.0])
    assert pushed(term("pointwise", target="number"), batch)["score"][:, 1].tolist() == [1.0, 0.0]
    assert loss(term("pointwise", target="number"), batch) == pytest.approx(2.0 / 2)
    assert mean_metrics(term("pointwise", target="number"), batch) == {"score": 3.0, "error_square": 2.0}


def test_a_process_model_is_pushed_at_the_ends_of_steps_alone() -> None:
    # three ends of steps: label - sigmoid(0) each, over three
    ends = torch.tensor([[True, False, True], [False, True, False]])
    label = torch.tensor([[1.0, 0, 0], [0, 0.5, 0]], dtype=torch.float64)
    score = torch.zeros(2, 3, dtype=torch.float64)
    batch = Batch({"score": score, "loss_mask": ends, "reward": label})
    wanted = torch.tensor([[0.5, 0, -0.5], [0, 0, 0]], dtype=torch.float64) / 3
    torch.testing.assert_close(pushed(term("prm"), batch)["score"], wanted)
    assert loss(term("prm"), batch) == pytest.approx(math.log(2))


def test_a_token_model_compares_where_both_answers_have_a_token() -> None:
    # two places in common; leads 0 and log 3: sigmoid 1/2 and 1/4, each over 2
    score = torch.tensor([[0.0, math.log(3), 7.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    batch = Batch({"score": score, "loss_mask": mask, "reward": torch.tensor([1.0, 0.0]), "group": torch.zeros(2)})
    wanted = torch.tensor([[1 / 4, 1 / 8, 0], [-1 / 4, -1 / 8, 0]], dtype=torch.float64)
    torch.testing.assert_close(pushed(term("token_reward_model"), batch)["score"], wanted)
    # -log 1/2 and -log 3/4
    assert loss(term("token_reward_model"), batch) == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)


def steps(ids: list[int], labels: object) -> PromptGroup:
    part = catalogue().get("source", "step_ends")
    group = PromptGroup([1], [Answer(ids)], columns={"labels": labels}, key=4)
    found: list[PromptGroup] = call_named(part.collect, prompts=[group], settings=part.settings(separator=9))
    return found[0]


def test_labels_stand_at_the_ends_of_their_steps() -> None:
    (answer,) = steps([5, 9, 6, 6, 9], [True, 0.25]).answers
    assert answer.loss_mask == [False, True, False, False, True]
    assert answer.reward == [0, 1, 0, 0, 0.25]


@pytest.mark.parametrize("labels", [[1.0], None, "1"])
def test_labels_that_do_not_fit_the_steps_are_refused(labels: object) -> None:
    with pytest.raises(UserError, match=r"row 4: column 'labels' holds (1 labels|no list of labels) for 2 steps"):
        steps([5, 9, 9], labels)
