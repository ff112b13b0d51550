"""A LoRA beside the weights of a model in training: low-rank matrices that learn while the weights stand still.

The adapted layer gives W x + (alpha / r) · B A x. B begins at zero, so that a fresh adapter changes nothing, and the
model without it is the model that the stage was handed. Source: Hu et al. 2021, arXiv:2106.09685, section 4.1. The
layers are peft's, put into the transformers model in place: its class, its forward and its attention stay its own.
"""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import nn

from unified.errors import UserError
from unified.stage import AdapterSettings
from unified.weights import OF_ADAPTER

if TYPE_CHECKING:
    from torch import Tensor

#: how peft calls the one adapter that a model carries here
_NAME = "default"
#: what its files put before the names of weights
_BEFORE = "base_model.model."
#: weights that share a scale in 4 bits
BLOCK = 64
_TASKS = {"policy": "CAUSAL_LM", "scalar": "SEQ_CLS"}


def carries_adapter(model: nn.Module) -> bool:
    """Whether there are layers of peft in the model."""
    return any(True for _ in _layers(model))


def attach(model: Any, settings: AdapterSettings, *, kind: str, seed: int) -> None:
    """Put a fresh adapter into a model; then it alone, and the read-out of a scalar model, has a gradient.

    kind: "policy" or "scalar". seed: of the matrices A, which are the only thing that is drawn.
    UserError where peft is not installed, finds no such modules in the model, or would change the embedding as well.
    """
    if find_spec("peft") is None:
        raise UserError("`adapter` needs peft", "pip install 'unified-post-training[peft]'")
    import peft

    try:
        config = peft.LoraConfig(
            task_type=_TASKS[kind], r=settings.r, lora_alpha=settings.lora_alpha, lora_dropout=settings.lora_dropout,
            target_modules=settings.target_modules, exclude_modules=settings.exclude_modules,
            use_rslora=settings.use_rslora, use_dora=settings.use_dora,
        )  # fmt: skip
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set")
            warnings.filterwarnings("ignore", category=FutureWarning)  # what peft asks of transformers
            torch.manual_seed(seed)
            peft.inject_adapter_in_model(config, model, adapter_name=_NAME)
    except (ValueError, TypeError, KeyError, RuntimeError, re.error) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"no adapter can be put into {type(model).__name__}: {first}", _modules_of(model)) from error
    _refuse_tied(model)
    if kind == "scalar":
        _read_out(model)[1].requires_grad_(True)


def quantise(model: Any, *, bf16: bool) -> None:
    """Hold the matrices of the linear layers, but not the output, as NF4 with scales of 8 bits, in place.

    bf16: products are in bfloat16, else in float32. Embeddings, norms and read-outs stay as they are, and so do layers
    whose inputs are no multiple of the block that shares a scale: on a CPU their rows would get the scales of others.
    UserError where bitsandbytes is not installed, or no layer is left. Source: Dettmers et al. 2023, arXiv:2305.14314,
    section 3.
    """
    if find_spec("bitsandbytes") is None:
        raise UserError("`quantization: 4bit` needs bitsandbytes", "pip install 'unified-post-training[qlora]'")
    from bitsandbytes.nn.modules import Linear4bit, Params4bit

    rounded = 0
    compute = torch.bfloat16 if bf16 else torch.float32
    ends = (model.get_output_embeddings(), *(getattr(model, name, None) for name in ("score", "classifier")))
    for name, layer in [(n, m) for n, m in model.named_modules() if type(m) is nn.Linear]:
        if any(layer is end for end in ends) or layer.in_features % BLOCK:
            continue
        small = Linear4bit(
            layer.in_features, layer.out_features, bias=layer.bias is not None, compute_dtype=compute, device="meta"
        )
        small.support_avx512bf16_for_cpu = False  # else evaluation would pack the weights anew, in bfloat16
        small.weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True)
        if layer.bias is not None:
            small.bias = layer.bias
        outer, _, last = name.rpartition(".")
        setattr(model.get_submodule(outer), last, small.to(layer.weight.device))
        rounded += 1
    if not rounded:
        raise UserError(
            f"`quantization: 4bit`: no layer of {type(model).__name__} has a multiple of {BLOCK} inputs", "drop it"
        )
    model.is_loaded_in_4bit = True  # how peft knows which layer to put beside them


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """In the block the model computes what it computed before it had an adapter."""
    layers = list(_layers(model))
    learns = [(p, p.requires_grad) for layer in layers for p in layer.parameters()]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, before in learns:
            parameter.requires_grad_(before)


def taken_off(model: Any, *, folded: bool) -> Any:
    """The same model in place without layers of peft; folded: what the adapter adds is in the weights then.

    UserError for weights in 4 bits, which would have to be rounded anew.
    """
    if getattr(model, "is_loaded_in_4bit", False):
        raise UserError("an adapter is not folded into weights of 4 bits", "write the adapter, and load it by its path")
    for name, layer in [(n, m) for n, m in model.named_modules() if _is_layer(m)]:
        if folded:
            layer.merge(safe_merge=True)
        outer, _, last = name.rpartition(".")
        setattr(model.get_submodule(outer), last, layer.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
    return model.requires_grad_(True)


def fold(model: Any, whole: Any) -> Any:
    """`whole` with what the adapter of a model adds; without it both have the same weights, but for rounding."""
    from unified.adapters import folded

    with tempfile.TemporaryDirectory() as folder:
        write_adapter(model, Path(folder), "whole")
        return folded(whole, folder)


def own_weights(model: nn.Module) -> dict[str, Tensor]:
    """All weights and buffers of a model but those of its adapter, by the names that they have with it."""
    prefixes = tuple(f"{name}.lora_" for name, module in model.named_modules() if _is_layer(module))
    return {n: t for n, t in model.state_dict().items() if not (prefixes and n.startswith(prefixes))}


def write_adapter(model: Any, folder: Path, base: str) -> None:
    """The adapter of a model as peft writes it, with the read-out of a scalar model; base: what it adapts, by name."""
    import peft

    weights = peft.get_peft_model_state_dict(model, adapter_name=_NAME, save_embedding_layers=False)
    config = model.peft_config[_NAME]
    before = config.base_model_name_or_path, config.inference_mode, config.modules_to_save
    if config.task_type == _TASKS["scalar"]:
        name, head = _read_out(model)
        config.modules_to_save = [name]
        weights |= {f"{name}.{key}": value for key, value in head.state_dict().items()}
    config.base_model_name_or_path, config.inference_mode = base, True
    for name in ("target_modules", "exclude_modules"):
        if isinstance(names := getattr(config, name), set):
            setattr(config, name, sorted(names))  # the same file for the same adapter
    try:
        config.save_pretrained(str(folder))
    finally:
        config.base_model_name_or_path, config.inference_mode, config.modules_to_save = before
    stored = {f"{_BEFORE}{name}": value.detach().cpu().contiguous() for name, value in weights.items()}
    save_file(stored, folder / OF_ADAPTER, metadata={"format": "pt"})


def _layers(model: nn.Module) -> Iterator[Any]:
    """The layers of peft in a model."""
    return (module for module in model.modules() if _is_layer(module))


def _is_layer(module: nn.Module) -> bool:
    return hasattr(module, "enable_adapters") and hasattr(module, "get_base_layer")


def _read_out(model: Any) -> tuple[str, nn.Module]:
    """The read-out of a scalar model, by name."""
    from unified.models import scalar_head

    head = scalar_head(model)
    return next(name for name, module in model.named_modules() if module is head), head


def _refuse_tied(model: Any) -> None:
    """UserError where an adapter stands on an embedding that is the output as well: folded, it would change both."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if all(end is not None for end in ends) and any(_is_layer(end) for end in ends):
        first, second = (end.get_base_layer() if _is_layer(end) else end for end in ends)
        if first.weight is second.weight:
            raise UserError(
                "`adapter` adapts the embedding, which is also the output of this model",
                "leave both out of `target_modules`; all-linear does",
            )


def _modules_of(model: nn.Module) -> str:
    """Which names `target_modules` may hold."""
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if _has_matrix(module)}
    return f"target_modules: all-linear, or some of {', '.join(sorted(names))}"


def _has_matrix(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.dim() == 2 and not isinstance(module, nn.Embedding)
