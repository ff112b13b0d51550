"""Results of frozen models on fixed rows, kept on disk: a stage that is run again with another learning rate or
coefficient reads them instead of computing them.

The name of a result is a hash of everything that it follows from (weights, rows, how they are computed), so a result is
never wrong, and it is bit for bit what would be computed. Any of these files may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

#: bytes of weights that are hashed together
PIECE = 64 * 2**20


def weights_digest(model: nn.Module, state: Mapping[str, Tensor] | None = None) -> str | None:
    """A hash of all weights and buffers with their names, or of `state`; None where they are not whole here."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted((model.state_dict() if state is None else state).items()):
        if type(tensor) is not Tensor or (tensor.numel() == 0 and "." in name):
            return None  # sharded: a part of another process
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
        for start in range(0, len(flat), PIECE):
            digest.update(flat[start : start + PIECE].cpu().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Memo:
    """Tensors in files of one folder. common: what all of them follow from."""

    folder: Path
    common: tuple[object, ...]

    def recall(self, about: Iterable[object]) -> Tensor | None:
        """What was kept under these words and numbers; None where nothing was, or its file is broken."""
        try:
            return load_file(self._path(about))["result"]
        except (OSError, SafetensorError, KeyError):
            return None

    def keep(self, about: Iterable[object], made: Tensor) -> None:
        """Keep a tensor; a file is there whole or not at all."""
        path = self._path(about)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}.draft")
        save_file({"result": made.detach().cpu().contiguous()}, draft)
        draft.replace(path)

    def _path(self, about: Iterable[object]) -> Path:
        key = hashlib.blake2b(repr((*self.common, *about)).encode(), digest_size=16).hexdigest()
        return self.folder / key[:2] / f"{key}.safetensors"
