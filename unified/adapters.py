"""Adapters in the format of peft: a folder or hub id with adapter_config.json, folded into the model that it names.

Folding a LoRA of rank r adds (alpha / r) · B A to each weight that it adapts. Source: Hu et al. 2021, arXiv:2106.09685,
section 4.1. Imports neither torch nor peft before an adapter is folded.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from unified.errors import UserError
from unified.hub import refuse_unreachable
from unified.weights import refuse_pickled_adapter

CONFIG = "adapter_config.json"
_WHOLE = ("model*.safetensors", "pytorch_model*.bin")


def adapter_at(path: Path | str, *, fetch: bool = True) -> dict[str, Any] | None:
    """The configuration of the adapter in a folder or at a hub id; None for what is no adapter.

    fetch: whether a hub id is asked for it. UserError for a configuration that names no base model, or cannot be read,
    and for a folder that holds a whole model as well.
    """
    folder = Path(path)
    if folder.is_dir():
        file: Path | None = folder / CONFIG
        if file is None or not file.is_file():
            return None
        if any(next(folder.glob(pattern), None) for pattern in _WHOLE):
            raise UserError(f"{path} holds an adapter and a whole model", "keep one of them there")
    elif not fetch or folder.exists() or isinstance(path, Path) or path.startswith((".", "/", "~")):
        return None
    else:
        from transformers.utils.peft_utils import find_adapter_config_file

        refuse_unreachable(str(path))
        found = find_adapter_config_file(str(path))
        file = Path(found) if found else None
    if file is None:
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{CONFIG} of {path} cannot be read: {error}") from error
    if not isinstance(config, dict) or not config.get("base_model_name_or_path"):
        raise UserError(f"the adapter {path} does not say which model it adapts", f"{CONFIG}: base_model_name_or_path")
    return config


def base_of(config: Mapping[str, Any], path: Path | str, home: Path | None) -> Path | str:
    """The model that an adapter adapts: a folder beside the adapter, or beside the recipe, or else a hub id."""
    name = str(config["base_model_name_or_path"])
    written = Path(name).expanduser()
    for start in (Path(path), home):
        if start is not None and (start / written).is_dir():
            return start / written
    if name.startswith((".", "/", "~")):
        raise UserError(f"there is no folder {name}, which the adapter {path} adapts")
    return name


def is_scalar(config: Mapping[str, Any]) -> bool:
    """Whether the adapter says itself that it is that of a sequence classifier."""
    return config.get("task_type") == "SEQ_CLS"


def refuse_without_peft(path: Path | str) -> None:
    """UserError that says what to install where an adapter cannot be folded."""
    if find_spec("peft") is None:
        raise UserError(f"to fold the adapter {path}, peft is needed", "pip install 'unified-post-training[peft]'")


def folded(model: Any, path: Path | str) -> Any:
    """The model with the adapter added to its weights, which are those of a whole model then.

    UserError where peft is not installed, the adapter does not fit the model, lacks weights, or is of a kind that
    cannot be added to weights (prompt tuning).
    """
    refuse_without_peft(path)
    import peft

    try:
        refuse_pickled_adapter(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)  # what peft asks of transformers
            warnings.filterwarnings("error", message=".*Found missing adapter keys")
            adapted = peft.PeftModel.from_pretrained(model, str(path), is_trainable=False)
            weights = peft.load_peft_weights(str(path), device="cpu")
            result: Any = peft.set_peft_model_state_dict(adapted, weights)
        unknown = result.unexpected_keys
        if unknown:
            raise ValueError(
                f"it has {len(unknown)} weights that the model has no place for, {min(unknown)} among them"
            )
        fold = getattr(adapted, "merge_and_unload", None)
        whole = fold(safe_merge=True) if fold is not None else None
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, UserWarning) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"the adapter {path} cannot be folded into {type(model).__name__}: {first}") from error
    if whole is None:
        raise UserError(f"the adapter {path} cannot be folded: {adapted.active_peft_config.peft_type} adds no weights")
    return whole.requires_grad_(True)
