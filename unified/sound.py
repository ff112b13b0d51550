"""What was looked at before and found to be right, in a small file: heavy libraries need not be loaded to look again.

An answer is kept only where it follows from the question, the installed versions and the code that answered, and only
if nothing was wrong: mistakes are looked at anew each time. The file may be deleted at any time. Imports no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from unified.names import cache_folder

#: packages that an answer follows from, and the modules here that give it
PACKAGES = ("transformers", "torch")
MODULES = ("configurations.py", "named_models.py", "models.py", "optim.py")
#: answers that are kept; of more, the oldest go
MOST = 500


def sound_file() -> Path:
    """Where answers are kept for these versions and this code."""
    about: list[Any] = [sys.prefix]
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            about.append((package, version(package)))
    for module in MODULES:
        seen = Path(__file__).with_name(module).stat()
        about.append((module, seen.st_size, seen.st_mtime_ns))
    digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
    return cache_folder() / f"sound-{digest}.json"


def recall(question: Any) -> Any:
    """What was answered to a question (anything that JSON can hold); None where nothing was."""
    key = _key(question)
    return None if key is None else _read().get(key)


def keep(question: Any, answer: Any) -> None:
    """Keep an answer that is not None. A folder that cannot be written is no mistake."""
    key = _key(question)
    if key is None:
        return
    with contextlib.suppress(OSError, RuntimeError):
        kept = _read()
        if kept.get(key) == answer:
            return
        file = sound_file()
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.name}.{os.getpid()}")
        part.write_text(json.dumps(dict([*kept.items(), (key, answer)][-MOST:])), encoding="utf-8")
        part.replace(file)


def _read() -> dict[str, Any]:
    try:
        read = json.loads(sound_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}


def _key(question: Any) -> str | None:
    try:
        return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:32]
    except (TypeError, ValueError):  # what JSON cannot hold is not kept
        return None
