"""Models in and out: what is loaded is what was stored, without dropout, in its own memory, and nothing is made up."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForSequenceClassification

from tests.tools import ARCHITECTURES, letter_tokenizer, tiny_config, tiny_policy, tiny_scalar
from unified import UserError
from unified.models import (
    VALUE_HEAD,
    Artifact,
    artifact_at,
    base_artifact,
    base_tokenizer,
    context_length,
    load_value_head,
    new_policy,
    save_model,
    scalar_head,
)
from unified.stage import ModelSettings

NEW = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
       "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
IDS = torch.tensor([[3, 9, 27, 4, 12]])


def saved(folder: Path, artifact: Artifact, **also: Any) -> Artifact:
    save_model(artifact.module, artifact.tokenizer(), folder, **also)
    return artifact_at(folder)


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


# --- dropout ---


@pytest.mark.parametrize("kind", ["policy", "scalar"])
@pytest.mark.parametrize("way", ["memory", "path", "policy to scalar"])
def test_dropout_is_off_unless_it_is_asked_for_although_gpt_2_comes_with_a_tenth(
    tmp_path: Path, kind: Any, way: str
) -> None:
    assert tiny_config("gpt2").resid_pdrop == 0.1
    artifact = tiny_policy("gpt2") if kind == "policy" or way == "policy to scalar" else tiny_scalar("gpt2")
    artifact = saved(tmp_path, artifact) if way == "path" else artifact
    wanted = "scalar" if way == "policy to scalar" else kind
    model = artifact.load(wanted).train()
    nn.init.ones_(scalar_head(model).weight) if wanted == "scalar" else None
    assert torch.equal(model(input_ids=IDS).logits, model(input_ids=IDS).logits)
    dropping = artifact.load(wanted, dropout=0.3).train()
    nn.init.ones_(scalar_head(dropping).weight) if wanted == "scalar" else None
    assert not torch.equal(dropping(input_ids=IDS).logits, dropping(input_ids=IDS).logits)
    assert {m.p for m in dropping.modules() if isinstance(m, nn.Dropout)} == {0.3}


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gemma3_text", "mistral", "qwen3"])
def test_attention_dropout_can_be_asked_for_and_is_off_without(kind: str) -> None:
    artifact = tiny_policy(kind)
    for p, same in ((None, True), (0.3, False)):
        model = artifact.load("policy", dropout=p).train()
        assert torch.equal(model(input_ids=IDS).logits, model(input_ids=IDS).logits) == same


def test_a_new_policy_has_no_dropout() -> None:
    made = new_policy({"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 4}, letter_tokenizer(), 0)
    model = made.load("policy").train()
    assert torch.equal(model(input_ids=IDS).logits, model(input_ids=IDS).logits)


# --- weights ---


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_policy_that_is_saved_and_loaded_has_equal_bits_and_equal_logits(tmp_path: Path, kind: str) -> None:
    artifact = tiny_policy(kind)
    again = saved(tmp_path, artifact)
    assert again.kind == "policy"
    model = again.load("policy")
    assert same_weights(model, artifact.module)
    assert torch.equal(model(input_ids=IDS).logits, artifact.load("policy")(input_ids=IDS).logits)
    assert again.tokenizer()("abc").input_ids == artifact.tokenizer()("abc").input_ids


def test_a_scalar_model_that_is_saved_and_loaded_keeps_its_read_out(tmp_path: Path) -> None:
    artifact = tiny_scalar()
    again = saved(tmp_path, artifact)
    assert again.kind == "scalar"
    assert same_weights(again.load("scalar"), artifact.module)
    # the kind of a hub id is read when it is loaded: a trained read-out is not mistaken for a fresh one
    unknown = Artifact("policy", str(tmp_path))
    assert same_weights(unknown.load("scalar"), artifact.module)


@pytest.mark.parametrize("kind", ["policy", "scalar"])
def test_loaded_weights_lie_in_torchs_own_storage(tmp_path: Path, kind: Any) -> None:
    # memory-mapped ones begin anywhere in the file, and kernels round differently by alignment
    artifact = tiny_policy() if kind == "policy" else tiny_scalar()
    save_model(artifact.module, artifact.tokenizer(), tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    mapped = load_file(file)
    model = artifact_at(tmp_path).load(kind)
    assert all(p.data_ptr() % 64 == 0 for p in model.parameters())
    assert {p.untyped_storage().nbytes() for p in model.parameters()} == {p.numel() * 4 for p in model.parameters()}
    file.unlink()
    save_file({k: torch.zeros_like(v) for k, v in mapped.items()}, file)
    assert same_weights(model, artifact.module)


def test_tied_embeddings_stay_tied_after_loading(tmp_path: Path) -> None:
    model = saved(tmp_path, tiny_policy("gpt2")).load("policy")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_stored_bfloat16_is_loaded_as_float32(tmp_path: Path) -> None:
    model = saved(tmp_path, tiny_policy(dtype=torch.bfloat16)).load("policy")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_model_in_memory_is_copied_unless_it_is_the_one_to_train() -> None:
    artifact = tiny_policy()
    copied = artifact.load("policy")
    assert copied is not artifact.module
    assert same_weights(copied, artifact.module)
    assert artifact.load("policy", trained=True) is artifact.module


@pytest.mark.parametrize("way", ["memory", "path"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_a_policy_loads_as_a_scalar_model_with_its_trunk_and_a_read_out_of_zeros(
    tmp_path: Path, kind: str, way: str
) -> None:
    artifact = tiny_policy(kind)
    before = copy.deepcopy(artifact.module)
    model = (saved(tmp_path, artifact) if way == "path" else artifact).load("scalar", trained=True)
    assert same_weights(model.base_model, artifact.module.base_model)
    assert (scalar_head(model).weight == 0).all()
    assert scalar_head(model).out_features == 1
    assert (model(input_ids=IDS).logits == 0).all()
    scalar_head(model).weight.data.fill_(1.0)
    next(model.base_model.parameters()).data.zero_()
    assert same_weights(artifact.module, before)  # nothing is shared with the policy


def test_a_policy_in_float64_keeps_its_precision_as_a_scalar_model() -> None:
    artifact = tiny_policy(dtype=torch.float64)
    assert same_weights(artifact.load("scalar").base_model, artifact.module.base_model)


@pytest.mark.parametrize("way", ["memory", "path", "hub id"])
def test_a_scalar_model_is_no_policy(tmp_path: Path, way: str) -> None:
    artifact = tiny_scalar()
    if way != "memory":
        artifact = saved(tmp_path, artifact)
    if way == "hub id":  # not known to be a scalar model before it is loaded
        artifact = Artifact("policy", str(tmp_path))
    with pytest.raises(UserError, match="scalar model"):
        artifact.load("policy")


def test_random_draws_of_a_run_are_not_moved_by_loading(tmp_path: Path) -> None:
    artifact = saved(tmp_path, tiny_policy())
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    tiny_memory = Artifact("policy", module=artifact.load("policy"))
    tiny_memory.load("scalar")
    new_policy(NEW, letter_tokenizer(), 3)
    assert torch.equal(torch.rand(1), wanted)


# --- what is missing ---


def test_a_folder_that_is_not_there_or_holds_no_model_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError, match=rf"no model at {path}\n.*config\.json, weights and a tokenizer"):
            artifact_at(path)
    with pytest.raises(UserError, match=r"no model at \./nowhere"):
        artifact_at("./nowhere")


def test_a_folder_without_weights_or_tokenizer_is_named(tmp_path: Path) -> None:
    artifact = saved(tmp_path, tiny_policy())
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"no model can be loaded from {tmp_path}"):
        artifact.load("policy")
    with pytest.raises(UserError, match=f"no tokenizer at {tmp_path}"):
        artifact.tokenizer()


def test_a_checkpoint_that_lacks_weights_is_refused_rather_than_filled_at_random(tmp_path: Path) -> None:
    artifact = saved(tmp_path, tiny_policy())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    for kind in ("policy", "scalar"):
        with pytest.raises(UserError, match=r"it lacks 1 weights, model\.layers\.1\.mlp\.up_proj\.weight among them"):
            artifact.load(kind)  # type: ignore[arg-type]


def test_a_classifier_of_several_labels_is_no_scalar_model(tmp_path: Path) -> None:
    config = tiny_config()
    config.num_labels = 3
    model = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(UserError, match=f"no model can be loaded from {tmp_path}"):
        saved(tmp_path, Artifact("scalar", module=model, own_tokenizer=letter_tokenizer())).load("scalar")
    with pytest.raises(UserError, match="LlamaForSequenceClassification has no linear read-out of one label"):
        scalar_head(model)


def test_a_model_in_memory_needs_its_tokenizer() -> None:
    with pytest.raises(UserError, match=r"a model in memory needs its tokenizer\n.*own_tokenizer"):
        Artifact("policy", module=tiny_policy().module).tokenizer()


# --- new models ---


def test_a_new_policy_follows_from_the_seed_and_from_nothing_else() -> None:
    torch.manual_seed(1)
    first = new_policy(NEW, letter_tokenizer(), 7).module
    torch.manual_seed(2)
    assert same_weights(new_policy(NEW, letter_tokenizer(), 7).module, first)
    assert not same_weights(new_policy(NEW, letter_tokenizer(), 8).module, first)


def test_a_new_policy_takes_vocabulary_and_special_tokens_from_the_tokenizer() -> None:
    tokenizer = letter_tokenizer()
    config = new_policy(NEW, tokenizer, 0).module.config
    assert config.vocab_size == len(tokenizer)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 0)
    assert new_policy({**NEW, "vocab_size": 100}, tokenizer, 0).module.config.vocab_size == 100


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_size": 32}, r"a new model needs `model_type`\n.*for example"),
        ({"model_type": "lama"}, "no model can be built from"),
        ({"model_type": "t5"}, "no model can be built from"),
        ({**NEW, "hidden_size": "wide"}, "no model can be built from"),
        ({"model_type": "gpt2", "n_embd": 30, "n_head": 4}, "no model can be built from"),
    ],
)
def test_a_configuration_of_which_no_model_can_be_built_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        new_policy(config, letter_tokenizer(), 0)


def test_the_model_of_a_recipe_is_read_beside_the_recipe(tmp_path: Path) -> None:
    save_model(tiny_policy().module, letter_tokenizer(), tmp_path / "models" / "tiny")
    settings = ModelSettings(path="models/tiny")
    assert base_artifact(settings, tmp_path, 0).path == tmp_path / "models" / "tiny"
    assert len(base_tokenizer(settings, tmp_path)) == len(letter_tokenizer())
    with pytest.raises(UserError, match="a new model needs a tokenizer"):
        base_artifact(ModelSettings(new=NEW), tmp_path, 0)


def test_the_length_of_context_is_what_the_configuration_says() -> None:
    assert context_length(tiny_policy("llama").module.config) == 64
    assert context_length(tiny_policy("gpt2").module.config) == 64


# --- the value head on a policy's trunk ---


def test_a_value_head_lies_beside_the_policy_and_comes_back(tmp_path: Path) -> None:
    head = nn.Linear(32, 1)
    artifact = saved(tmp_path, tiny_policy(), value_head=head)
    assert set(load_file(tmp_path / VALUE_HEAD)) == {"weight", "bias"}
    assert VALUE_HEAD == "value_head.safetensors"
    for place in (artifact, Artifact("policy", str(tmp_path)), Artifact("policy", tmp_path, value_head=head)):
        assert same_weights(load_value_head(place, 32), head)
    names = json.loads((tmp_path / "config.json").read_text())["architectures"]
    assert names == ["LlamaForCausalLM"]
    assert same_weights(artifact.load("policy"), tiny_policy().module)  # the head beside it does not disturb


def test_without_one_the_value_head_is_fresh_and_gives_0(tmp_path: Path) -> None:
    for artifact in (saved(tmp_path, tiny_policy()), tiny_policy()):
        head = load_value_head(artifact, 32)
        assert (head(torch.randn(3, 32)) == 0).all()
