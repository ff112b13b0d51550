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
