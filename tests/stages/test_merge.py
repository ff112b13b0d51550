"""The merging stage: the average of tensors, and what it refuses to average."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from tests.tools import letter_tokenizer, stage, tiny_policy, tiny_scalar
from unified import Artifact, UserError, catalogue, save_model, stored_value_head
from unified.models import artifact_at
from unified.settings import parse
from unified_plugins.stages.merge import MergeSettings, shares


def merge(folder: Path, artifacts: dict[str, Artifact], **written: Any) -> dict[str, torch.Tensor]:
    """The weights of what the stage leaves, loaded from its folder."""
    part = catalogue().get("stage", "merge")
    settings, problems = parse(part.settings, {"models": list(artifacts), **written}, owner="stage 'test'")
    assert not problems, problems
    assert part.check(settings=settings) == []
    made = part.run(stage(folder, artifacts), settings)
    again = artifact_at(folder / "model")
    assert again.kind == made.artifact.kind == settings.of
    assert again.tokenizer().eos_token_id == 2
    return dict(again.load(again.kind).named_parameters())


def weights(artifact: Artifact) -> dict[str, torch.Tensor]:
    return dict(artifact.module.named_parameters())


def test_every_tensor_is_the_weighted_average(tmp_path: Path) -> None:
    a, b = tiny_policy(seed=0), tiny_policy(seed=1)
    made = merge(tmp_path, {"stage:a": a, "stage:b": b}, weights=[1, 3])
    assert made.keys() == weights(a).keys()
    for name, tensor in made.items():
        torch.testing.assert_close(tensor, 0.25 * weights(a)[name] + 0.75 * weights(b)[name])
    assert not torch.equal(made["lm_head.weight"], weights(b)["lm_head.weight"])


def test_equal_models_average_to_themselves_bit_for_bit_for_any_weights(tmp_path: Path) -> None:
    same = {name: tiny_policy(seed=3) for name in ("stage:a", "stage:b", "stage:c")}
    made = merge(tmp_path, same)
    assert all(torch.equal(made[n], t) for n, t in weights(same["stage:a"]).items())


def test_scalar_models_are_averaged_with_their_read_out(tmp_path: Path) -> None:
    a, b = tiny_scalar(seed=0), tiny_scalar(seed=1)
    made = merge(tmp_path, {"stage:a": a, "stage:b": b}, of="scalar")
    torch.testing.assert_close(made["score.weight"], (weights(a)["score.weight"] + weights(b)["score.weight"]) / 2)


def test_a_moving_average_gives_the_first_model_what_the_later_ones_left_of_it() -> None:
    # theta_1; 1/2 theta_1 + 1/2 theta_2; 1/4 theta_1 + 1/4 theta_2 + 1/2 theta_3
    models = ["stage:a", "stage:b", "stage:c"]
    assert shares(MergeSettings(models=models, ema_decay=0.5)) == [0.25, 0.25, 0.5]
    assert shares(MergeSettings(models=models, weights=[2, 1, 1])) == [0.5, 0.25, 0.25]
    assert shares(MergeSettings(models=["base"])) == [1.0]


def test_models_of_another_architecture_or_size_are_refused_with_both_sides(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'stage:a' is a llama and 'stage:b' a qwen2"):
        merge(tmp_path / "1", {"stage:a": tiny_policy(), "stage:b": tiny_policy("qwen2")})
    from unified.models import new_policy

    sizes = {"model_type": "llama", "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    small, large = (new_policy({**sizes, "hidden_size": h}, letter_tokenizer(), 0) for h in (16, 32))
    message = re.escape("lm_head.weight is [46, 16] in 'stage:a' and [46, 32] in 'stage:b'")
    with pytest.raises(UserError, match=message):
        merge(tmp_path / "2", {"stage:a": small, "stage:b": large})


def value_head(weight: float, bias: float) -> torch.nn.Linear:
    head = torch.nn.Linear(32, 1)
    torch.nn.init.constant_(head.weight, weight)
    torch.nn.init.constant_(head.bias, bias)
    return head


def test_value_heads_on_the_trunk_are_averaged_too(tmp_path: Path) -> None:
    models = {"stage:a": tiny_policy(seed=0), "stage:b": tiny_policy(seed=1)}
    models["stage:a"].value_head, models["stage:b"].value_head = value_head(1.0, 0.0), value_head(5.0, 2.0)
    merge(tmp_path, models, weights=[3, 1])
    made = stored_value_head(artifact_at(tmp_path / "model"))
    assert made is not None
    assert made.weight.tolist() == [[2.0] * 32]  # 3/4 · 1 + 1/4 · 5
    assert made.bias.tolist() == [0.5]


def test_a_value_head_that_only_some_have_is_refused_by_name(tmp_path: Path) -> None:
    models = {"stage:a": tiny_policy(seed=0), "stage:b": tiny_policy(seed=1)}
    models["stage:b"].value_head = value_head(1.0, 0.0)
    with pytest.raises(UserError, match=r"'stage:b' has a value head on its trunk .*, 'stage:a' has none"):
        merge(tmp_path, models)
    assert not (tmp_path / "model").exists()
    merge(tmp_path, {"stage:a": tiny_policy(seed=0), "stage:c": tiny_policy(seed=1)})
    assert stored_value_head(artifact_at(tmp_path / "model")) is None


def test_a_merge_of_one_adapter_writes_the_folded_model(tmp_path: Path) -> None:
    base = tiny_policy()
    save_model(base.module, base.own_tokenizer, tmp_path / "base")
    adapted = peft.get_peft_model(
        artifact_at(tmp_path / "base").load("policy"),
        peft.LoraConfig(r=1, lora_alpha=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    )
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.fill_(0.5)
    adapted.save_pretrained(tmp_path / "adapter")
    made = merge(tmp_path / "out", {"./adapter": artifact_at(tmp_path / "adapter")})
    assert made.keys() == weights(base).keys()
    name = "model.layers.0.self_attn.q_proj.weight"
    # B A has 1/2 · 1/2 everywhere, times alpha / r = 4
    torch.testing.assert_close(made[name], weights(base)[name] + 1.0, atol=1e-6, rtol=0)
    assert torch.equal(made["lm_head.weight"], weights(base)["lm_head.weight"])


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"weights": [1]}, "there are 2 models but 1 weights"),
        ({"weights": [1, -1]}, "the weights sum to 0"),
        ({"weights": [1, 1], "ema_decay": 0.5}, "give `weights` or `ema_decay`, not both"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_the_check(written: dict[str, Any], message: str) -> None:
    settings = MergeSettings(models=["base", "stage:a"], **written)
    (problem,) = catalogue().get("stage", "merge").check(settings=settings)
    assert problem.message == message
