"""A census of all that can be reached from a run: where it stands, and a digest of what it is.

Attributes, items and slots are walked without knowing any class, so that what somebody adds is found by itself.
"""

from __future__ import annotations

import functools
import hashlib
import random
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from unified.running import Run

PLAIN = (bool, int, float, complex, str, bytes, type(None), Path, torch.dtype, torch.device, torch.Size)
#: what never changes, or is not the run's
STRANGE = (type, types.ModuleType, types.BuiltinFunctionType, types.CodeType, property)


def census(run: Run) -> dict[str, str]:
    """Place -> digest of every value that has no parts. An object that several places hold is counted at the first."""
    seen: dict[int, Any] = {id(run): run}
    last = ("stage", "accelerator", "processes")  # they hold much that is called by better names elsewhere
    names = sorted(vars(run), key=lambda name: (name in last, list(vars(run)).index(name)))
    return {place: digest for name in names for place, digest in _walk(getattr(run, name), f"run.{name}", seen)}


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Places whose value is another, or that only one of both has."""
    return sorted(place for place in before.keys() | after.keys() if before.get(place) != after.get(place))


def _walk(value: Any, at: str, seen: dict[int, Any]) -> Iterator[tuple[str, str]]:
    if isinstance(value, PLAIN):
        yield at, f"{type(value).__name__} {value!r}"
        return
    if isinstance(value, STRANGE) or id(value) in seen:
        return
    if not isinstance(value, (list, tuple, dict, torch.Tensor)):  # two places may share these, or have equal ones
        seen[id(value)] = value  # kept, so that no other object gets its number
    known = _digest(value)
    if known is not None:
        yield at, known
    for name, part in _parts(value):
        yield from _walk(part, f"{at}{name}", seen)


def _digest(value: Any) -> str | None:
    """Of what has its state inside: tensors, generators, tokenizers."""
    if isinstance(value, torch.Tensor):
        data = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
        return f"{value.dtype} {list(value.shape)} {hashlib.sha256(data).hexdigest()}"
    if isinstance(value, torch.Generator):
        return hashlib.sha256(value.get_state().numpy().tobytes()).hexdigest()
    if isinstance(value, random.Random):
        return hashlib.sha256(repr(value.getstate()).encode()).hexdigest()
    if isinstance(value, Tokenizer):
        return hashlib.sha256(value.to_str().encode()).hexdigest()
    if isinstance(value, (list, tuple, set, frozenset, Mapping)):
        return f"{len(value)} items"
    return None


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for number, (key, item) in enumerate(value.items()):
            plain = isinstance(key, (str, int, float, tuple))
            yield f"[{key!r}]" if plain else f"[{number}]", item
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield f"[{number}]", item
    elif isinstance(value, (set, frozenset)):
        for number, item in enumerate(sorted(value, key=repr)):
            yield f"[{number}]", item
    elif isinstance(value, functools.partial):
        yield ".partial", (value.args, value.keywords, value.func)
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
    elif isinstance(value, types.FunctionType):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=False)
        for name, cell in cells:
            try:
                yield f"<{name}>", cell.cell_contents
            except ValueError:  # not filled yet
                continue
    if not isinstance(value, types.FunctionType) and hasattr(value, "__dict__"):
        for name, item in vars(value).items():
            yield f".{name}", item
    for cls in type(value).__mro__:
        for name in (cls.__dict__.get("__slots__") or ()) if not isinstance(value, torch.Tensor) else ():
            if isinstance(name, str) and hasattr(value, name):
                yield f".{name}", getattr(value, name)
