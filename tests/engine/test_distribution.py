"""The `logits` head: chunks of whole distributions, whose gradient is that of the loss on all logits at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from unified import Algorithm, PluginError
from unified.distribution import Divergence, divergence, likeliest, log_prob_chunks
from unified.logprob import read_distribution, token_logprobs
from unified.parts import NoSettings

TOKENS, WIDTH, VOCAB = 7, 5, 11


def cross_entropy(logits: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """−Σ t log p, whose negative derivative by the logits is t − p; the stranger's closed form."""
    loss = -(teacher.exp() * logits.log_softmax(-1)).sum(-1)
    return loss, teacher.exp() - logits.softmax(-1)


def cross_entropy_loss(logits: Tensor, teacher: Tensor) -> Tensor:
    """The same without a closed form."""
    return cross_entropy(logits, teacher)[0]


def best_two(logits: Tensor, teacher: tuple[Tensor, Tensor]) -> Tensor:
    """The same over the tokens that are stored."""
    ids, logp = teacher
    return -(logp.exp() * logits.log_softmax(-1).gather(1, ids)).sum(-1)


def visit(function: Any, **more: Any) -> Divergence:
    return Divergence(
        Algorithm("stranger", distribution=function, aggregation={"logits": "token"}, **more), NoSettings()
    )


def inputs(seed: int = 0, tokens: int = TOKENS, vocab: int = VOCAB) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((tokens, WIDTH), (vocab, WIDTH), (vocab,))
    hidden, weight, bias = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return hidden, weight, bias


def pulled(head: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of Σ c_t head_t with another c for every token."""
    c = torch.randn(len(head), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return torch.autograd.grad((c * head).sum(), leaves)


@pytest.mark.parametrize("function", [cross_entropy, cross_entropy_loss])
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_gradient_in_chunks_is_autograd_of_the_loss_on_all_logits(
    function: Any, rows: int, temperature: float
) -> None:
    leaves = [x.requires_grad_() for x in inputs()]
    teacher = log_prob_chunks(*inputs(1), temperature)
    head = divergence(*leaves, visit(function), teacher, temperature=temperature, chunk_numbers=rows * VOCAB)
    logits = (leaves[0] @ leaves[1].T + leaves[2]) / temperature
    theirs = inputs(1)
    teacher_logp = ((theirs[0] @ theirs[1].T + theirs[2]) / temperature).log_softmax(-1)
    wanted = (teacher_logp.exp() * logits.log_softmax(-1)).sum(-1)  # −loss
    torch.testing.assert_close(head, wanted, rtol=0, atol=1e-12)
    for mine, other in zip(pulled(head, leaves), pulled(wanted, leaves), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


def test_logits_may_be_given_in_the_place_of_hidden_states() -> None:
    # of a model that caps or scales its logits
    logits = (inputs()[0] @ inputs()[1].T).requires_grad_()
    head = divergence(
        logits, None, None, visit(cross_entropy), log_prob_chunks(*inputs(1), 1.0), chunk_numbers=2 * VOCAB
    )
    teacher = log_prob_chunks(*inputs(1), 1.0)(slice(None))
    (mine,) = pulled(head, [logits])
    (other,) = pulled((teacher.exp() * logits.log_softmax(-1)).sum(-1), [logits])
    torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


def test_stored_tokens_of_the_teacher_stand_in_the_place_of_all() -> None:
    leaves = [x.requires_grad_() for x in inputs()]
    teacher = log_prob_chunks(*inputs(1), 1.0)
    ids, logp = likeliest(teacher, TOKENS, 4, chunk_tokens=3)
    best = teacher(slice(None)).topk(4, -1)
    assert (ids == best.indices).all()
    torch.testing.assert_close(logp, best.values)
    function = visit(best_two, top_k=lambda: 2).with_stored(ids, logp)  # of the four that are stored it wants two
    head = divergence(*leaves, function, function.stored_chunk, chunk_numbers=3 * VOCAB)
    student = (leaves[0] @ leaves[1].T + leaves[2]).log_softmax(-1)
    wanted = (best.values[:, :2].exp() * student.gather(1, best.indices[:, :2])).sum(-1)
    torch.testing.assert_close(head, wanted, rtol=0, atol=1e-12)
    for mine, other in zip(pulled(head, leaves), pulled(wanted, leaves), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


def test_uniform_student_and_a_sure_teacher_push_the_sure_token_up_by_three_quarters() -> None:
    # four words, student 1/4 each, teacher sure of word 2: −loss = ln 1/4, push t − p = (−1/4, −1/4, 3/4, −1/4)
    logits = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    sure = torch.tensor([[-1e4, -1e4, 0.0, -1e4]], dtype=torch.float64)
    head = divergence(logits, None, None, visit(cross_entropy), lambda part: sure[part])
    assert head.tolist() == pytest.approx([-1.3862943611])
    assert torch.autograd.grad(head.sum(), logits)[0][0].tolist() == pytest.approx([-0.25, -0.25, 0.75, -0.25])


class LargestTensor(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for x in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(x, Tensor):
                self.largest = max(self.largest, x.numel())
        return made


@pytest.mark.parametrize("function", [cross_entropy, cross_entropy_loss])
def test_no_tensor_of_tokens_times_vocabulary_is_made_forward_or_backward(function: Any) -> None:
    # 64 tokens x 1000 words = 64,000 logits of each model; chunks of 4 tokens hold 4,000; the weight has 5,000 numbers
    student, teacher = [x.float() for x in inputs(0, 64, 1000)], [x.float() for x in inputs(1, 64, 1000)]
    leaves = [x.requires_grad_() for x in student]
    with LargestTensor() as mine:
        chunks = log_prob_chunks(*teacher, 1.0)
        divergence(*leaves, visit(function), chunks, chunk_numbers=4 * 1000).sum().backward()
    assert mine.largest <= 1000 * WIDTH


def test_the_teacher_gets_no_gradient() -> None:
    theirs = [x.requires_grad_() for x in inputs(1)]
    head = divergence(*(x.requires_grad_() for x in inputs()), visit(cross_entropy), log_prob_chunks(*theirs, 1.0))
    head.sum().backward()
    assert all(x.grad is None for x in theirs)


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    hidden, weight, bias = inputs()
    hidden.requires_grad_()
    head = divergence(hidden, weight, bias, visit(cross_entropy), log_prob_chunks(*inputs(1), 1.0))
    (grad,) = torch.autograd.grad(head.square().sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda logits: logits, r"distribution of algorithm 'stranger' gave a loss \[7, 11\] for logits \[7, 11\]"),
        (lambda logits: 0.0, r"gave a loss float for logits \[7, 11\]"),
        (lambda logits: (logits.sum(1), logits[:, 1:]), r"gave a coefficient \[7, 10\] for logits \[7, 11\]"),
        (lambda logits: logits.sum(1) / 0, "gave a loss that is not finite"),
        (lambda logits: logits.no_such_thing, "raised AttributeError"),
    ],
)
def test_a_broken_distribution_is_named(function: Any, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        divergence(*inputs(), visit(function), lambda part: None)


def test_the_collision_probability_of_a_fair_and_a_loaded_coin() -> None:
    # p = (1/2, 1/2): Σ p² = 1/2; p = (3/4, 1/4): 10/16
    logits = torch.tensor([[0.5, 0.5], [0.75, 0.25]]).log()
    read = read_distribution(logits, None, None, torch.tensor([0, 1]), collision=True)
    assert read.collision_logp.exp().tolist() == pytest.approx([0.5, 0.625])
    assert not read.collision_logp.requires_grad


def test_the_collision_probability_comes_from_the_same_chunks_and_leaves_the_rest_as_it_is() -> None:
    hidden, weight, bias = (x.requires_grad_() for x in inputs())
    target = torch.arange(TOKENS)
    read = read_distribution(hidden, weight, bias, target, temperature=0.7, collision=True, chunk_numbers=2 * VOCAB)
    log_p = ((hidden @ weight.T + bias) / 0.7).log_softmax(-1)
    torch.testing.assert_close(read.collision_logp, log_p.exp().square().sum(-1).log().detach(), rtol=0, atol=1e-12)
    plain = token_logprobs(hidden, weight, bias, target, temperature=0.7, chunk_numbers=2 * VOCAB)[0]
    torch.testing.assert_close(read.logp, plain, rtol=0, atol=0)
    for mine, other in zip(pulled(read.logp, [hidden, weight]), pulled(plain, [hidden, weight]), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)
