"""Linear layers with weights laid out once for a rollout: the same numbers, while it lasts, and where it may be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.engines.tiny import PROMPTS, flat, logits_of, sample, tiny
from unified_plugins.engines import _linears
from unified_plugins.engines._linears import FEW, laid_out

needs_bf16 = pytest.mark.skipif(not _linears._agrees(), reason="this torch has no products with laid out weights")


def layers(model: nn.Module) -> list[nn.Linear]:
    return [m for m in model.modules() if isinstance(m, nn.Linear)]


@needs_bf16
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 24), (5, 1, 24), (FEW, 24), (FEW + 1, 24), (2, 70, 24), (0, 1, 24)])
def test_a_layer_gives_what_it_gives_without_up_to_rounding(bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(24, 40, bias=bias)
    x = torch.randn(shape)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = layer(x)
        with laid_out(layer, 100):
            found = [layer(x), layer(x)]
    for y in found:
        assert (y.dtype, y.shape) == (torch.bfloat16, expected.shape)
        torch.testing.assert_close(y, expected, rtol=1e-2, atol=1e-2)


@needs_bf16
def test_weights_are_those_of_now_and_layers_are_what_they_were_afterwards_also_after_an_error() -> None:
    layer = nn.Linear(8, 8, bias=False)
    x = torch.ones(3, 8)
    sums: list[Tensor] = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for value in (1.0, 2.0):
            layer.weight.fill_(value)
            with laid_out(layer, 100):
                assert "forward" in vars(layer)
                sums.append(layer(x))
            assert "forward" not in vars(layer)
        layer.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError), laid_out(layer, 100):
            layer(x)
    assert "forward" not in vars(layer)
    assert [float(s[0, 0]) for s in sums] == [8.0, 16.0]


@needs_bf16
@pytest.mark.parametrize("where", ["few tokens", "float32", "float16", "with gradients", "another torch"])
def test_nothing_is_laid_out_where_it_does_not_pay_or_is_not_meant(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(8, 8)
    if where == "another torch":
        monkeypatch.setattr(_linears, "_found", [False])
    dtype = torch.float16 if where == "float16" else torch.bfloat16
    with (
        torch.set_grad_enabled(where == "with gradients"),
        torch.autocast("cpu", dtype, enabled=where != "float32"),
        laid_out(layer, 2 if where == "few tokens" else 100),
    ):
        assert "forward" not in vars(layer)


@needs_bf16
def test_answers_in_bfloat16_have_the_log_probs_of_a_plain_forward_up_to_rounding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    products: list[int] = []
    original = _linears._product

    def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        products.append(len(x))
        return original(x, weight, bias)

    monkeypatch.setattr(_linears, "_product", product)
    model = tiny("qwen2")  # biases of queries, keys and values
    with torch.autocast("cpu", torch.bfloat16):
        answers = flat(sample(model, PROMPTS, 3, max_tokens=12))
    assert max(products) <= 12
    assert len(products) > 5 * len(layers(model))
    gaps = []
    for prompt, answer in answers:
        logp = logits_of(model, prompt, answer.ids).log_softmax(-1)
        expected = logp.gather(1, torch.tensor(answer.ids)[:, None])[:, 0]
        gaps += (torch.tensor(answer.sampling_logp) - expected).abs().tolist()
    assert sum(gaps) / len(gaps) < 0.05  # logits of some tens: bfloat16 numbers are an eighth apart there
    assert all("forward" not in vars(layer) for layer in layers(model))


class Three(nn.Module):
    """Two layers that read the same input, one that reads another, and one that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b, self.c = nn.Linear(16, 8), nn.Linear(16, 24), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.a(x), self.b(x), self.c(2 * x), self.c(x + 1)


@needs_bf16
def test_layers_that_read_the_same_input_are_one_product_and_give_what_they_give_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    widths: list[int] = []
    original = _linears._product

    def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        made = original(x, weight, bias)
        widths.append(made.shape[-1])
        return made

    monkeypatch.setattr(_linears, "_product", product)
    model = Three()
    inputs = [torch.randn(3, 1, 16) for _ in range(4)]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = [model(x) for x in inputs]
        with laid_out(model, 100):
            found = [model(x) for x in inputs]
            again = model(inputs[-1])  # the same tensor once more
    for wanted, got in zip([*expected, expected[-1]], [*found, again], strict=True):
        for one, other in zip(wanted, got, strict=True):
            assert one.shape == other.shape
            torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)
    assert set(widths[1:]) == {8 + 24, 16}  # from the second step on a and b are one


@needs_bf16
def test_layers_with_and_without_a_bias_are_multiplied_apart() -> None:
    model = Three()
    model.b = nn.Linear(16, 24, bias=False)
    x = torch.randn(2, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(x)
        with laid_out(model, 100):
            found = [model(x) for _ in range(3)][-1]
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)
