"""What all sides of a case are handed, written once to a folder: tokenizer, models, rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.cases import SPECIAL, Case, rows_of

#: share of the vocabulary that ends an answer in `rollout`: of a fresh model's answers half have 28 tokens or fewer
ENDS = 0.0245


def write(case: Case, home: Path, rows: int) -> tuple[Path, Path]:
    """Rows of the case, and the models of its size where they are missing: (folder of rows.jsonl, folder of models)."""
    folder, models = home / case.title, home / f"models-{'-'.join(map(str, case.size))}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "rows.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows_of(case, rows))
    if case.kind != "logprob" and not (models / "scalar" / "tokenizer.json").is_file():
        _models(case, models)
    return folder, models


def _models(case: Case, folder: Path) -> None:
    """`policy/` and `scalar/`, each with a tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    vocabulary, hidden, layers, heads, inner = case.size
    settings: dict[str, Any] = {
        "vocab_size": vocabulary, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": heads, "intermediate_size": inner, "max_position_embeddings": 4096,
        "tie_word_embeddings": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    for name, kind in (("policy", LlamaForCausalLM), ("scalar", LlamaForSequenceClassification)):
        torch.manual_seed(case.seed)
        config = LlamaConfig(**{**settings, **({"num_labels": 1} if name == "scalar" else {})})
        model: Any = kind(config)
        model.save_pretrained(folder / name)
        tokenizer(vocabulary).save_pretrained(folder / name)


def tokenizer(vocabulary: int) -> Any:
    """Words `w3`, `w4`, ... between spaces, one token each."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pad, begin, end = SPECIAL
    names = [*SPECIAL, *(f"w{i}" for i in range(len(SPECIAL), vocabulary))]
    made = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=pad))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=pad, bos_token=begin, eos_token=end, model_max_length=4096
    )


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows as text."""
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def end_ids(case: Case) -> list[int]:
    """What ends an answer in `rollout`: so many ids that a fresh model's answers differ in length."""
    return list(range(2, 2 + max(1, round(ENDS * case.size[0]))))
