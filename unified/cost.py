"""What the work of a stage costs: operations, memory by part, time. Of models only the configuration is read."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unified.adapters import adapter_at, base_of
from unified.devices import Hardware
from unified.errors import UserError
from unified.settings import Settings
from unified.stage import AdapterSettings, ModelSettings
from unified.work import OPERATIONS, Job, Work

FLOAT32, BFLOAT16 = 4, 2
#: a weight of 4 bits with its scales: 0.127 bits each (Dettmers et al. 2023, arXiv:2305.14314, section 3)
NF4 = (4 + 0.127) / 8
#: layers with another multiple of inputs stay in float32; see lora.quantise
NF4_BLOCK = 64
#: bytes that a layer keeps per token and hidden unit for the backward pass, in 16 bit, with fused attention:
#: Korthikanti et al. 2022, arXiv:2205.05198, section 4.1 (34·s·b·h; its term 5·a·s/h is not kept by fused attention)
ACTIVATION_BYTES = 34
#: and where activations are recomputed: the input of the layer alone
CHECKPOINT_BYTES = 2
#: how models call what is read out at the end
OUTPUTS = ("lm_head", "score", "classifier", "embed_out")


@dataclass(frozen=True)
class Size:
    """A model by its configuration: parameters (tied ones once), layers, width, and width of keys of all heads.

    matrices: (name, inputs, outputs) of each linear layer but the output.
    """

    parameters: int
    layers: int
    width: int
    key_width: int
    matrices: tuple[tuple[str, int, int], ...] = ()

    def learning(self, adapter: AdapterSettings | None, *, scalar: bool) -> int:
        """Parameters that learn: all, or those of an adapter and the read-out of a scalar model."""
        if adapter is None:
            return self.parameters
        length = 1 if adapter.use_dora else 0
        parts = (adapter.r * (i + o) + length * o for name, i, o in self.matrices if is_adapted(name, adapter))
        return sum(parts) + (self.width if scalar else 0)


@dataclass(frozen=True)
class Memory:
    """Bytes on one device that holds a whole copy of every model."""

    weights: float
    gradients: float
    optimiser: float
    activations: float
    kv_cache: float

    @property
    def total(self) -> float:
        """The most at one time: activations and cache are never there together."""
        return self.weights + self.gradients + self.optimiser + max(self.activations, self.kv_cache)


@dataclass(frozen=True)
class Cost:
    """Operations, memory, and seconds on the hardware that was asked for (None: none was)."""

    flops: float
    memory: Memory
    seconds: float | None


def cost_of(work: Work, size: Callable[[str, bool], Size | None], on: Hardware | None) -> Cost | None:
    """The cost of a stage; `size(reference, is_scalar)` gives the size of a model. None where one is not known.

    Operations are 6·N per trained token (4·N beside an adapter, whose weights need no gradient; 2·N more with
    activations recomputed), 2·N per scored or sampled one; the part of attention that grows with the square of the
    length is not counted.
    """
    sizes: dict[tuple[str, str], Size] = {}
    for job in work.jobs:
        found = size(job.model, job.scalar)
        if found is None:
            return None
        sizes[job.role, job.model] = found
    flops, seconds = 0.0, 0.0
    for job in work.jobs:
        of = sizes[job.role, job.model]
        again = 2 * (work.checkpointing - (work.adapter is not None)) if job.does == "train" else 0
        operations = job.tokens * of.parameters * (OPERATIONS[job.does] + again)
        flops += operations
        seconds += _seconds(job, of, operations, work, on) if on else 0.0
    return Cost(flops, _memory(work, sizes), seconds if on else None)


def _seconds(job: Job, size: Size, operations: float, work: Work, on: Hardware) -> float:
    computing = on.seconds(operations, bf16=work.bf16)
    if job.does != "generate":
        return computing
    weight_bytes = size.parameters * (BFLOAT16 if work.bf16 else FLOAT32)
    return max(computing, on.decoding_seconds(job.new_tokens, at_once=max(work.at_once, 1), weight_bytes=weight_bytes))


def _memory(work: Work, sizes: dict[tuple[str, str], Size]) -> Memory:
    learning = {
        (j.role, j.model): sizes[j.role, j.model].learning(work.adapter, scalar=j.scalar)
        for j in work.jobs
        if j.does == "train"
    }
    number = sum(learning.values())
    factor = BFLOAT16 if work.bf16 else FLOAT32
    held = [_activations(sizes[key], work) for key in learning]
    writers = [sizes[j.role, j.model] for j in work.jobs if j.does == "generate"]
    cache = max((2 * s.layers * s.key_width * factor * work.at_once * work.longest for s in writers), default=0.0)
    return Memory(
        weights=sum(_weights(size, work, trained=key in learning) for key, size in sizes.items())
        + (FLOAT32 * number if work.adapter is not None else 0),
        gradients=FLOAT32 * number,
        optimiser=work.optimiser_bytes * number,
        activations=max(held, default=0.0),
        kv_cache=cache,
    )


def _weights(size: Size, work: Work, *, trained: bool) -> float:
    """Bytes of a model, its linear layers in 4 bits where a trained one stands still so."""
    small = work.adapter is not None and work.adapter.quantization is not None and trained
    number = sum(i * o for _, i, o in size.matrices if i % NF4_BLOCK == 0) if small else 0
    return FLOAT32 * (size.parameters - number) + NF4 * number


def _activations(size: Size, work: Work) -> float:
    """What the forward of one micro-batch keeps; logits are never held whole."""
    one_layer = ACTIVATION_BYTES * work.micro_tokens * size.width * (1 if work.bf16 else 2)
    if not work.checkpointing:
        return one_layer * size.layers
    return one_layer * CHECKPOINT_BYTES / ACTIVATION_BYTES * size.layers + one_layer


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


def own_model(settings: Settings) -> str | None:
    """The model that a stage goes on from, by the setting that says so."""
    value = getattr(settings, "model", None)
    return value if isinstance(value, str) else None
