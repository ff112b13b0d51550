"""Models of a few thousand weights, and what they answer."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM as Causal
from transformers import (
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from unified import Answer, Sampling, call_named, catalogue

KINDS = ["llama", "qwen2", "qwen3", "mistral", "gpt2", "gemma2"]
VOCAB, END = 13, 2
PROMPTS = [[5, 6, 7], [8], [3, 4, 5, 6, 7, 8], [9, 10]]
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}


class Tokenizer:
    """As much of a tokenizer as the engine asks for: token 4 is written "t4"."""

    eos_token_id: int | None = END
    pad_token_id: int | None = 0

    def decode(self, row: list[int], **_: Any) -> str:
        return " ".join(f"t{i}" for i in row)

    def batch_decode(self, rows: list[list[int]], *, skip_special_tokens: bool) -> list[str]:
        return [" ".join(f"t{i}" for i in row if not (skip_special_tokens and i == END)) for row in rows]


def tiny(kind: str = "llama", *, seed: int = 0, **settings: Any) -> Any:
    torch.manual_seed(seed)
    common = {"vocab_size": VOCAB, "eos_token_id": END, "pad_token_id": 0, "bos_token_id": 1, **settings}
    if kind == "gpt2":
        config: Any = GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, **common)
    elif kind == "gemma2":  # a cap on the scores, and layers with a window in turn with others
        config = Gemma2Config(intermediate_size=32, query_pre_attn_scalar=8, sliding_window=4, **SMALL, **common)
    elif kind == "mamba":
        config = MambaConfig(hidden_size=16, num_hidden_layers=2, state_size=4, **common)
    else:
        of = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}[kind]
        own = {"sliding_window": 4} if kind == "mistral" else {}
        config = of(intermediate_size=32, **own, **SMALL, **common)
    model = Causal.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)  # far from uniform, so that a wrong distribution shows
    return model


def seeds_of(prompts: int, n: int, seed: int = 0) -> list[list[int]]:
    return [[10_000 * seed + 100 * i + k for k in range(n)] for i in range(prompts)]


def sample(
    model: Any, prompts: list[list[int]], n: int, seed: int = 0, max_batch: int = 128, decode: str = "auto",
    seeds: list[list[int]] | None = None, **how: Any,
) -> Any:  # fmt: skip
    part = catalogue().get("engine", "transformers")
    return call_named(
        part.generate, model=model, tokenizer=Tokenizer(), prompts=prompts, n=n, sampling=Sampling(**how),
        settings=part.settings(max_batch=max_batch, decode=decode), seeds=seeds or seeds_of(len(prompts), n, seed),
    )  # fmt: skip


@torch.no_grad()
def logits_of(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """[answer, vocab]: the logits that each token of the answer was read from, in one plain forward."""
    return model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1].float()


def flat(answers: list[list[Answer]]) -> list[tuple[list[int], Answer]]:
    return [(prompt, a) for prompt, own in zip(PROMPTS, answers, strict=True) for a in own]
