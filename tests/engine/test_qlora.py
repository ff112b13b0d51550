"""A LoRA beside weights of 4 bits: what is rounded, what is the reference, and what is left behind."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.lora import ADAPTER, imitate, matrices, moved, prefer, rows_of
from tests.tools import letter_tokenizer, random_groups, relative, stage, step_gradient, tiny_policy, train_settings
from unified import UserError, training
from unified.loop import train, train_stage
from unified.lora import quantise
from unified.models import Artifact, artifact_at, new_policy, save_model
from unified.set_up import set_up

SMALL: dict[str, Any] = {**ADAPTER, "quantization": "4bit"}
IDS = torch.tensor([[3, 9, 27, 4, 12]])
bitsandbytes = pytest.importorskip("bitsandbytes")

#: NF4: quantiles of the normal distribution, scaled to [-1, 1] (arXiv:2305.14314, appendix E)
LEVELS = [
    -1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
]  # fmt: skip


def wide(kind: Any = "policy") -> Artifact:
    """A model whose layers have 64 or 128 inputs, whole blocks."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    made = new_policy({"model_type": "llama", "max_position_embeddings": 64, **sizes}, letter_tokenizer(), 0)
    for parameter in made.module.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(5.0)
    return made if kind == "policy" else Artifact("scalar", module=made.load("scalar"), own_tokenizer=made.tokenizer())


def test_each_weight_is_a_level_times_the_largest_of_its_64_and_the_output_stays_whole() -> None:
    model = wide().module
    layer, head = model.model.layers[0].mlp.up_proj, model.lm_head
    blocks = layer.weight.data.reshape(-1, 64).clone()
    largest = blocks.abs().amax(1, keepdim=True)
    quantise(model, bf16=False)
    small = model.model.layers[0].mlp.up_proj
    assert small.weight.dtype == torch.uint8
    assert small.weight.numel() == blocks.numel() / 2
    held = small(torch.eye(64)).T.reshape(-1, 64) / largest
    off = (held[:, :, None] - torch.tensor(LEVELS)).abs().amin(-1)
    assert off.max() < 0.01  # the scales themselves have 8 bits
    error = (held - blocks / largest).abs()
    assert error.max() < 0.16  # half of the widest gap between two levels, 0.304, and a little for the scale
    assert model.lm_head is head


def test_layers_without_whole_blocks_stay_as_they_are() -> None:
    model = tiny_policy().module  # 32 and 48 inputs
    with pytest.raises(UserError, match="no layer of LlamaForCausalLM has a multiple of 64 inputs"):
        quantise(model, bf16=False)


def test_the_reference_is_the_rounded_model_and_the_first_loss_of_a_pair_ln_2(tmp_path: Path) -> None:
    made = train_stage(stage(tmp_path / "a", {"base": wide()}), imitate(adapter=SMALL)).artifact
    assert made is not None
    for name, artifact in {"fresh": wide(), "handed in": made}.items():
        run, _ = train(stage(tmp_path / name, {"base": artifact}), prefer(adapter=SMALL))
        assert set(run.roles.models) == {"policy"}
        losses = [row["loss"] for row in rows_of(tmp_path / name)]
        assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
        assert abs(losses[-1] - math.log(2)) > 1e-4


def test_only_the_matrices_are_kept_and_a_stopped_run_ends_with_the_same(tmp_path: Path) -> None:
    settings = imitate(adapter=SMALL, save_steps=2, max_steps=6)
    straight, _ = train(stage(tmp_path / "a", {"base": wide()}), settings)
    assert all("lora_" in name for name in straight.trained_weights())
    broken = stage(tmp_path / "b", {"base": wide()})

    def stop(step: int, steps: int, metrics: Any) -> None:
        if step == 3:
            raise InterruptedError

    broken.progress = stop
    with pytest.raises(InterruptedError):
        train(broken, settings)
    again, _ = train(stage(tmp_path / "b", {"base": wide()}), settings)
    assert torch.equal(matrices(again), matrices(straight))


def test_gradient_is_the_same_for_any_budget_and_layout(tmp_path: Path) -> None:
    groups = random_groups(5, 3)

    def gradient(layout: Any, budget: int) -> torch.Tensor:
        run = set_up(stage(tmp_path, {"base": wide()}), prefer(adapter=SMALL, tokens_per_micro_batch=budget))
        run.layout = layout
        moved(run.roles.models["policy"])
        return step_gradient(run, groups)

    whole = gradient("padded", 100_000)
    for layout, budget in [("padded", 12), ("packed", 25), ("prefix-shared", 100_000)]:
        assert relative(gradient(layout, budget), whole) < 1e-4  # in float32


@pytest.mark.parametrize("start", ["new", "folder"])
def test_what_is_left_names_the_model_in_all_its_bits(tmp_path: Path, start: str) -> None:
    base = wide()
    if start == "folder":
        save_model(base.module, base.own_tokenizer, tmp_path / "base")
        base = artifact_at(tmp_path / "base")
    plain = dict(base.load("policy").named_parameters())
    results = []
    for save in ("adapter", "merged"):
        made = train_stage(stage(tmp_path / save, {"base": base}), imitate(adapter={**SMALL, "save": save})).artifact
        assert made is not None
        results.append(made.load("policy"))
    adapted = json.loads((tmp_path / "adapter" / "model" / "adapter_config.json").read_text())
    wanted = "../model-base" if start == "new" else "../../base"
    assert adapted["base_model_name_or_path"] == wanted
    named = dict(artifact_at((tmp_path / "adapter" / "model" / wanted).resolve()).load("policy").named_parameters())
    assert all(torch.equal(named[name], value) for name, value in plain.items())
    torch.testing.assert_close(results[0](input_ids=IDS).logits, results[1](input_ids=IDS).logits, atol=1e-5, rtol=0)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(dict(results[1].named_parameters())[name], plain[name])


def test_a_reward_model_beside_weights_of_4_bits_keeps_its_read_out_whole(tmp_path: Path) -> None:
    settings = train_settings(algorithm="scored", data="letters", learning_rate=1e-2, max_steps=3, adapter=SMALL)
    run = set_up(stage(tmp_path / "a", {"base": wide("scalar")}), settings)
    model = run.roles.models["scorer"]
    assert model.score.weight.dtype == torch.float32
    assert model.score.weight.requires_grad
    made = train_stage(stage(tmp_path / "b", {"base": wide("scalar")}), settings).artifact
    assert made is not None
    assert not torch.equal(made.load("scalar").score.weight, wide("scalar").module.score.weight)


def test_it_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unified.training.find_spec", lambda name: None if name == "bitsandbytes" else object())
    [problem] = training.check(prefer(adapter=SMALL), tmp_path, 0, None)
    assert problem.at == ("adapter", "quantization")
    assert problem.hints == ("pip install 'unified-post-training[qlora]'",)
    monkeypatch.setattr("unified.lora.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs bitsandbytes"):
        quantise(wide().module, bf16=False)
