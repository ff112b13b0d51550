"""What may be read of a model that comes from elsewhere: weights in safetensors, and no Python. Imports no torch.

Weights in any other form are pickles: reading one can run any program.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unified.errors import UserError

#: patterns of weights that are not safetensors, or a configuration of these
PICKLED = ("pytorch_model*.bin", "adapter_model*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt", "*.h5", "*.msgpack")
WHOLE, PARTS = "model.safetensors", "model.safetensors.index.json"
OF_ADAPTER = "adapter_model.safetensors"


def pickled_in(folder: Path) -> list[str]:
    """Names of the pickled weights in a folder that has no others; nothing for one with safetensors."""
    if any(folder.glob("*.safetensors")) or (folder / PARTS).exists():
        return []
    return sorted({file.name for pattern in PICKLED for file in folder.glob(pattern)})


def pickle_message(where: Path | str, names: list[str]) -> tuple[str, str]:
    """What is wrong with a model whose weights are pickled, and what to do."""
    what = f"the weights of {where} are not safetensors ({', '.join(names[:3])}); others can run a program when read"
    convert = "AutoModelForCausalLM.from_pretrained(OLD, use_safetensors=False).save_pretrained(NEW)"
    if any(name.startswith("adapter") for name in names):
        convert = "AutoPeftModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW)"
    return what, f"if you trust their origin, convert them once with {convert}, and copy the tokenizer's files"


def refuse_pickled(path: Path | str, named: Any = None) -> None:
    """UserError where the weights at a folder or hub id, or some part of them, are not safetensors.

    named: the file of weights that the configuration itself names, if any. OSError where the hub cannot be asked.
    """
    from transformers.utils.hub import cached_file

    def found(name: str) -> str | None:
        at: str | None = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
        return at

    whole, parts_file = (named, "") if named else (WHOLE, PARTS)
    if named and str(named).endswith(".safetensors.index.json"):
        whole, parts_file = "", named
    elif named and not str(named).endswith(".safetensors"):
        raise UserError(f"config.json of {path} names weights that are not safetensors: {named}")
    if whole and found(whole):
        return
    index = found(parts_file) if parts_file else None
    if index is not None:
        try:
            parts = {str(name) for name in json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{PARTS} of {path} cannot be read: {error}") from error
        wrong = sorted(name for name in parts if not name.endswith(".safetensors") or Path(name).name != name)
        if wrong:
            raise UserError(f"{PARTS} of {path} names {wrong[0]!r}, which is no safetensors file beside it")
        return
    names = pickled_in(Path(path)) if Path(path).is_dir() else _pickled_on_hub(found)
    if names:
        raise UserError(*pickle_message(path, names))
    raise UserError(
        f"no model can be loaded from {path}: it holds no weights",
        f"a model folder holds config.json, {WHOLE} and a tokenizer",
    )


def _pickled_on_hub(found: Any) -> list[str]:
    return [n for n in ("pytorch_model.bin.index.json", "pytorch_model.bin") if found(n)][:1]


def refuse_pickled_adapter(path: Path | str) -> None:
    """UserError where the weights of an adapter are not safetensors. OSError where the hub cannot be asked."""
    from transformers.utils.hub import cached_file

    if cached_file(path, OF_ADAPTER, _raise_exceptions_for_missing_entries=False) is not None:
        return
    other = "adapter_model.bin"
    if cached_file(path, other, _raise_exceptions_for_missing_entries=False) is not None:
        raise UserError(*pickle_message(path, [other]))
    raise UserError(f"the adapter {path} has no weights", f"they lie in {OF_ADAPTER}")


def architectures_of(folder: Path) -> list[str]:
    """The names of architectures in a folder's config.json. UserError for a file that is no configuration."""
    file = folder / "config.json"
    try:
        names = json.loads(file.read_text(encoding="utf-8")).get("architectures") or []
        if not isinstance(names, list):
            raise TypeError(f"`architectures` is {names!r}, not a list")
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    return [str(name) for name in names]


def code_hint(error: BaseException) -> tuple[str, ...]:
    """What to do where transformers asks to run the Python of a model; nothing for other errors."""
    if "trust_remote_code" not in str(error) and "custom code" not in str(error):
        return ()
    return (
        "its own Python would have to run, which it does only if the recipe says so for its model:",
        "`model: {path: ..., trust_remote_code: true}`, after you have read it",
    )
