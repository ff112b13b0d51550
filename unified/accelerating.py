"""The accelerator of a stage, as the launcher asks for it: one process, DDP, FSDP2, or DeepSpeed ZeRO."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from typing import Any

import torch
from accelerate import Accelerator, DeepSpeedPlugin, FullyShardedDataParallelPlugin, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, GradientAccumulationPlugin, parse_flag_from_env
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from unified.errors import UserError
from unified.launched import asked_of_deepspeed, refuse_asked, without_a_part
from unified.long_rows import refuse_split_rows
from unified.optim import optimiser_class
from unified.stage import TrainSettings

#: optimisers that move every number by itself: they work on parts of a tensor
ELEMENTWISE = frozenset(("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"))
#: lines on the launcher that this process has heard already, at an earlier stage
_said: set[str] = set()


def process_state() -> PartialState:
    """This process among those that a launcher started. The first call joins them.

    DeepSpeed on a CPU is told its backend: without, accelerate takes each of its processes for the only one.
    """
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
    if uses_deepspeed() and os.environ.get("DS_ACCELERATOR") == "cpu" and not PartialState._shared_state:
        os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))  # asked for by its CPU operators
        quieten_deepspeed()
        with redirect_stdout(io.StringIO()):  # it prints what it has compiled
            return PartialState(cpu=False, backend="gloo")
    return PartialState(cpu=cpu)


def uses_deepspeed() -> bool:
    """Whether the launcher asks for DeepSpeed."""
    return parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")


def uses_fsdp() -> bool:
    """Whether the launcher asks for FSDP."""
    return parse_flag_from_env("ACCELERATE_USE_FSDP")


def quieten_deepspeed() -> None:
    """Its warnings are of its own calls of torch, and of optimisers that it has not tried; errors are still shown."""
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    import deepspeed  # noqa: F401  (which sets the level of its logger)

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)


def make_accelerator(say: Callable[[str], None] = lambda _: None) -> Accelerator:
    """The accelerator that the launcher's environment asks for.

    say: is told, once in a process, what the launcher asks for that has no part here: precision is the recipe's, and so
    is what makes a step. UserError for what is not supported.
    """
    refuse_split_rows()
    refuse_asked()
    _tell(without_a_part(), say)
    state = process_state()
    plain: dict[str, Any] = {  # whatever the environment says
        "mixed_precision": "no", "dynamo_backend": "no",
        "gradient_accumulation_plugin": GradientAccumulationPlugin(num_steps=1),
    }  # fmt: skip
    AcceleratorState._reset_state()  # of the stage before, whose plugin was fitted to its models
    if state.distributed_type == DistributedType.FSDP:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_CPU
    if uses_deepspeed():
        quieten_deepspeed()
        plugin = _zero(say)
        accelerator = Accelerator(deepspeed_plugin=plugin, **plain)
        unset_hf_deepspeed_config()  # else transformers would load models in parts, which nothing could be tried on
        return accelerator
    if not uses_fsdp():
        return Accelerator(**plain)
    shards = _fully_sharded()
    accelerator = Accelerator(fsdp_plugin=shards, **plain)
    if state.distributed_type == DistributedType.MULTI_CPU:  # accelerate shards on devices only, unless it is told
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        accelerator.state._shared_state["distributed_type"] = DistributedType.FSDP
        accelerator.state._shared_state["fsdp_plugin"] = shards
    return accelerator


def _tell(lines: Iterable[str], say: Callable[[str], None]) -> None:
    for line in lines:
        if line not in _said:
            _said.add(line)
            say(line)


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
        transformer_cls_names_to_wrap=names or None, activation_checkpointing=False,
    )  # fmt: skip


def _zero(say: Callable[[str], None]) -> DeepSpeedPlugin:
    """ZeRO of the stage that the launcher asks for; the step, its clipping and its precision are the engine's own.

    No parameter is kept whole beside its parts: what changes one, changes it in one place.
    """
    try:
        plugin = DeepSpeedPlugin(zero3_init_flag=False)
    except (ValueError, OSError) as error:
        raise UserError(f"DeepSpeed cannot be set up as the launcher asks: {' '.join(str(error).split())}") from error
    if plugin.zero_stage not in (1, 2, 3):
        raise UserError(f"DeepSpeed with `zero_stage: {plugin.zero_stage}` shares nothing out", "take `--launch gpus`")
    config = plugin.deepspeed_config
    asked = asked_of_deepspeed(config)
    refuse_asked(asked)
    _tell(without_a_part(asked), say)
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


def refuse_sharded(accelerator: Accelerator, settings: TrainSettings) -> None:
    """UserError for settings of a stage that need whole matrices, where the processes share them out."""
    if not is_sharded(accelerator):
        return
    cls = optimiser_class(settings.optim)
    if cls.__name__ not in ELEMENTWISE:
        raise UserError(
            f"{cls.__name__} looks at whole matrices, but their parts lie in several processes",
            f"use one of {', '.join(sorted(ELEMENTWISE))}, or launch without sharding (`--launch gpus`)",
        )
    if settings.quantised:
        raise UserError(
            "weights of 4 bits are not shared out among processes: each needs the scales of its whole blocks",
            "drop `quantization` (an `adapter` shares out the weights beside it), or take `--launch gpus`",
        )


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
