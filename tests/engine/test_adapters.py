"""Adapters: a folder of peft is the model that it adapts, with the adapter added to the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tools import letter_tokenizer, tiny_policy, tiny_scalar
from unified import UserError
from unified.adapters import adapter_at
from unified.models import Artifact, artifact_at, base_artifact, base_context, base_tokenizer, save_model
from unified.named_models import kind_at, path_problem
from unified.stage import ModelSettings

QUERY = "model.layers.1.self_attn.q_proj.weight"


def adapter(folder: Path, base: Artifact, *, name: str, kind: str = "CAUSAL_LM", **written: Any) -> Path:
    """An adapter of rank 2 and alpha 6 on the queries, with numbers of its own, that calls its base model `name`."""
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj"], task_type=kind, **written)
    adapted = peft.get_peft_model(base.load(base.kind), config)
    torch.manual_seed(3)
    for key, parameter in adapted.named_parameters():
        if "lora_" in key:
            parameter.data.normal_(0, 0.3)
    adapted.save_pretrained(folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": name}))
    return folder


@pytest.fixture
def policy(tmp_path: Path) -> Artifact:
    """base/ on the disk."""
    made = tiny_policy()
    save_model(made.module, made.own_tokenizer, tmp_path / "base")
    return artifact_at(tmp_path / "base")


def query(model: Any) -> torch.Tensor:
    return dict(model.named_parameters())[QUERY].detach()


@pytest.mark.parametrize("name", ["../base", "base"])
def test_the_folded_weight_is_w_plus_alpha_over_r_times_b_a(tmp_path: Path, policy: Artifact, name: str) -> None:
    # beside the adapter, or beside the recipe
    folder = adapter(tmp_path / "adapter", policy, name=name)
    found = artifact_at(folder, tmp_path)
    assert found.kind == "policy"
    stored = load_file(folder / "adapter_model.safetensors")
    at = "base_model.model." + QUERY.removesuffix("weight") + "lora_"
    wanted = query(policy.load("policy")).double() + 6 / 2 * (
        stored[f"{at}B.weight"].double() @ stored[f"{at}A.weight"].double()
    )
    made = query(found.load("policy")).double()
    assert (made - wanted).abs().max() < 1e-6
    assert (made - query(policy.load("policy"))).abs().max() > 0.1


def test_what_is_not_adapted_is_untouched_and_nothing_of_the_adapter_is_left(tmp_path: Path, policy: Artifact) -> None:
    plain = dict(policy.load("policy").named_parameters())
    folded = artifact_at(adapter(tmp_path / "adapter", policy, name="../base")).load("policy")
    assert dict(folded.named_parameters()).keys() == plain.keys()
    assert all(p.requires_grad for p in folded.parameters())
    assert all(torch.equal(p, plain[n]) for n, p in folded.named_parameters() if "q_proj" not in n)
    save_model(folded, letter_tokenizer(), tmp_path / "whole")
    assert adapter_at(tmp_path / "whole") is None
    again = artifact_at(tmp_path / "whole").load("policy")
    assert torch.equal(query(again), query(folded))


def test_kind_tokenizer_and_context_are_those_of_the_adapted_model(tmp_path: Path, policy: Artifact) -> None:
    adapter(tmp_path / "adapter", policy, name="../base")
    settings = ModelSettings(path="adapter", new=None, tokenizer=None)
    assert kind_at("adapter", tmp_path) == "policy"
    assert path_problem("adapter", tmp_path, (), []) is None
    assert base_context(settings, tmp_path) == 64
    assert base_tokenizer(settings, tmp_path).get_vocab() == letter_tokenizer().get_vocab()
    assert base_artifact(settings, tmp_path, 0).adapts is not None
    own = letter_tokenizer()
    own.chat_template = "{{ messages }}"
    own.save_pretrained(tmp_path / "adapter")
    assert base_tokenizer(settings, tmp_path).chat_template == "{{ messages }}"  # its own wins


def test_the_adapter_of_a_scalar_model_is_one_and_that_of_a_policy_can_give_its_trunk(
    tmp_path: Path, policy: Artifact
) -> None:
    scalar = tiny_scalar(seed=1)
    save_model(scalar.module, scalar.own_tokenizer, tmp_path / "judge")
    saved = artifact_at(tmp_path / "judge")
    found = artifact_at(adapter(tmp_path / "a", saved, name="../judge", kind="SEQ_CLS"))
    assert found.kind == kind_at("a", tmp_path) == "scalar"
    model = found.load("scalar")
    assert torch.equal(model.score.weight, scalar.module.score.weight)
    assert not torch.equal(query(model), query(scalar.module))
    with pytest.raises(UserError, match="is a scalar model, but a policy is needed"):
        found.load("policy")
    of_policy = artifact_at(adapter(tmp_path / "b", policy, name="../base"))
    critic = of_policy.load("scalar")
    assert torch.equal(query(critic), query(of_policy.load("policy")))
    assert not critic.score.weight.any()


def test_an_adapter_of_an_adapter_is_folded_into_the_folded(tmp_path: Path, policy: Artifact) -> None:
    first = artifact_at(adapter(tmp_path / "first", policy, name="../base"))
    second = artifact_at(adapter(tmp_path / "second", policy, name="../first"))
    once, twice = query(first.load("policy")), query(second.load("policy"))
    torch.testing.assert_close(twice - once, once - query(policy.load("policy")), atol=1e-6, rtol=0)


def test_an_adapter_that_does_not_fit_is_refused(tmp_path: Path, policy: Artifact) -> None:
    folder = adapter(tmp_path / "adapter", policy, name="../base")
    file = folder / "adapter_model.safetensors"
    stored = load_file(file)
    lost = dict(stored)
    del lost[min(lost)]
    save_file(lost, file)
    with pytest.raises(UserError, match=r"adapter .* cannot be folded into Llama\w+: Found missing adapter keys"):
        artifact_at(folder).load("policy")
    extra = "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"
    save_file({**stored, extra: torch.zeros(2, 32)}, file)
    with pytest.raises(UserError, match="1 weights that the model has no place for"):
        artifact_at(folder).load("policy")
    gpt2 = tiny_policy("gpt2")
    save_model(gpt2.module, gpt2.own_tokenizer, tmp_path / "base")
    with pytest.raises(UserError, match="cannot be folded into GPT2LMHeadModel"):
        artifact_at(folder).load("policy")


def test_what_an_adapter_lacks_on_the_disk_is_told(tmp_path: Path, policy: Artifact) -> None:
    folder = adapter(tmp_path / "adapter", policy, name="../nowhere")
    problem = path_problem("adapter", tmp_path, ("model",), [])
    assert problem is not None
    assert problem.text().startswith("there is no folder ../nowhere, which the adapter")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="does not say which model it adapts"):
        artifact_at(folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match=r"adapter_config\.json of .* cannot be read"):
        artifact_at(folder)
    adapter(folder, policy, name="../base")
    save_model(tiny_policy().module, letter_tokenizer(), folder)
    with pytest.raises(UserError, match="holds an adapter and a whole model"):
        artifact_at(folder)


def test_without_peft_the_check_says_what_to_install(
    tmp_path: Path, policy: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = adapter(tmp_path / "adapter", policy, name="../base")
    monkeypatch.setattr("unified.adapters.find_spec", lambda name: None)
    problem = path_problem("adapter", tmp_path, ("model",), [])
    assert problem is not None
    assert (problem.at, problem.hints) == (("model",), ("pip install 'unified-post-training[peft]'",))
    with pytest.raises(UserError, match=r"to fold the adapter .*, peft is needed"):
        artifact_at(folder).load("policy")
