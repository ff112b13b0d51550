"""RMSNorm in few passes: the numbers and gradients of the model's own code, in every model family, and nothing else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from unified.norms import lighten_norms

WIDTH = 24
KINDS = ("llama", "qwen2", "qwen3", "mistral", "mixtral", "gemma", "gemma2", "gemma3_text", "olmo2", "granite")


def model_of(kind: str) -> Any:
    """Two layers, with norms that have learned something."""
    torch.manual_seed(3)
    size = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "head_dim": 8}
    special = {f"{name}_token_id": i for i, name in enumerate(("pad", "bos", "eos"))}
    config = AutoConfig.for_model(kind, num_attention_heads=4, num_key_value_heads=2, **size, **special)
    model = AutoModelForCausalLM.from_config(config)
    for module in norms_of(model):
        module.weight.data += 0.2 * torch.randn(module.weight.shape)
    return model


def norms_of(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if type(m).__name__.endswith("RMSNorm")]


def lightened(model: nn.Module) -> int:
    return sum("forward" in vars(m) for m in model.modules())


def logits_and_gradients(model: Any) -> tuple[Tensor, list[Tensor]]:
    logits = model(input_ids=torch.arange(1, 19).view(2, 9)).logits
    return logits.detach(), list(torch.autograd.grad(logits.square().mean(), list(model.parameters())))


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_with_light_norms_has_the_logits_and_gradients_of_its_own_code(kind: str) -> None:
    model = model_of(kind)
    logits, gradients = logits_and_gradients(model)
    lighten_norms(model)
    assert lightened(model) == len(norms_of(model)) >= 5
    found, same = logits_and_gradients(model)
    torch.testing.assert_close(found, logits, rtol=1e-5, atol=1e-5)
    for mine, own in zip(same, gradients, strict=True):
        assert float((mine - own).norm()) <= 1e-5 * float(own.norm()) + 1e-12


@pytest.mark.parametrize("norm", [LlamaRMSNorm, GemmaRMSNorm])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_is_that_of_the_formula_in_float64(norm: type[nn.Module], dtype: torch.dtype) -> None:
    # y = w x / sqrt(mean x² + eps), or with 1 + w; by autograd
    torch.manual_seed(1)
    module: Any = norm(WIDTH)
    module.weight.data = torch.randn(WIDTH)
    lighten_norms(module)
    x = torch.randn(3, 5, WIDTH).to(dtype).requires_grad_()
    push = torch.randn(3, 5, WIDTH).to(dtype)
    y = module(x)
    assert lightened(module) == 1
    gx, gw = torch.autograd.grad(y, (x, module.weight), push.to(y.dtype))
    wide, weight = (t.detach().double().requires_grad_() for t in (x, module.weight))
    scale = weight if norm is LlamaRMSNorm else 1 + weight
    exact = scale * wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    ex, ew = torch.autograd.grad(exact, (wide, weight), push.double())
    rounding = 1e-6 if dtype == torch.float32 else 1e-2
    for mine, true in ((y, exact), (gx, ex), (gw, ew)):
        assert float((mine.double() - true).detach().norm() / true.detach().norm()) < rounding
    assert gx.dtype == x.dtype
    assert gw.dtype == torch.float32


@pytest.mark.parametrize("norm", [LlamaRMSNorm, GemmaRMSNorm])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inputs", [torch.float32, torch.bfloat16, torch.float64])
def test_results_have_the_type_that_the_models_own_code_gives(norm: Any, weights: Any, inputs: Any) -> None:
    own = norm(WIDTH).to(weights)
    light = copy.deepcopy(own)
    lighten_norms(light)
    x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0)).to(inputs)
    assert light(x).dtype == own(x).dtype
    if inputs == torch.float64:  # tests of exactness compare with plain models
        assert torch.equal(light(x), own(x))


def test_a_copy_uses_its_own_weight() -> None:
    module: Any = LlamaRMSNorm(WIDTH)
    lighten_norms(module)
    twin = copy.deepcopy(module)
    twin.weight.data.fill_(2.0)
    x = torch.ones(1, WIDTH)
    assert torch.equal(twin(x), 2 * module(x))
    assert lightened(twin) == 1


class LookalikeRMSNorm(nn.Module):
    """Of the mean of absolute values."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(WIDTH)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / (x.abs().mean(-1, keepdim=True) + self.eps)


class BiasedRMSNorm(LlamaRMSNorm):
    """With a second parameter."""

    def __init__(self) -> None:
        super().__init__(WIDTH)
        self.bias = nn.Parameter(torch.zeros(WIDTH))


@pytest.mark.parametrize("other", [LookalikeRMSNorm(), BiasedRMSNorm(), nn.LayerNorm(WIDTH)], ids=type)
def test_a_norm_of_another_formula_is_left_alone(other: nn.Module) -> None:
    lighten_norms(other)
    assert lightened(other) == 0


def test_the_input_is_all_that_is_kept_for_the_backward_pass() -> None:
    # of a Llama's own code: x for its square, x for the product, x / rms for the weight; and 1 / rms twice
    def kept(module: nn.Module) -> int:
        sizes: dict[int, int] = {}
        x = torch.randn(8, WIDTH, requires_grad=True)

        def pack(t: Tensor) -> Tensor:
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            module(x)
        return sum(sizes.values())

    own: Any = LlamaRMSNorm(WIDTH)
    before = kept(own)
    lighten_norms(own)
    assert kept(own) == 4 * (8 * WIDTH + WIDTH + 8)  # x, weight, 1 / rms
    assert before >= 4 * (2 * 8 * WIDTH + WIDTH + 8)
