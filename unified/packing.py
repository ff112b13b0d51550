"""State as files without pickle: a tree of plain values as JSON, its tensors as safetensors, each file by its hash.

The safetensors files (a length, a header in JSON, the bytes) are written here and not by their library, so that they
are hashed as they are written and a full disk is an OSError; they are read by the library.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from unified.errors import PluginError

#: marks what JSON has no word for; a dict with such a key is written as pairs
MARK = "$"
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
#: (size in bytes, sha256 in hexadecimal)
Written = tuple[int, str]


class Tensors(dict[str, Tensor]):
    """Tensors by name; one that is given twice (tied weights) stands there once."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[tuple[object, ...], str] = {}

    def put(self, name: str, value: Tensor) -> str:
        """The name under which it stands. PluginError for a type that the files do not know."""
        if value.dtype not in DTYPES:
            known = ", ".join(str(dtype) for dtype in DTYPES)
            raise PluginError(f"{name} is a tensor of {value.dtype}; a checkpoint keeps those of {known}")
        place = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
        if value.numel() and place in self._known:
            return self._known[place]
        while name in self:
            name += "'"
        self[name] = value
        self._known[place] = name
        return name


def pack(value: Any, tensors: Tensors, at: str = "") -> Any:
    """A tree for JSON, whose tensors are put into `tensors` under the names of their places.

    at: how a message calls the value. PluginError for what is neither a number, text, tensor, list, tuple nor dict.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Tensor):
        return {MARK: "tensor", "name": tensors.put(at, value)}
    if isinstance(value, list):
        return value if _plain(value) else [pack(item, tensors, f"{at}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, tuple):
        return {MARK: "tuple", "items": [pack(item, tensors, f"{at}[{i}]") for i, item in enumerate(value)]}
    if isinstance(value, Mapping):
        made = [(k, pack(v, tensors, f"{at}.{k}" if at else str(k))) for k, v in value.items()]
        if all(isinstance(k, str) and k != MARK for k, _ in made):
            return dict(made)
        return {MARK: "dict", "items": [[pack(k, tensors, f"key of {at}"), v] for k, v in made]}
    raise PluginError(
        f"{at} is {type(value).__name__}; a checkpoint keeps numbers, texts, tensors, lists, tuples and dicts of them"
    )


def unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `pack` was given."""
    if isinstance(tree, list):
        return tree if _plain(tree) else [unpack(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    kind = tree.get(MARK)
    if kind == "tensor":
        return tensors[tree["name"]]
    if kind == "tuple":
        return tuple(unpack(item, tensors) for item in tree["items"])
    if kind == "dict":
        return {unpack(k, tensors): unpack(v, tensors) for k, v in tree["items"]}
    return {k: unpack(v, tensors) for k, v in tree.items()}


def write_packed(folder: Path, name: str, value: Any) -> dict[str, Written]:
    """NAME.json and NAME.safetensors (without tensors only the first) on the disk: size and hash by file."""
    tensors = Tensors()
    tree = pack(value, tensors, name)
    out = {f"{name}.json": write_bytes(folder / f"{name}.json", json.dumps(tree).encode())}
    if tensors:
        out[f"{name}.safetensors"] = write_tensors(folder / f"{name}.safetensors", tensors)
    return out


def read_packed(folder: Path, name: str, device: torch.device | str = "cpu") -> Any:
    """What `write_packed` wrote; tensors on the device, in storage of torch's own."""
    file = folder / f"{name}.safetensors"
    tensors = read_tensors(file, device) if file.is_file() else {}
    return unpack(json.loads((folder / f"{name}.json").read_text(encoding="utf-8")), tensors)


def read_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The tensors of a safetensors file, copied: as they are loaded they are unaligned, which changes bits."""
    where = "cpu" if torch.device(device).type == "cpu" else str(device)  # it knows no cpu:0
    return {name: tensor.clone() for name, tensor in load_file(path, device=where).items()}


def write_bytes(path: Path, *parts: Any) -> Written:
    """A file of these parts, bytes or what can be read as bytes, on the disk when this returns."""
    digest, length = hashlib.sha256(), 0
    with path.open("wb") as file:
        for part in parts:
            length += file.write(part)
            digest.update(part)
        file.flush()
        os.fsync(file.fileno())
    return length, digest.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> Written:
    """A safetensors file. Format: https://github.com/huggingface/safetensors, "Format"."""
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with_length = len(text).to_bytes(8, "little") + text
    return write_bytes(path, with_length, *_Bytes(tensors))


class _Bytes:
    """The bytes of one tensor after the other, on the CPU only while they are written."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __iter__(self) -> Iterator[memoryview]:
        for tensor in self._tensors.values():
            if tensor.numel():
                plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                yield plain.numpy().data


def size_of(value: Any) -> int:
    """Bytes of all tensors in a tree."""
    tensors = Tensors()
    pack(value, tensors)
    return sum(tensor.nbytes for tensor in tensors.values())


def _plain(values: list[Any]) -> bool:
    """Whether a list stands in JSON as it is: token ids, masks and numbers are looked at one by one nowhere else."""
    return {type(value) for value in values} <= {int, float, bool, str, type(None)}
