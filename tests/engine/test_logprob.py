"""Chunked log-probs of given tokens are those of plain log_softmax, and never hold [tokens, vocabulary]."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from unified.logprob import read_distribution, token_logprobs, weighted_logprob

TOKENS, WIDTH, VOCAB = 7, 5, 11


def inputs(dtype: torch.dtype = torch.float64, *, bias: bool = True) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator, dtype=torch.float64)
    weight = torch.randn(VOCAB, WIDTH, generator=generator, dtype=torch.float64)
    shift = torch.randn(VOCAB, generator=generator, dtype=torch.float64)
    target = torch.randint(0, VOCAB, (TOKENS,), generator=generator)
    leaves = [x.to(dtype).requires_grad_() for x in (hidden, weight, shift)]
    return leaves[0], leaves[1], leaves[2] if bias else None, target


def plain(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """The textbook: log p(target) and H = −Σ p log p, with all logits at once."""
    logits = hidden @ weight.T
    log_p = ((logits if bias is None else logits + bias) / temperature).log_softmax(-1)  # [tokens, vocab]
    return log_p[torch.arange(len(target)), target], -(log_p.exp() * log_p).sum(-1)


def pulled(logp: Tensor, entropy: Tensor | None, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of Σ c_t logp_t + Σ d_t H_t with other numbers c, d for every token."""
    generator = torch.Generator().manual_seed(1)
    total = (logp * torch.randn(TOKENS, generator=generator).to(logp.dtype)).sum()
    if entropy is not None:
        total = total + (entropy * torch.randn(TOKENS, generator=generator).to(entropy.dtype)).sum()
    return torch.autograd.grad(total, leaves)


def test_uniform_logits_give_minus_log_of_the_vocabulary_and_its_log_as_entropy() -> None:
    # all logits 0 over 4 words: p = 1/4, log p = −ln 4 = −1.386294, H = ln 4
    logp, entropy = token_logprobs(torch.zeros(2, 3), torch.ones(4, 3), None, torch.tensor([0, 3]), entropy=True)
    assert entropy is not None
    assert logp.tolist() == pytest.approx([-1.386294361, -1.386294361])
    assert entropy.tolist() == pytest.approx([1.386294361, 1.386294361])


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
@pytest.mark.parametrize("bias", [True, False])
def test_value_and_gradient_are_those_of_log_softmax_for_every_size_of_chunk(
    rows: int, temperature: float, bias: bool
) -> None:
    given = inputs(bias=bias)
    leaves = [x for x in given[:3] if x is not None]
    logp, entropy = token_logprobs(
        *given, temperature=temperature, entropy=True, chunk_numbers=rows * VOCAB + VOCAB // 2
    )
    wanted, wanted_entropy = plain(*given, temperature)
    assert entropy is not None
    torch.testing.assert_close(logp, wanted, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(entropy, wanted_entropy, atol=1e-12, rtol=1e-12)
    for mine, theirs in zip(pulled(logp, entropy, leaves), pulled(wanted, wanted_entropy, leaves), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=1e-12)


def test_a_chunk_smaller_than_the_vocabulary_still_takes_one_token() -> None:
    given = inputs()
    torch.testing.assert_close(token_logprobs(*given, chunk_numbers=1)[0], plain(*given, 1.0)[0], atol=1e-12, rtol=0)


def test_without_entropy_none_is_given_and_the_gradient_of_logp_alone_is_right() -> None:
    given = inputs()
    leaves = [x for x in given[:3] if x is not None]
    logp, entropy = token_logprobs(*given, chunk_numbers=2 * VOCAB)
    assert entropy is None
    for mine, theirs in zip(pulled(logp, None, leaves), pulled(plain(*given, 1.0)[0], None, leaves), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("entropy", [True, False])
def test_finite_differences_agree_with_the_backward_pass(entropy: bool) -> None:
    hidden, weight, bias, target = inputs()

    def outputs(h: Tensor, w: Tensor, b: Tensor) -> Any:
        logp, ent = token_logprobs(h, w, b, target, temperature=0.8, entropy=entropy, chunk_numbers=3 * VOCAB)
        return (logp, ent) if entropy else logp

    assert torch.autograd.gradcheck(outputs, (hidden, weight, bias))


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    hidden, weight, _, target = inputs()
    total = token_logprobs(hidden, weight, None, target)[0].square().sum()
    (grad,) = torch.autograd.grad(total, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_only_the_leaves_that_train_get_a_gradient() -> None:
    hidden, weight, bias, target = inputs()
    assert bias is not None
    frozen = token_logprobs(hidden, weight.detach(), bias.detach(), target, chunk_numbers=2 * VOCAB)[0]
    (alone,) = torch.autograd.grad(frozen.sum(), hidden)
    (beside, *_) = torch.autograd.grad(token_logprobs(hidden, weight, bias, target)[0].sum(), [hidden, weight, bias])
    torch.testing.assert_close(alone, beside, atol=1e-14, rtol=0)


def test_bfloat16_products_give_float32_sums_near_the_exact_ones() -> None:
    # the products are rounded to 8 bits: logits of size 8 move by at most 2^-5 = 0.03, so do their log-probs
    hidden, weight, bias, target = inputs(torch.float32)
    logp, entropy = token_logprobs(hidden, weight, bias, target, dtype=torch.bfloat16, entropy=True)
    wanted, wanted_entropy = plain(hidden, weight, bias, target, 1.0)
    assert entropy is not None
    assert logp.dtype == entropy.dtype == torch.float32
    assert float((logp - wanted).detach().abs().max()) < 0.06
    assert float((entropy - wanted_entropy).detach().abs().max()) < 0.06
    leaves = [hidden, weight]
    mine, theirs = pulled(logp, entropy, leaves), pulled(wanted, wanted_entropy, leaves)
    assert [g.dtype for g in mine] == [torch.float32, torch.float32]
    for a, b in zip(mine, theirs, strict=True):
        assert float((a - b).norm() / b.norm()) < 0.03


def test_bfloat16_input_gets_bfloat16_gradients_and_float32_log_probs() -> None:
    hidden, weight, _, target = inputs(torch.bfloat16)
    logp, _ = token_logprobs(hidden, weight, None, target, chunk_numbers=2 * VOCAB)
    assert logp.dtype == torch.float32
    assert [g.dtype for g in torch.autograd.grad(logp.sum(), [hidden, weight])] == [torch.bfloat16, torch.bfloat16]


class Products(TorchDispatchMode):
    """Notes the shapes of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.mm.default:
            self.shapes.append(tuple(made.shape))
        return made


@pytest.mark.parametrize(("dtype", "again"), [(torch.bfloat16, [3, 3]), (torch.float32, [3, 3, 2])])
def test_the_logits_of_the_last_chunk_are_not_made_again_where_reading_has_left_them(
    dtype: torch.dtype, again: list[int]
) -> None:
    # 8 tokens in chunks of 3, 3 and 2
    torch.manual_seed(0)
    hidden, weight = torch.randn(8, 5, requires_grad=True), torch.randn(40, 5, requires_grad=True)
    target = torch.randint(0, 40, (8,))
    grads = []
    for chunk_numbers in (3 * 40, 8 * 40):
        with Products() as forward:
            logp, _ = token_logprobs(hidden, weight, None, target, dtype=dtype, chunk_numbers=chunk_numbers)
        with Products() as backward:
            grads.append(torch.autograd.grad((logp * torch.arange(8)).sum(), [hidden, weight]))
        if chunk_numbers == 3 * 40:
            assert [rows for rows, words in forward.shapes if words == 40] == [3, 3, 2]
            assert [rows for rows, words in backward.shapes if words == 40] == again
    for mine, whole in zip(*grads, strict=True):
        torch.testing.assert_close(mine, whole, rtol=1e-2, atol=2e-2)


class LargestTensor(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for x in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(x, Tensor):
                self.largest = max(self.largest, x.numel())
        return made


def test_no_tensor_of_tokens_times_vocabulary_is_made_forward_or_backward() -> None:
    # 64 tokens x 1000 words = 64,000 logits; chunks of 4 tokens hold 4,000; the weight itself has 8,000 numbers
    tokens, vocab, width = 64, 1000, 8
    hidden = torch.randn(tokens, width, requires_grad=True)
    weight = torch.randn(vocab, width, requires_grad=True)
    target = torch.randint(0, vocab, (tokens,))
    with LargestTensor() as mine:
        logp, entropy = token_logprobs(hidden, weight, None, target, entropy=True, chunk_numbers=4 * vocab)
        assert entropy is not None
        (logp.sum() + entropy.sum()).backward()
    with LargestTensor() as control:
        logp, entropy = plain(hidden, weight, None, target, 1.0)
        (logp.sum() + entropy.sum()).backward()
    assert mine.largest <= vocab * width
    assert control.largest >= tokens * vocab


@pytest.mark.parametrize(
    ("hidden", "weight", "bias", "target", "message"),
    [
        ((3, 4), (6, 5), None, 3, r"hidden is \[3, 4\], target \[3\], weight \[6, 5\]"),
        ((3, 4), (6, 4), None, 2, r"hidden is \[3, 4\], target \[2\], weight \[6, 4\]"),
        ((3, 4), (6, 4), (1,), 3, r"bias is \[1\] but weight is \[6, 4\]; bias must be \[vocab\]"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_with_both_sides(
    hidden: tuple[int, int], weight: tuple[int, int], bias: tuple[int] | None, target: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        token_logprobs(
            torch.zeros(hidden), torch.zeros(weight), None if bias is None else torch.zeros(bias),
            torch.zeros(target, dtype=torch.long),
        )  # fmt: skip


def test_temperature_0_is_refused() -> None:
    with pytest.raises(ValueError, match=r"temperature is 0\.0; it must be positive"):
        token_logprobs(*inputs(), temperature=0.0)


def test_no_tokens_give_no_log_probs_and_a_gradient_of_zeros() -> None:
    weight = torch.randn(4, 3, requires_grad=True)
    logp, _ = token_logprobs(torch.zeros(0, 3, requires_grad=True), weight, None, torch.zeros(0, dtype=torch.long))
    assert logp.shape == (0,)
    assert (torch.autograd.grad(logp.sum(), weight)[0] == 0).all()


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_pushes_that_are_known_before_give_the_gradient_of_their_sum_from_logits_computed_once(
    biased: bool, temperature: float
) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(37, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(50, 8, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(50, dtype=torch.float64, requires_grad=True) if biased else None
    target, push = torch.randint(0, 50, (37,)), torch.randn(37, dtype=torch.float64)
    leaves = [hidden, weight, *([bias] if bias is not None else [])]
    total, logp = weighted_logprob(hidden, weight, bias, target, push, temperature=temperature, chunk_numbers=250)
    read = read_distribution(hidden, weight, bias, target, temperature=temperature)
    torch.testing.assert_close(logp, read.logp.detach(), atol=1e-12, rtol=0)
    torch.testing.assert_close(total, (push * read.logp).sum(), atol=1e-11, rtol=0)
    # the gradient is scaled in the backward pass, as processes are averaged over
    ahead = torch.autograd.grad(-3 * total, leaves)
    after = torch.autograd.grad(-3 * (push * read.logp).sum(), leaves)
    for mine, theirs in zip(ahead, after, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=0)


def test_known_pushes_work_on_logits_as_well() -> None:
    torch.manual_seed(0)
    logits = torch.randn(9, 20, dtype=torch.float64, requires_grad=True)
    target, push = torch.randint(0, 20, (9,)), torch.randn(9, dtype=torch.float64)
    total, _ = weighted_logprob(logits, None, None, target, push, chunk_numbers=60)
    (ahead,) = torch.autograd.grad(total, logits)
    (after,) = torch.autograd.grad((push * read_distribution(logits, None, None, target).logp).sum(), logits)
    torch.testing.assert_close(ahead, after, atol=1e-13, rtol=0)
