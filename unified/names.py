"""The names of the installed parts in a small file, so that a shell can complete them without loading any plugin.

The file is written when the installed plugins are loaded, and counts only for the same set of packages. Imports no
torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unified.registry import Catalogue

GROUP = "unified"


def cache_folder() -> Path:
    """Where this project keeps what can be made again: under $XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "unified"


def index_file() -> Path:
    """Where the names of this set of packages are kept."""
    entries = entry_points(group=GROUP)
    known = sorted((e.name, e.value, e.dist.name if e.dist else "", e.dist.version if e.dist else "") for e in entries)
    digest = hashlib.sha256(json.dumps([sys.prefix, known]).encode()).hexdigest()[:16]
    return cache_folder() / f"names-{digest}.json"


def remember(catalogue: Catalogue) -> None:
    """Write the names down where they differ from what is written. A folder that cannot be written is no mistake."""
    names = {kind: catalogue.names(kind) for kind in catalogue.kinds()}
    with contextlib.suppress(OSError, RuntimeError):
        file = index_file()
        if known() != names:
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_name(f".{file.name}.{os.getpid()}")
            part.write_text(json.dumps(names), encoding="utf-8")
            part.replace(file)


def known() -> dict[str, list[str]]:
    """Kind -> names, as they were when plugins were last loaded; {} before that."""
    try:
        read = json.loads(index_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):
        return {}
    if not isinstance(read, dict) or not all(isinstance(names, list) for names in read.values()):
        return {}
    return {kind: [name for name in names if isinstance(name, str)] for kind, names in read.items()}


def completes(*kinds: str) -> Callable[[str], list[str]]:
    """What completes an argument that names a part of one of these kinds; of any kind without."""

    def candidates(incomplete: str) -> list[str]:
        names = {name for kind, each in known().items() if not kinds or kind in kinds for name in each}
        return sorted(name for name in names if name.startswith(incomplete))

    return candidates


def completes_kinds(incomplete: str) -> list[str]:
    """What completes an argument that names a kind of part."""
    return sorted(kind for kind in known() if kind.startswith(incomplete))
