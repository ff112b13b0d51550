"""The sizes of models, from their configurations: no weights are loaded and nothing is fetched."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unified.adapters import adapter_at, base_of
from unified.errors import UserError
from unified.stage import AdapterSettings, ModelSettings

#: how models call what is read out at the end
OUTPUTS = ("lm_head", "score", "classifier", "embed_out")


@dataclass(frozen=True)
class Size:
    """A model by its configuration: parameters (tied ones once), layers, width, and width of keys of all heads.

    matrices: (name, inputs, outputs) of each linear layer but the output. vocabulary: outputs of the read-out (1 of a
    scalar model). queries: width of queries of all heads, 0: as wide as the model.
    """

    parameters: int
    layers: int
    width: int
    key_width: int
    matrices: tuple[tuple[str, int, int], ...] = ()
    vocabulary: int = 0
    queries: int = 0

    @property
    def query_width(self) -> int:
        """Of all heads."""
        return self.queries or self.width

    @property
    def body(self) -> int:
        """Numbers that a token is multiplied with on its way to the read-out; all, where matrices are not known."""
        return sum(i * o for _, i, o in self.matrices) or self.parameters

    @property
    def head(self) -> int:
        """Numbers of the read-out over words."""
        return self.vocabulary * self.width if self.matrices and self.vocabulary > 1 else 0

    @property
    def inner(self) -> int:
        """Width of the unit between the two products of a layer's second half."""
        return max((o for _, _, o in self.matrices), default=4 * self.width)

    @property
    def gated(self) -> bool:
        """Whether two products of that width are multiplied with each other."""
        wide = sum(o == self.inner for _, _, o in self.matrices)
        return wide >= 2 * max(self.layers, 1)

    def learning(self, adapter: AdapterSettings | None, *, scalar: bool) -> int:
        """Parameters that learn: all, or those of an adapter and the read-out of a scalar model."""
        if adapter is None:
            return self.parameters
        length = 1 if adapter.use_dora else 0
        parts = (adapter.r * (i + o) + length * o for name, i, o in self.matrices if is_adapted(name, adapter))
        return sum(parts) + (self.width if scalar else 0)


def size_of(model: ModelSettings, home: Path, *, scalar: bool) -> Size | None:
    """The size of a recipe's model or of a folder, without its weights; None where its configuration is not here."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    config = _configuration(model, home)
    if config is None:
        return None
    build: Any = AutoModelForSequenceClassification if scalar else AutoModelForCausalLM
    config.num_labels = 1
    with torch.device("meta"):
        made = build.from_config(config)
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", 1)
    head = getattr(text, "head_dim", None) or text.hidden_size // heads
    return Size(
        parameters=sum(p.numel() for p in made.parameters()),
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        key_width=(getattr(text, "num_key_value_heads", None) or heads) * head,
        matrices=_matrices(made),
        vocabulary=1 if scalar else int(text.vocab_size),
        queries=heads * head,
    )


def _matrices(model: Any) -> tuple[tuple[str, int, int], ...]:
    """(name, inputs, outputs) of the linear layers below the output; GPT-2's are stored the other way round."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    found: list[tuple[str, int, int]] = []
    for name, module in model.named_modules():
        if name.partition(".")[0] in OUTPUTS:
            continue
        if isinstance(module, nn.Linear):
            found.append((name, module.in_features, module.out_features))
        elif isinstance(module, Conv1D):
            found.append((name, module.weight.shape[0], module.weight.shape[1]))
    return tuple(found)


def is_adapted(name: str, adapter: AdapterSettings) -> bool:
    """Whether an adapter stands on the linear layer of that name, by peft's rules."""

    def among(wanted: str | list[str]) -> bool:
        if isinstance(wanted, str):
            return wanted.lower() == "all-linear" or re.fullmatch(wanted, name) is not None
        return any(name == each or name.endswith(f".{each}") for each in wanted)

    left_out = adapter.exclude_modules is not None and among(adapter.exclude_modules)
    return among(adapter.target_modules) and not left_out


def _configuration(model: ModelSettings, home: Path) -> Any:
    """A transformers configuration from this machine alone: nothing is fetched."""
    from transformers import AutoConfig

    from unified.named_models import local_path

    if model.path is not None:
        folder = local_path(model.path, home)
        adapter = adapter_at(folder, fetch=False)
        if adapter is not None:
            base = str(base_of(adapter, folder, home))
            return _configuration(ModelSettings(path=base, new=None, tokenizer=None), home)
        try:
            where = folder if folder.is_dir() else model.path
            return AutoConfig.from_pretrained(where, local_files_only=True, trust_remote_code=model.trust_remote_code)
        except (OSError, ValueError):
            return None
    made = dict(model.new or {})
    kind = made.pop("model_type", None)
    tokenizer = tokenizer_of(model, home)
    words = {} if tokenizer is None else {"vocab_size": len(tokenizer)}
    return AutoConfig.for_model(kind, **{**words, **made}) if kind else None


def tokenizer_of(model: ModelSettings, home: Path) -> Any:
    """The tokenizer of a recipe's model or of a folder; None where it is not on this machine."""
    from unified.named_models import local_path

    if model.path is not None and not local_path(model.path, home).is_dir():
        from transformers import AutoTokenizer

        try:
            trusted = model.trust_remote_code
            return AutoTokenizer.from_pretrained(model.path, local_files_only=True, trust_remote_code=trusted)
        except (OSError, ValueError):
            return None
    from unified.models import base_tokenizer

    try:
        return base_tokenizer(model, home)
    except UserError:
        return None


def settings_of_model(reference: str, model: ModelSettings | None) -> ModelSettings | None:
    """What a reference that is no stage's says: the recipe's model, or a folder or hub id."""
    return model if reference == "base" else ModelSettings(path=reference, new=None, tokenizer=None)
