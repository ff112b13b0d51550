"""What several tests need: tiny models and tokenizers, stages without a recipe, the gradient of a step."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from unified import Answer, PromptGroup, save_model
from unified.models import Artifact, scalar_head
from unified.running import Run, Table, tabulate
from unified.settings import parse
from unified.stage import StageContext, TrainSettings
from unified.step import accumulate, count, credit, score

SHARED = Path(__file__).resolve().parents[2] / "shared"
WORDS = ["<pad>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz0123456789.,!?+=#"]

#: tiny configurations of the architectures that are tested
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8},
    "gemma3_text": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 4},
}
COMMON = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def letter_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def tiny_config(kind: str = "llama") -> Any:
    """A configuration of two layers over the letters."""
    special = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return AutoConfig.for_model(kind, **special, **({} if kind == "gpt2" else COMMON), **ARCHITECTURES[kind])


def tiny_policy(
    kind: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 0.15, tied: bool = False
) -> Artifact:
    """A policy with random weights large enough that its distributions are far from uniform.

    tied: its head is its embedding; without, as its kind has it.
    """
    torch.manual_seed(seed)
    config = tiny_config(kind)
    config.tie_word_embeddings |= tied
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(dtype)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, scale)
    return Artifact("policy", module=model, own_tokenizer=letter_tokenizer())


def chatty_model(folder: Path) -> Path:
    """Writes a policy with a chat template: of every turn the first letter of its role, =, its text, #."""
    artifact = tiny_policy()
    tokenizer = artifact.tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'][0] }}={{ m['content'] }}#{% endfor %}"
        "{% if add_generation_prompt %}a={% endif %}"
    )
    save_model(artifact.module, tokenizer, folder)
    return folder


def tiny_scalar(kind: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Artifact:
    """A scalar model with a read-out that is not zero."""
    torch.manual_seed(seed)
    config = tiny_config(kind)
    config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").to(dtype)
    for parameter in [*model.base_model.parameters(), scalar_head(model).weight]:
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.15)
    return Artifact("scalar", module=model, own_tokenizer=letter_tokenizer())


def stage(folder: Path, artifacts: dict[str, Artifact], *, seed: int = 0) -> StageContext:
    """Surroundings of a stage whose models are at hand."""
    folder.mkdir(parents=True, exist_ok=True)
    return StageContext("test", folder, folder, seed, lambda ref: artifacts[ref], lambda *a, **k: None, lambda *a: None)


def train_settings(**written: Any) -> TrainSettings:
    """Settings of a training stage as a recipe would write them; what is wrong fails the test."""
    settings, problems = parse(TrainSettings, written, owner="stage 'test'")
    assert not problems, problems
    assert isinstance(settings, TrainSettings)
    return settings


def random_groups(
    n: int = 4, answers: int = 3, *, seed: int = 0, longest: int = 9, empty: bool = False
) -> list[PromptGroup]:
    """Prompts with answers of many lengths and rewards of many values, and one token masked here and there."""
    r = random.Random(seed)
    groups = []
    for key in range(n):
        made = []
        for k in range(answers):
            ids = [r.randrange(3, len(WORDS)) for _ in range(r.randint(1, longest))]
            mask = [r.random() < 0.85 for _ in ids]
            mask[-1] = True
            if empty and key == 1 and k == 0:
                mask = [False] * len(ids)
            made.append(Answer(ids, loss_mask=mask, reward=r.choice([0.0, 0.25, 0.5, 1.0, 2.0]) + 0.01 * k))
        groups.append(PromptGroup([r.randrange(3, len(WORDS)) for _ in range(r.randint(1, 7))], made, key=key))
    return groups


def table_of(run: Run, groups: list[PromptGroup], *, several_steps: bool = False) -> Table:
    """Groups with rewards, scored and credited, on the stream that drives the stage."""
    table = tabulate(run, run.streams[0], run.processes.mine(groups))
    score(run, table, several_steps=several_steps)
    credit(run, table)
    return table


def step_gradient(run: Run, groups: list[PromptGroup], *, several_steps: bool = False) -> Tensor:
    """The gradient of one optimiser step on these groups, as one vector over all trained parameters."""
    run.optimizer.zero_grad(set_to_none=True)
    table = table_of(run, groups, several_steps=several_steps)
    accumulate(run, [count(run, table, list(range(len(table.rows))))])
    return gradient(run)


def gradient(run: Run) -> Tensor:
    """All gradients of trained parameters, as one vector in float64; parameters without one count as zeros."""
    parts = [
        (torch.zeros_like(p) if p.grad is None else p.grad).flatten().double()
        for _, p in sorted(run.roles.named_parameters(), key=lambda x: x[0])
        if p.requires_grad
    ]
    return torch.cat(parts)


def relative(a: Tensor, b: Tensor) -> float:
    """|a − b| / |b|."""
    return float((a - b).norm() / b.norm())
