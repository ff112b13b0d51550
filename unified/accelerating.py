"""The accelerator of a stage, as the launcher asks for it: one process, DDP, FSDP2, or DeepSpeed ZeRO."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator, DeepSpeedPlugin, FullyShardedDataParallelPlugin, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, parse_flag_from_env
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from unified.errors import UserError
from unified.long_rows import refuse_split_rows


def process_state() -> PartialState:
    """This process among those that a launcher started. The first call joins them.

    DeepSpeed on a CPU is told its backend: without, accelerate takes each of its processes for the only one.
    """
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
    if uses_deepspeed() and os.environ.get("DS_ACCELERATOR") == "cpu" and not PartialState._shared_state:
        os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))  # asked for by its CPU operators
        return PartialState(cpu=False, backend="gloo")
    return PartialState(cpu=cpu)


def uses_deepspeed() -> bool:
    """Whether the launcher asks for DeepSpeed."""
    return parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")


def uses_fsdp() -> bool:
    """Whether the launcher asks for FSDP."""
    return parse_flag_from_env("ACCELERATE_USE_FSDP")


def make_accelerator() -> Accelerator:
    """The accelerator that the launcher's environment asks for.

    Precision is the recipe's: whatever the launcher says of it has no part here. UserError for what is not supported.
    """
    refuse_split_rows()
    state = process_state()
    AcceleratorState._reset_state()  # of the stage before, whose plugin was fitted to its models
    if state.distributed_type == DistributedType.FSDP:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_CPU
    if uses_deepspeed():
        accelerator = Accelerator(mixed_precision="no", deepspeed_plugin=_zero())
        unset_hf_deepspeed_config()  # else transformers would load models in parts, which nothing could be tried on
        return accelerator
    if not uses_fsdp():
        return Accelerator(mixed_precision="no")
    plugin = _fully_sharded()
    accelerator = Accelerator(mixed_precision="no", fsdp_plugin=plugin)
    if state.distributed_type == DistributedType.MULTI_CPU:  # accelerate shards on devices only, unless it is told
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        accelerator.state._shared_state["distributed_type"] = DistributedType.FSDP
        accelerator.state._shared_state["fsdp_plugin"] = plugin
    return accelerator


def wrap_blocks(accelerator: Accelerator, models: Iterable[Any], *, bf16: bool) -> None:
    """Shard block by block, as the models name their blocks, where the launcher names none.

    bf16: weights are gathered in bfloat16, as the matrix products read them; gradients are added up in float32.
    """
    if not accelerator.is_fsdp2:
        return
    plugin = accelerator.state.fsdp_plugin
    if bf16:
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    if plugin.transformer_cls_names_to_wrap:
        return
    named = {name for model in models for name in getattr(model, "_no_split_modules", None) or ()}
    there = {type(module).__name__ for model in models for module in model.modules()}
    plugin.transformer_cls_names_to_wrap = sorted(named & there)


def _fully_sharded() -> FullyShardedDataParallelPlugin:
    """FSDP2. Every process loads all weights, so that what is tried on a model before it is sharded finds them."""
    if os.environ.get("FSDP_VERSION", "2") != "2":
        raise UserError("FSDP of version 1 cannot hold several models in one module", "write `fsdp_version: 2`")
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    names = [n.strip() for n in os.environ.pop("FSDP_TRANSFORMER_CLS_TO_WRAP", "").split(",") if n.strip()]
    return FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False,
        transformer_cls_names_to_wrap=names or None,
    )  # fmt: skip


def _zero() -> DeepSpeedPlugin:
    """ZeRO of the stage that the launcher asks for; the step, its clipping and its precision are the engine's own.

    No parameter is kept whole beside its parts: what changes one, changes it in one place.
    """
    plugin = DeepSpeedPlugin(zero3_init_flag=False)
    config = plugin.deepspeed_config
    config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"] = 1, 1
    config["gradient_clipping"] = 0.0
    config.setdefault("zero_optimization", {})["stage3_param_persistence_threshold"] = 0
    for key in ("train_batch_size", "fp16", "bf16", "optimizer", "scheduler"):
        config.pop(key, None)
    config["zero_allow_untested_optimizer"] = True
    return plugin


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether weights will be shared out among the processes."""
    return bool(accelerator.is_fsdp2) or accelerator.distributed_type == DistributedType.DEEPSPEED


def prepare(accelerator: Accelerator, roles: Any, optimizer: Any) -> tuple[Any, Any]:
    """The module in its wrapper, and its optimiser.

    DeepSpeed makes the optimiser's states by a step on gradients of 0, which counts as one and decays weights: it is
    undone.
    """
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return accelerator.prepare(roles, optimizer)
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    model, prepared = accelerator.prepare(roles, optimizer)
    unset_hf_deepspeed_config()
    inner = model.optimizer.optimizer
    for group, rate in zip(inner.param_groups, rates, strict=True):
        group["lr"] = rate
    for state in inner.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                value.zero_()
    return model, prepared
