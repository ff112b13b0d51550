"""A tied embedding: gradients of torch's own lookup in every kind of backward pass, and no zeros of the vocabulary."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tests.tools import tiny_config
from unified.embeddings import lighten_embedding

IDS = torch.tensor([[3, 5, 3, 0, 7], [5, 5, 1, 2, 0]])
PAD = 0


class Tied(nn.Module):
    """An embedding, something between, and the same weight as head."""

    def __init__(self, padding: int | None = PAD, **more: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rows = nn.Embedding(9, 4, padding_idx=padding, dtype=torch.float64, **more)
        self.head = nn.Linear(4, 9, bias=False, dtype=torch.float64)
        self.head.weight = self.rows.weight

    def get_input_embeddings(self) -> nn.Module:
        return self.rows

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, ids: Tensor = IDS) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.rows(ids)))
        return logits.square().mean()


def pair(**more: Any) -> tuple[Tied, Tied]:
    """The same model as torch computes it, and light."""
    plain, light = Tied(**more), Tied(**more)
    lighten_embedding(light)
    assert "forward" in vars(light.rows)
    return plain, light


def gradient(model: Tied) -> Tensor:
    found = model.rows.weight.grad
    assert found is not None
    return found


def test_the_gradient_is_that_of_torch_s_own_lookup() -> None:
    for padding in (None, PAD):
        plain, light = pair(padding=padding)
        for model in (plain, light):
            model().backward()
        torch.testing.assert_close(gradient(light), gradient(plain), rtol=1e-14, atol=1e-16)


def test_of_several_passes_and_several_lookups_in_one_it_is_the_sum() -> None:
    plain, light = pair()
    for model in (plain, light):
        (model() + 3 * model(IDS[:1])).backward()
        model(IDS[1:]).backward()
    torch.testing.assert_close(gradient(light), gradient(plain), rtol=1e-14, atol=1e-16)


def test_without_the_head_it_is_whole_as_well() -> None:
    plain, light = pair()
    for model in (plain, light):
        model.rows(IDS).square().sum().backward()
    assert gradient(light).is_contiguous()
    torch.testing.assert_close(gradient(light), gradient(plain))


def test_asked_for_without_being_kept_it_is_the_same() -> None:
    plain, light = pair()
    (wanted,), (found,) = (torch.autograd.grad(m(), [m.rows.weight]) for m in (plain, light))
    torch.testing.assert_close(found, wanted)
    assert light.rows.weight.grad is None


def test_rows_of_a_pass_that_broke_off_are_not_added_to_the_next() -> None:
    plain, light = pair()

    class Breaks(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, weight: Tensor) -> Tensor:
            return weight.sum()

        @staticmethod
        def backward(ctx: Any, *_: Any) -> Tensor:
            raise InterruptedError

    with pytest.raises(InterruptedError):  # what is computed first in the forward comes last in the backward pass
        (Breaks.apply(light.rows.weight) + light.rows(IDS).sum()).backward()
    assert light.rows.weight.grad is None
    for model in (plain, light):
        model().backward()
    torch.testing.assert_close(gradient(light), gradient(plain))


def test_a_copy_has_a_gradient_of_its_own() -> None:
    plain, light = pair()
    light().backward()
    twin = copy.deepcopy(light)
    twin.zero_grad()
    twin().backward()
    plain().backward()
    torch.testing.assert_close(gradient(twin), gradient(plain))
    torch.testing.assert_close(gradient(light), gradient(plain))


def test_a_weight_that_stands_still_is_looked_up_without_a_gradient() -> None:
    _, light = pair()
    light.rows.weight.requires_grad_(False)
    assert not light.rows(IDS).requires_grad
    with torch.no_grad():
        torch.testing.assert_close(light.rows(IDS), F.embedding(IDS, light.rows.weight))


@pytest.mark.parametrize("more", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}])
def test_embeddings_that_do_more_are_left_alone(more: dict[str, Any]) -> None:
    model = Tied(**more)
    lighten_embedding(model)
    assert "forward" not in vars(model.rows)


def test_embeddings_that_are_not_the_head_are_left_alone() -> None:
    model = Tied()
    model.head = nn.Linear(4, 9, bias=False)
    lighten_embedding(model)
    assert "forward" not in vars(model.rows)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2", "gpt2"])
def test_a_model_that_ties_has_the_gradients_of_its_own_code(kind: str) -> None:
    config = tiny_config(kind)
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).double().eval()
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    ids = torch.arange(3, 11).view(2, 4)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(input_ids=ids).logits.log_softmax(-1)[..., 5].sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    before = gradients()
    lighten_embedding(model)
    for mine, own in zip(gradients(), before, strict=True):
        torch.testing.assert_close(mine, own, rtol=1e-12, atol=1e-14)
    whether = "forward" in vars(model.get_input_embeddings())
    assert whether == (type(model.get_input_embeddings()) is nn.Embedding)


def test_no_gradient_of_the_size_of_the_vocabulary_is_made_beside_that_of_the_head() -> None:
    from torch.profiler import ProfilerActivity, profile

    def largest(light: bool) -> list[int]:
        rows = nn.Embedding(5000, 16)
        head = nn.Linear(16, 5000, bias=False)
        head.weight = rows.weight
        model: Any = Tied()
        model.rows, model.head = rows, head
        if light:
            lighten_embedding(model)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
            model.head(model.rows(IDS[:1, :2])).sum().backward()
        return [e.cpu_memory_usage for e in watched.events() if e.cpu_memory_usage >= 4 * rows.weight.numel()]

    assert len(largest(light=True)) < len(largest(light=False))
