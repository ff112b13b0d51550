"""What the work of a stage costs: operations, memory by part, time. Of models only the configuration is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unified.devices import Hardware
from unified.errors import UserError
from unified.settings import Settings
from unified.stage import ModelSettings
from unified.work import OPERATIONS, Job, Work

FLOAT32, BFLOAT16 = 4, 2
#: bytes that a layer keeps per token and hidden unit for the backward pass, in 16 bit, with fused attention:
#: Korthikanti et al. 2022, arXiv:2205.05198, section 4.1 (34·s·b·h; its term 5·a·s/h is not kept by fused attention)
ACTIVATION_BYTES = 34
#: and where activations are recomputed: the input of the layer alone
CHECKPOINT_BYTES = 2


@dataclass(frozen=True)
class Size:
    """A model by its configuration: parameters (tied ones once), layers, width, and width of keys of all heads."""

    parameters: int
    layers: int
    width: int
    key_width: int


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

    Operations are 6·N per trained token (8·N with activations recomputed), 2·N per scored or sampled one; the part of
    attention that grows with the square of the length is not counted.
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
        again = 2 if work.checkpointing and job.does == "train" else 0
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
    trained = {(j.role, j.model) for j in work.jobs if j.does == "train"}
    number = sum(sizes[key].parameters for key in trained)
    factor = BFLOAT16 if work.bf16 else FLOAT32
    held = [_activations(sizes[key], work) for key in trained]
    writers = [sizes[j.role, j.model] for j in work.jobs if j.does == "generate"]
    cache = max((2 * s.layers * s.key_width * factor * work.at_once * work.longest for s in writers), default=0.0)
    return Memory(
        weights=FLOAT32 * sum(s.parameters for s in sizes.values()),
        gradients=FLOAT32 * number,
        optimiser=work.optimiser_bytes * number,
        activations=max(held, default=0.0),
        kv_cache=cache,
    )


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
    )


def _configuration(model: ModelSettings, home: Path) -> Any:
    """A transformers configuration from this machine alone: nothing is fetched."""
    from transformers import AutoConfig

    from unified.named_models import local_path

    if model.path is not None:
        folder = local_path(model.path, home)
        try:
            return AutoConfig.from_pretrained(folder if folder.is_dir() else model.path, local_files_only=True)
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
            return AutoTokenizer.from_pretrained(model.path, local_files_only=True)
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
