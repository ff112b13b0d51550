"""Rollouts of a policy with an adapter: sampled from the policy as it is now, on the fast path."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.engines.tiny import PROMPTS, flat, logits_of, sample, tiny
from tests.tools import stage, tiny_policy, train_settings
from unified.lora import attach, taken_off, without_adapter
from unified.running import heads_without_gradient, tabulate
from unified.set_up import set_up
from unified.stage import AdapterSettings
from unified.step import collected
from unified_plugins.engines._decode import why_not


def adapted(kind: str) -> Any:
    """A tiny model whose adapter is no longer fresh."""
    model = tiny(kind)
    settings = train_settings(algorithm="sft", data="random_walks", adapter={"r": 2, "lora_alpha": 4}).adapter
    assert isinstance(settings, AdapterSettings)
    attach(model, settings, kind="policy", seed=0)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "qwen3"])
def test_a_policy_with_an_adapter_is_decoded_on_the_fast_path_as_it_stands(kind: str) -> None:
    model = adapted(kind)
    assert why_not(model) is None
    answers = sample(model, PROMPTS, 2, max_tokens=8, max_batch=5, decode="fast")
    folded = sample(taken_off(adapted(kind), folded=True), PROMPTS, 2, max_tokens=8, max_batch=5, decode="fast")
    moved = []
    for (prompt, answer), (_, other) in zip(flat(answers), flat(folded), strict=True):
        assert answer.ids == other.ids
        logp = logits_of(model, prompt, answer.ids).log_softmax(-1)
        expected = logp.gather(1, torch.tensor(answer.ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(answer.sampling_logp), expected, atol=1e-5, rtol=1e-5)
        with without_adapter(model):
            plain = logits_of(model, prompt, answer.ids).log_softmax(-1)
        moved.append(float((plain - logp).abs().max()))
    assert min(moved) > 1e-2


def test_what_is_sampled_in_a_stage_has_the_log_probs_of_the_policy_that_learns(tmp_path: Any) -> None:
    settings = train_settings(
        algorithm="grpo", data={"name": "random_walks", "view": "prompts"}, reward="random_walks",
        source={"group_size": 3, "max_tokens": 8}, batch_size=4, adapter={"r": 2, "lora_alpha": 64},
    )  # fmt: skip
    run = set_up(stage(tmp_path, {"base": tiny_policy()}), settings)
    for name, parameter in run.roles.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.3)
    groups = collected(run, run.streams[0], 4)
    table = tabulate(run, run.streams[0], groups)
    asks = {"policy": frozenset({"logp"}), "reference": frozenset({"logp"})}
    heads = heads_without_gradient(run, table, range(len(table.rows)), asks)
    now, before = (heads[role]["logp"] * table.batch.loss_mask for role in ("policy", "reference"))
    torch.testing.assert_close(table.batch.sampling_logp, now, atol=1e-4, rtol=0)
    assert (now - before).abs().max() > 0.1
