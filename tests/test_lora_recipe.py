"""Adapters through a recipe: each stage goes on from what the one before has made, and everything else can read it."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from tests.tools import stage, tiny_policy, tiny_scalar, train_settings
from unified import UserError, check_recipe, load_recipe
from unified.cli import app
from unified.console import RunConsole
from unified.cost import cost_of
from unified.lineage import lineage
from unified.models import artifact_at, save_model
from unified.plan import estimates
from unified.runner import run_recipe
from unified.set_up import set_up
from unified.sizes import Size, size_of
from unified.stage import ModelSettings
from unified.work import Job, Work

RECIPE = """
name: lora
model:
  new: {model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 4}
  tokenizer: random_walks
defaults: {learning_rate: 3e-3, batch_size: 8, adapter: {r: 4, lora_alpha: 8}}
stages:
  tune: {algorithm: sft, data: random_walks, max_steps: 4}
  judge: {algorithm: reward_model, model: stage:tune, data: {name: random_walks, view: pairs}, max_steps: 2}
  rl:
    algorithm: {name: grpo, kl_weight: 0.1}
    model: stage:tune
    data: {name: random_walks, view: prompts}
    reward: {name: model, model: stage:judge}
    source: {group_size: 4, max_tokens: 10}
    max_steps: 2
  prefer: {algorithm: dpo, model: stage:rl, data: {name: random_walks, view: pairs}, max_steps: 2}
  whole: {kind: merge, models: [stage:prefer, stage:rl]}
  test: {kind: evaluate, model: stage:prefer, data: {name: random_walks, view: prompts}, reward: random_walks}
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run; beside it lora.yaml."""
    home = tmp_path_factory.mktemp("recipe")
    (home / "lora.yaml").write_text(RECIPE)
    run(home)
    return home / "out"


def run(home: Path) -> list[bool]:
    outcomes = run_recipe(
        load_recipe(home / "lora.yaml"), home / "out", console=RunConsole(Console(file=io.StringIO()))
    )
    return [outcome.fresh for outcome in outcomes]


def first_row(folder: Path) -> dict[str, Any]:
    row: dict[str, Any] = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    return row


def base_name(folder: Path) -> str:
    return str(json.loads((folder / "model" / "adapter_config.json").read_text())["base_model_name_or_path"])


def test_each_stage_names_what_it_was_handed_and_starts_from_it(done: Path) -> None:
    names = {stage: base_name(done / stage) for stage in ("tune", "judge", "rl", "prefer")}
    assert names == {
        "tune": "../model-base", "judge": "../../tune/model", "rl": "../../tune/model", "prefer": "../../rl/model",
    }  # fmt: skip
    assert first_row(done / "rl")["kl"] == pytest.approx(0, abs=1e-6)
    assert first_row(done / "prefer")["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_what_is_done_is_skipped_and_the_lineage_leads_through_the_adapters(done: Path) -> None:
    assert run(done.parent) == [False] * 6
    ancestor, names = lineage(done / "prefer")[0], []
    while True:
        names.append(ancestor.name)
        if not ancestor.inputs:
            break
        ancestor = ancestor.inputs[0][1]
    assert names == ["prefer", "rl", "tune", "base"]


def test_merge_and_export_write_whole_models_with_what_was_learnt(done: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(done / "prefer"), str(tmp_path / "exported")])
    assert result.exit_code == 0, result.output
    ids = torch.tensor([[3, 9, 7, 4, 12]])
    folders = [tmp_path / "exported", *(done / name / "model" for name in ("prefer", "rl", "whole"))]
    models = [artifact_at(folder).load("policy") for folder in folders]
    exported, prefer, rl, whole = (model.eval() for model in models)
    assert torch.equal(exported(input_ids=ids).logits, prefer(input_ids=ids).logits)
    assert not torch.equal(prefer(input_ids=ids).logits, rl(input_ids=ids).logits)
    name = "model.layers.0.self_attn.q_proj.weight"
    parts = [dict(model.named_parameters())[name] for model in (whole, prefer, rl)]
    torch.testing.assert_close(parts[0], (parts[1] + parts[2]) / 2)
    assert not (done / "whole" / "model" / "adapter_config.json").exists()


def test_layers_under_a_wrong_key_and_a_missing_peft_are_mistakes_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lora.yaml").write_text(RECIPE)
    with pytest.raises(UserError, match="no setting 'rank' in") as caught:
        check_recipe(load_recipe(tmp_path / "lora.yaml", ["stages.tune.adapter={rank: 4}"]))
    assert "lora.yaml" in str(caught.value)
    monkeypatch.setattr("unified.training.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs peft, which is not installed(?s:.*)pip install"):
        check_recipe(load_recipe(tmp_path / "lora.yaml"))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3_text"])
@pytest.mark.parametrize("scalar", [False, True])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"use_dora": True},
        {"target_modules": ["q_proj", "up_proj", "c_fc"], "exclude_modules": ["0.mlp.up_proj"]},
        {"target_modules": r".*\.1\.(mlp|self_attn)\.(up|q|c)_(proj|fc)"},
    ],
    ids=str,
)
def test_the_plan_knows_how_many_parameters_learn(tmp_path: Path, kind: str, scalar: bool, how: dict[str, Any]) -> None:
    artifact = (tiny_scalar if scalar else tiny_policy)(kind)
    save_model(artifact.module, artifact.own_tokenizer, tmp_path / "model")
    settings = train_settings(
        algorithm="reward_model" if scalar else "sft", adapter={"r": 3, **how},
        data={"name": "random_walks", "view": "pairs"} if scalar else "random_walks",
    )  # fmt: skip
    made = set_up(stage(tmp_path, {"base": artifact}), settings)
    learning = sum(p.numel() for p in made.roles.parameters() if p.requires_grad)
    size = size_of(ModelSettings(path="model", new=None, tokenizer=None), tmp_path, scalar=scalar)
    assert size is not None
    assert size.learning(settings.adapter, scalar=scalar) == learning > 0


def test_memory_of_an_adapter_is_one_copy_of_the_model_and_the_matrices_with_their_moments(done: Path) -> None:
    by_name = {e.finding.stage.name: e.cost for e in estimates(load_recipe(done.parent / "lora.yaml"), done)}
    tune, prefer = by_name["tune"], by_name["prefer"]
    assert tune is not None
    assert prefer is not None
    # of the one block: q, k, v, o 4 x (32 + 32) each, the feed-forward 3 times 4 x (32 + 64)
    numbers = 4 * 256 + 3 * 384
    assert (tune.memory.gradients, tune.memory.optimiser) == (4 * numbers, 8 * numbers)
    assert prefer.memory.weights == tune.memory.weights  # the reference is no second copy
    whole = sum(p.numel() for p in artifact_at(done / "whole" / "model").load("policy").parameters())
    assert tune.memory.weights == 4 * (whole + numbers)
    job = next(job for each in estimates(load_recipe(done.parent / "lora.yaml"), done)[:1] for job in each.work.jobs)
    [size] = {id(s): s for s in tune.sizes.values()}.values()
    assert job.read_out is not None
    # 2 forward, 2 back, none for the weights themselves; attention: 4 per query number and token seen, twice that back
    attention = 12 * size.layers * size.query_width * job.length / 2
    expected = job.tokens * (4 * size.body + attention) + job.read_out * 4 * size.head
    assert tune.flops == pytest.approx(expected)


def test_weights_that_stand_still_in_4_bits_take_about_half_a_byte() -> None:
    adapter = train_settings(algorithm="sft", data="random_walks", adapter={"r": 2, "quantization": "4bit"}).adapter
    size = Size(parameters=1000, layers=1, width=10, key_width=10, matrices=(("a", 64, 9), ("b", 20, 5)))
    work = Work(jobs=[Job("policy", "base", "train", 10.0)], adapter=adapter, optimiser_bytes=8)
    cost = cost_of(work, lambda reference, scalar: size, None)
    assert cost is not None
    # 64 x 9 numbers of 4.127 bits, 424 of 4 bytes (b has no whole blocks); matrices 2 x (64 + 9) + 2 x (20 + 5) numbers
    assert cost.memory.weights == pytest.approx(576 * 4.127 / 8 + 424 * 4 + 196 * 4)
    assert (cost.memory.gradients, cost.memory.optimiser) == (784, 1568)
