"""Tensors in parts: every process writes what it holds, and any number of processes reads what it needs.

tensors-R.safetensors holds the parts of process R in flat form, tensors-R.json where in the whole each begins.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from unified.packing import Written, write_bytes, write_tensors
from unified.wrapping import Piece

NAME = "tensors"


def write_pieces(folder: Path, rank: int, pieces: Mapping[str, Piece]) -> dict[str, Written]:
    """The files of a process, with size and hash; none where it holds nothing."""
    if not pieces:
        return {}
    names = f"{NAME}-{rank}.safetensors", f"{NAME}-{rank}.json"
    values = write_tensors(folder / names[0], {name: piece.values for name, piece in pieces.items()})
    starts = json.dumps({name: piece.start for name, piece in pieces.items()}).encode()
    return {names[0]: values, names[1]: write_bytes(folder / names[1], starts)}


class Stored:
    """The tensors in the files of all processes that wrote, to be read while it is open."""

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        self.device = device
        self._files = ExitStack()
        self._parts: dict[str, list[tuple[int, int, Any]]] = {}
        for path in sorted(folder.glob(f"{NAME}-*.json")):
            file = self._files.enter_context(safe_open(path.with_suffix(".safetensors"), framework="pt"))
            for name, start in json.loads(path.read_text(encoding="utf-8")).items():
                length = file.get_slice(name).get_shape()[0]
                self._parts.setdefault(name, []).append((start, start + length, file))
        for parts in self._parts.values():
            parts.sort(key=lambda part: part[:2])

    def __enter__(self) -> Stored:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._files.close()

    @property
    def names(self) -> set[str]:
        """Of all tensors that are there."""
        return set(self._parts)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """The numbers [start, stop) of a tensor in its flat form. ValueError where some were not stored."""
        found, at = [], start
        for begin, end, file in self._parts.get(name, ()):
            if begin <= at < min(end, stop):
                found.append(file.get_slice(name)[at - begin : min(end, stop) - begin])
                at = min(end, stop)
        if at < stop:
            raise ValueError(f"{name}: {stop - at} of {stop - start} numbers are not there")
        return torch.cat(found).to(self.device) if found else torch.empty(0, device=self.device)
