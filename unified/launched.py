"""What a launcher asks of training besides sharing: refused where it cannot be had, or said to have no part in it.

accelerate hands its configuration file to the processes in variables of the environment. Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from unified.errors import UserError

#: values by which a key asks for nothing
NOTHING = frozenset(("", "no", "none", "auto", "false", "0", "0.0"))
#: variable -> the key of accelerate's file, and what stands here in its place
NO_PART: Mapping[str, tuple[str, str]] = {
    "ACCELERATE_MIXED_PRECISION": ("mixed_precision", "`bf16` of the recipe"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (
        "gradient_accumulation_steps", "`batch_size` and `tokens_per_micro_batch` of the recipe"
    ),
    "ACCELERATE_GRADIENT_CLIPPING": ("gradient_clipping", "`max_grad_norm` of the recipe"),
    "ACCELERATE_DYNAMO_BACKEND": ("dynamo_backend", "the model's own code, which is not compiled"),
    "FSDP_ACTIVATION_CHECKPOINTING": ("fsdp_activation_checkpointing", "`gradient_checkpointing` of the recipe"),
    "FSDP_AUTO_WRAP_POLICY": ("fsdp_auto_wrap_policy", "sharing out block by block"),
    "optimizer": ("optimizer", "`optim` of the recipe"),
    "scheduler": ("scheduler", "`lr_scheduler_type` of the recipe"),
}  # fmt: skip
#: values that ask for what is done anyway
DONE_ANYWAY = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1", "FSDP_AUTO_WRAP_POLICY": "transformer_based_wrap"}
#: variable -> the key of accelerate's file: kept weights or gradients would be where nothing here looks for them
REFUSED: Mapping[str, str] = {
    "FSDP_OFFLOAD_PARAMS": "fsdp_offload_params",
    "FSDP_IGNORED_MODULES": "fsdp_ignored_modules",
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "offload_optimizer_device",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "offload_param_device",
}
ADVICE = (
    "drop the key; where memory is short, take more processes, `gradient_checkpointing: true`, or an `adapter`",
    "`unified plan RECIPE --hardware 8xH100 --launch fsdp2` says what each process holds",
)


def without_a_part(asked: Mapping[str, str] | None = None) -> list[str]:
    """Lines on what a launcher asks for and training does not look at.

    asked: variables as accelerate sets them; without, those of this process.
    """
    told = os.environ if asked is None else asked
    lines = []
    for name, (key, instead) in NO_PART.items():
        value = told.get(name, "").strip()
        if value.lower() not in NOTHING and value.lower() != DONE_ANYWAY.get(name):
            lines.append(f"the launcher's `{key}: {value}` has no part in training; in its place stands {instead}")
    return lines


def refuse_asked(asked: Mapping[str, str] | None = None) -> None:
    """UserError for what a launcher asks for and would break training. asked: as in `without_a_part`."""
    told = os.environ if asked is None else asked
    found = [key for name, key in REFUSED.items() if told.get(name, "").strip().lower() not in NOTHING]
    if found:
        keys = " and ".join(f"`{key}: {told[name]}`" for name, key in REFUSED.items() if key in found)
        raise UserError(f"the launcher asks for {keys}, which is not supported", *ADVICE)


def asked_of_deepspeed(config: Mapping[str, Any]) -> dict[str, str]:
    """What a configuration of DeepSpeed asks for, under the names of accelerate's variables.

    config: of a file of DeepSpeed's own, or as accelerate has made it.
    """
    shared = config.get("zero_optimization") or {}
    half = [kind for kind in ("fp16", "bf16") if str((config.get(kind) or {}).get("enabled", False)).lower() == "true"]
    found = {
        "ACCELERATE_MIXED_PRECISION": ", ".join(half),
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": config.get("gradient_accumulation_steps", ""),
        "ACCELERATE_GRADIENT_CLIPPING": config.get("gradient_clipping", ""),
        "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": (shared.get("offload_optimizer") or {}).get("device", ""),
        "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": (shared.get("offload_param") or {}).get("device", ""),
        **{key: (config.get(key) or {}).get("type", "") for key in ("optimizer", "scheduler")},
    }
    return {name: str(value) for name, value in found.items()}
