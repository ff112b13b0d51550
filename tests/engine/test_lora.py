"""A LoRA on the model in training: what learns, what the reference is, and what of it does not depend on the layout."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.lora import ADAPTER, imitate, matrices, moved, prefer, rows_of, written_adapter
from tests.tools import (
    random_groups,
    relative,
    stage,
    step_gradient,
    table_of,
    tiny_policy,
    tiny_scalar,
    train_settings,
)
from unified import UserError, training
from unified.loop import train, train_stage
from unified.lora import attach, carries_adapter, own_weights, taken_off, without_adapter
from unified.models import Artifact
from unified.running import heads_without_gradient
from unified.set_up import set_up

LOGP = frozenset({"logp"})


# --- what learns ---


def test_only_the_matrices_learn_and_only_they_are_optimised_and_kept(tmp_path: Path) -> None:
    run = set_up(stage(tmp_path, {"base": tiny_policy()}), imitate(adapter=ADAPTER))
    before = {n: t.clone() for n, t in own_weights(run.roles.models["policy"]).items()}
    # of a block: q, o 4 x (32 + 32) each, k, v 4 x (32 + 16) each, three of the feed-forward 4 x (32 + 48) each
    numbers = 2 * (2 * 256 + 2 * 192 + 3 * 320)
    optimised = [p for group in run.optimizer.param_groups for p in group["params"]]
    assert sum(p.numel() for p in optimised) == numbers
    kept = run.trained_weights()
    assert all("lora_" in name for name in kept)
    assert sum(t.numel() for t in kept.values()) == numbers
    ended, _ = train(stage(tmp_path / "b", {"base": tiny_policy()}), imitate(adapter=ADAPTER, save_steps=2))
    after = own_weights(ended.roles.models["policy"])
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(p.abs().max() > 0 for n, p in ended.roles.named_parameters() if "lora_B" in n)
    stored = load_file(tmp_path / "b" / "checkpoint" / "step-4" / "tensors-0.safetensors")
    assert sum(t.numel() for name, t in stored.items() if name.startswith("weights/")) == numbers
    assert len(stored) == 3 * len(optimised)  # of each a weight and two moments, and nothing else


def test_gradient_of_the_matrices_follows_from_that_of_the_weight(tmp_path: Path) -> None:
    # W' = W + s B A: dL/dB = s (dL/dW') A^T, dL/dA = s B^T (dL/dW'), s = alpha / r = 2
    groups = random_groups(4, 2)
    run = set_up(stage(tmp_path, {"base": tiny_policy(dtype=torch.float64)}), imitate(adapter=ADAPTER))
    moved(run.roles.models["policy"])
    whole = Artifact("policy", module=copy.deepcopy(run.roles.models["policy"]), own_tokenizer=run.tokenizer)
    full = set_up(stage(tmp_path, {"base": whole}), imitate())
    for each in (run, full):
        step_gradient(each, groups)
    adapted, plain = (dict(r.roles.models["policy"].named_parameters()) for r in (run, full))
    compared = 0
    for name, parameter in plain.items():
        at = name.removesuffix("weight") + "lora_"
        if f"{at}A.default.weight" in adapted:
            a, b = adapted[f"{at}A.default.weight"], adapted[f"{at}B.default.weight"]
            assert parameter.grad is not None
            assert a.grad is not None
            assert b.grad is not None
            assert relative(b.grad, 2 * parameter.grad @ a.detach().T) < 1e-9
            assert relative(a.grad, 2 * b.detach().T @ parameter.grad) < 1e-9
            compared += 1
    assert compared == 14


@pytest.mark.parametrize("algorithm", ["imitate", "prefer", "clipped", "valued", "scored", "centred"])
def test_gradient_is_the_same_for_any_budget_and_layout(tmp_path: Path, algorithm: str) -> None:
    groups = random_groups(5, 3)

    def gradient(layout: Any, budget: int) -> Tensor:
        base = tiny_scalar if algorithm == "scored" else tiny_policy
        # GPT-2's norms keep float64; Llama's round the gradient of a shared prompt to float32
        artifacts = {"base": base("gpt2", dtype=torch.float64)}
        written: dict[str, Any] = {"algorithm": algorithm, "data": "letters", "reward": "vowels", "adapter": ADAPTER}
        run = set_up(stage(tmp_path, artifacts), train_settings(**written, tokens_per_micro_batch=budget))
        run.layout = layout
        for model in run.roles.models.values():
            moved(model)
        return step_gradient(run, groups, several_steps=True)

    whole = gradient("padded", 100_000)
    assert whole.norm() > 1e-4
    for layout, budget in [("padded", 12), ("packed", 25), ("packed", 1), ("prefix-shared", 100_000)]:
        assert relative(gradient(layout, budget), whole) < 1e-10


def test_recomputed_activations_change_nothing(tmp_path: Path) -> None:
    groups = random_groups(4, 2)
    both = []
    for checkpointing in (False, True):
        artifact = tiny_policy(dtype=torch.float64)
        settings = prefer(adapter=ADAPTER, gradient_checkpointing=checkpointing)
        run = set_up(stage(tmp_path, {"base": artifact}), settings)
        moved(run.roles.models["policy"])
        both.append(step_gradient(run, groups))
    assert relative(both[1], both[0]) < 1e-12


@pytest.mark.parametrize("how", [{}, {"use_dora": True}, {"use_rslora": True}, {"target_modules": ["q_proj"]}])
@pytest.mark.parametrize("kind", ["policy", "scalar"])
def test_what_is_folded_computes_what_the_adapter_did(how: dict[str, Any], kind: str) -> None:
    model = (tiny_policy if kind == "policy" else tiny_scalar)(dtype=torch.float64).module
    ids = torch.tensor([[3, 9, 27, 4, 12]])
    plain = model(input_ids=ids).logits
    attach(model, written_adapter(**how), kind=kind, seed=1)
    fresh = model(input_ids=ids).logits
    assert (fresh - plain).abs().max() < 1e-12
    adapted = moved(model)(input_ids=ids).logits
    assert (adapted - plain).abs().max() > 1e-3
    with without_adapter(model):
        assert torch.equal(model(input_ids=ids).logits, plain)
    assert torch.equal(model(input_ids=ids).logits, adapted)
    back = taken_off(copy.deepcopy(model), folded=False)
    assert not carries_adapter(back)
    assert torch.equal(back(input_ids=ids).logits, plain)
    folded = taken_off(model, folded=True)
    assert not carries_adapter(folded)
    assert (folded(input_ids=ids).logits - adapted).abs().max() < 1e-12


# --- the reference ---


@pytest.mark.parametrize("algorithm", ["prefer", "centred"])
def test_the_reference_is_what_the_stage_was_handed_without_a_second_copy(tmp_path: Path, algorithm: str) -> None:
    artifact = tiny_policy(dtype=torch.float64)
    other = Artifact("policy", module=copy.deepcopy(artifact.module), own_tokenizer=artifact.own_tokenizer)
    settings = prefer(algorithm=algorithm, adapter=ADAPTER, learning_rate=1e-2)
    own, _ = train(stage(tmp_path / "a", {"base": artifact}), settings)
    assert set(own.roles.models) == {"policy"}
    apart = set_up(stage(tmp_path / "b", {"base": other}), prefer(algorithm=algorithm))
    assert set(apart.roles.models) == {"policy", "reference"}
    groups = random_groups(4, 2)
    told = [
        heads_without_gradient(r, table_of(r, groups), range(8), {"policy": LOGP, "reference": LOGP})
        for r in (own, apart)
    ]
    assert torch.equal(told[0]["reference"]["logp"], told[1]["reference"]["logp"])
    assert not torch.allclose(told[0]["policy"]["logp"], told[1]["policy"]["logp"], atol=1e-4)
    assert all(p.requires_grad for n, p in own.roles.named_parameters() if "lora_" in n)


def test_another_reference_is_a_model_of_its_own(tmp_path: Path) -> None:
    artifacts = {"base": tiny_policy(), "other": tiny_policy(seed=1)}
    run = set_up(stage(tmp_path, artifacts), prefer(adapter=ADAPTER, reference="other"))
    assert set(run.roles.models) == {"policy", "reference"}
    assert not carries_adapter(run.roles.models["reference"])


def test_the_first_loss_of_a_pair_is_ln_2_for_a_fresh_adapter_and_after_one_that_was_handed_in(tmp_path: Path) -> None:
    made = train_stage(stage(tmp_path / "path", {"base": tiny_policy()}), imitate(adapter=ADAPTER)).artifact
    first, _ = train(stage(tmp_path / "memory", {"base": tiny_policy()}), imitate(adapter=ADAPTER))
    assert made is not None
    starts = {
        "fresh": tiny_policy(),
        "by path": made,
        "in memory": Artifact("policy", module=first.roles.models["policy"], own_tokenizer=first.tokenizer),
    }
    for name, artifact in starts.items():
        train(stage(tmp_path / name, {"base": artifact}), prefer(adapter=ADAPTER))
        rows = rows_of(tmp_path / name)
        assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
        assert abs(rows[-1]["loss"] - math.log(2)) > 1e-4
    losses = [[row["loss"] for row in rows_of(tmp_path / name)] for name in starts]
    assert losses[1] == pytest.approx(losses[2], rel=1e-4)  # what SFT had learnt was there, by path and in memory
    assert abs(losses[0][1] - losses[1][1]) > 1e-5


def test_what_is_kept_of_a_reference_does_not_depend_on_how_far_the_adapter_has_come(tmp_path: Path) -> None:
    surroundings = stage(tmp_path, {"base": tiny_policy(dtype=torch.float64)})
    surroundings.cache = tmp_path / "cache"
    run = set_up(surroundings, prefer(adapter=ADAPTER))
    first = table_of(run, run.streams[0].rows[:3]).batch.ref_logp
    moved(run.roles.models["policy"])
    run.kept.clear()
    run.memo = None
    files = set((tmp_path / "cache").rglob("*.safetensors"))
    assert len(files) == 1
    assert torch.equal(table_of(run, run.streams[0].rows[:3]).batch.ref_logp, first)
    assert set((tmp_path / "cache").rglob("*.safetensors")) == files


# --- what cannot be ---


def test_combinations_that_make_no_sense_are_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(**also: Any) -> list[tuple[Any, str]]:
        settings = prefer(adapter={**ADAPTER, **also.pop("adapter", {})}, **also)
        return [(p.at, p.message) for p in training.check(settings, tmp_path, 0, None)]

    assert told() == []
    assert told(adapter={"lora_dropout": 0.1}) == [
        (("adapter", "lora_dropout"), "lora_dropout is 0.1, but ref_logp is compared")
    ]
    assert [at for at, _ in told(ref_sync_steps=2)] == [("ref_sync_steps",)]
    assert [at for at, _ in told(adapter={"target_modules": "(q"})] == [("adapter", "target_modules")]
    assert [at for at, _ in told(adapter={"target_modules": []})] == [("adapter", "target_modules")]
    monkeypatch.setattr("unified.training.find_spec", lambda name: None)
    assert told() == [(("adapter",), "`adapter` needs peft, which is not installed")]


def test_dropout_of_an_adapter_rules_sharing_out_and_acts_while_it_trains(tmp_path: Path) -> None:
    settings = imitate(adapter={**ADAPTER, "lora_dropout": 0.5})
    run = set_up(stage(tmp_path, {"base": tiny_policy()}), settings)
    assert run.layout == "packed"
    assert set_up(stage(tmp_path, {"base": tiny_policy()}), imitate(adapter=ADAPTER)).layout == "prefix-shared"
    model, ids = moved(run.roles.models["policy"]), torch.tensor([[3, 9, 27, 4, 12]])
    assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


def test_layers_that_are_not_there_are_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no adapter can be put into LlamaForCausalLM") as caught:
        set_up(stage(tmp_path, {"base": tiny_policy()}), imitate(adapter={**ADAPTER, "target_modules": ["qkv"]}))
    assert "all-linear, or some of down_proj, gate_proj, k_proj, lm_head" in str(caught.value)


def test_an_embedding_that_is_the_output_as_well_is_not_adapted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="adapts the embedding, which is also the output"):
        set_up(stage(tmp_path, {"base": tiny_policy("gpt2")}), imitate(adapter={**ADAPTER, "target_modules": ["wte"]}))


def test_an_adapter_of_a_model_with_python_of_its_own_must_be_folded(tmp_path: Path) -> None:
    trusted = tiny_policy()
    trusted.trusted = True
    with pytest.raises(UserError, match=r"could not be loaded again(?s:.*)save: merged"):
        set_up(stage(tmp_path, {"base": trusted}), imitate(adapter=ADAPTER))
    set_up(stage(tmp_path, {"base": trusted}), imitate(adapter={**ADAPTER, "save": "merged"}))


def test_the_matrices_are_drawn_from_the_seed_of_the_stage_alone(tmp_path: Path) -> None:
    drawn = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        run = set_up(stage(tmp_path, {"base": tiny_policy()}, seed=seed), imitate(adapter=ADAPTER))
        drawn.append(matrices(run))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
