"""What a stage with an adapter leaves behind, and how it goes on after it was stopped."""

from __future__ import annotations

import copy
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.lora import ADAPTER, imitate, matrices
from tests.tools import (
    stage,
    tiny_policy,
    train_settings,
)
from unified.loop import train, train_stage
from unified.models import artifact_at, save_model


class StoppedError(Exception):
    """Raised by a test in the middle of a run."""


@pytest.mark.parametrize(
    "written",
    [
        {"algorithm": "prefer", "batch_size": 5},
        {"algorithm": "clipped", "reward": "vowels", "source": {"group_size": 3}, "batch_size": 4, "inner_epochs": 2},
        {"algorithm": "imitate", "evaluation": {"num_prompts": 8}, "eval_steps": 2,
         "metric_for_best_model": "eval/loss", "greater_is_better": False},
    ],
    ids=lambda written: written["algorithm"],
)  # fmt: skip
def test_a_run_that_was_stopped_ends_with_the_same_matrices(tmp_path: Path, written: dict[str, Any]) -> None:
    settings = train_settings(
        **{"data": "letters", "max_steps": 8, "learning_rate": 1e-2, "save_steps": 3, "adapter": ADAPTER, **written}
    )
    straight, _ = train(stage(tmp_path / "a", {"base": tiny_policy()}), settings)
    broken = stage(tmp_path / "b", {"base": tiny_policy()})

    def stop(step: int, steps: int, metrics: Any) -> None:
        if step >= 4:
            raise StoppedError

    broken.progress = stop
    with suppress(StoppedError):
        train(broken, settings)
    assert (tmp_path / "b" / "checkpoint").exists()
    again, _ = train(stage(tmp_path / "b", {"base": tiny_policy()}), settings)
    assert torch.equal(matrices(again), matrices(straight))
    assert matrices(straight).abs().max() > 0


@pytest.mark.parametrize("save", ["adapter", "merged"])
@pytest.mark.parametrize("start", ["new", "folder", "adapter"])
def test_the_result_is_the_trained_policy_whatever_it_began_from(tmp_path: Path, save: str, start: str) -> None:
    base = tiny_policy()
    if start != "new":
        save_model(base.module, base.own_tokenizer, tmp_path / "base")
        base = artifact_at(tmp_path / "base")
    if start == "adapter":
        made = train_stage(stage(tmp_path / "before", {"base": base}), imitate(adapter=ADAPTER, max_steps=3))
        assert made.artifact is not None
        base = made.artifact
    settings = imitate(adapter={**ADAPTER, "save": save})
    again = copy.deepcopy(base)
    run, _ = train(stage(tmp_path / "a", {"base": again}), settings)
    result = train_stage(stage(tmp_path / "b", {"base": base}), settings).artifact
    assert result is not None
    assert (tmp_path / "b" / "model" / "adapter_config.json").exists() == (save == "adapter")
    assert (tmp_path / "b" / "model-base").exists() == (save == "adapter" and start == "new")
    ids = torch.tensor([[3, 9, 27, 4, 12]])
    loaded = result.load("policy")
    torch.testing.assert_close(
        loaded(input_ids=ids).logits, run.roles.models["policy"](input_ids=ids).logits, atol=1e-5, rtol=0
    )
    (tmp_path / "elsewhere").mkdir()
    for folder in ("b", *([] if start == "new" else ["base"]), *(["before"] if start == "adapter" else [])):
        (tmp_path / folder).rename(tmp_path / "elsewhere" / folder)  # the way from one to the other holds
    there = artifact_at(tmp_path / "elsewhere" / "b" / "model").load("policy")
    assert torch.equal(there(input_ids=ids).logits, loaded(input_ids=ids).logits)


def test_peft_reads_what_is_written(tmp_path: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    run, _ = train(stage(tmp_path / "a", {"base": tiny_policy()}), imitate(adapter=ADAPTER))
    train_stage(stage(tmp_path / "b", {"base": tiny_policy()}), imitate(adapter=ADAPTER))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "b" / "model-base")
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "b" / "model"))
    ids = torch.tensor([[3, 9, 27, 4, 12]])
    ours = run.roles.models["policy"]
    assert (theirs(input_ids=ids).logits - ours(input_ids=ids).logits).abs().max() < 1e-5
    about = json.loads((tmp_path / "b" / "model" / "adapter_config.json").read_text())
    assert (about["base_model_name_or_path"], about["r"], about["lora_alpha"]) == ("../model-base", 4, 8)
    assert about["inference_mode"] is True


def test_a_reward_model_is_an_adapter_and_a_read_out_on_a_policy(tmp_path: Path) -> None:
    policy = tiny_policy()
    save_model(policy.module, policy.own_tokenizer, tmp_path / "base")
    settings = train_settings(
        algorithm="scored", data="letters", learning_rate=1e-2, max_steps=6, batch_size=8, adapter=ADAPTER
    )
    run, _ = train(stage(tmp_path / "a", {"base": artifact_at(tmp_path / "base")}), settings)
    names = {name.rpartition("models.scorer.")[2] for name in run.trained_weights()}
    assert {name for name in names if "lora_" not in name} == {"score.weight"}
    made = train_stage(stage(tmp_path / "b", {"base": artifact_at(tmp_path / "base")}), settings).artifact
    assert made is not None
    assert made.kind == "scalar"
    about = json.loads((tmp_path / "b" / "model" / "adapter_config.json").read_text())
    assert (about["task_type"], about["modules_to_save"]) == ("SEQ_CLS", ["score"])
    loaded, ids = made.load("scalar"), torch.tensor([[3, 9, 27, 4, 12]])
    assert loaded.score.weight.abs().max() > 0
    torch.testing.assert_close(
        loaded(input_ids=ids).logits, run.roles.models["scorer"](input_ids=ids).logits, atol=1e-5, rtol=0
    )
    second = train_stage(stage(tmp_path / "c", {"base": made}), settings)  # goes on from the folded one
    assert second.artifact is not None
    assert not torch.equal(second.artifact.load("scalar").score.weight, loaded.score.weight)


@pytest.mark.parametrize("trunk", ["own", "shared"])
def test_a_value_head_stands_on_the_adapter_and_is_kept_with_it(tmp_path: Path, trunk: str) -> None:
    settings = train_settings(
        algorithm="valued", data="letters", reward="vowels", critic={"trunk": trunk}, learning_rate=1e-2,
        source={"group_size": 2}, batch_size=4, max_steps=3, adapter=ADAPTER,
    )  # fmt: skip
    run, _ = train(stage(tmp_path / "a", {"base": tiny_policy()}), settings)
    train_stage(stage(tmp_path / "b", {"base": tiny_policy()}), settings)
    beside = {n.rpartition("models.")[2] for n in run.trained_weights() if "lora_" not in n}
    if trunk == "shared":
        assert beside == {"value_head.weight", "value_head.bias"}
        head = load_file(tmp_path / "b" / "model" / "value_head.safetensors")
        assert run.roles.value_head is not None
        assert torch.equal(head["weight"], run.roles.value_head.weight)
        assert head["weight"].abs().max() > 0
        return
    assert beside == {"critic.score.weight"}
    critic = artifact_at(tmp_path / "b" / "critic").load("scalar")
    ids = torch.tensor([[3, 9, 27, 4, 12]])
    trained = run.roles.models["critic"](input_ids=ids).logits
    assert trained.abs().max() > 1e-4
    torch.testing.assert_close(critic(input_ids=ids).logits, trained, atol=1e-5, rtol=0)
