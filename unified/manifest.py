"""What a finished stage leaves in writing: `manifest.json`. It is written last and whole, so it marks completion."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from unified import __version__
from unified.machine import machine
from unified.secret import masked
from unified.settings import Chosen, Settings

MANIFEST = "manifest.json"
#: written when a stage begins: what it will be, so that an unfinished folder is known to belong to the same stage
FINGERPRINT = "fingerprint"
#: files of a stage that tell about it and are not its result
LOGS = ("metrics.jsonl", "samples.jsonl", "lens.jsonl", "warnings.jsonl", "coefficients.jsonl", "error.log")
#: folders of results that every stage may write
RESULTS = ("model", "critic", "data")
_CHECKPOINTS = ("checkpoint",)


@dataclass
class Manifest:
    """Everything that made a stage's result, and the result by hash.

    settings: all of them, defaults written out. inputs: reference -> {"path", "sha256": {file: hash}}.
    files: data files named by the settings, by hash. outputs: files under the stage's folder, by hash.
    model: the folder of the model under the stage's, None for a stage that makes none. dataset: how a dataset that the
    stage made is read, with paths under the stage's folder.
    hardware: what it ran on (`machine`). started, finished: UTC, ISO 8601; seconds: between them.
    """

    name: str
    kind: str
    settings: dict[str, Any]
    fingerprint: str
    seed: int
    threads: int | None = None
    inputs: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    model: str | None = None
    model_kind: str | None = None
    dataset: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, str] = field(default_factory=dict)
    started: str = ""
    finished: str = ""
    seconds: float = 0.0
    summary: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write manifest.json into the stage's folder, all or nothing, and without secrets."""
        self.hardware = self.hardware or machine()
        write_whole(folder / MANIFEST, masked(json.dumps(asdict(self), indent=2, default=str)) + "\n")


def stage_folder(output: Path, name: str) -> Path:
    """Where a stage of a run goes: OUTPUT/NAME, that of a round OUTPUT/BLOCK/NUMBER/NAME."""
    return output.joinpath(*name.split("."))


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a finished stage; None for an unfinished one, or one that cannot be read."""
    try:
        return Manifest(**json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there completely or not at all, also when the machine stops."""
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)  # what an earlier run left, or a link that leads elsewhere
    with part.open("x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sha256(path: Path) -> str:
    """The hash of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashes_under(folder: Path) -> dict[str, str]:
    """Hash of every file under a folder, by its path there."""
    return {str(p.relative_to(folder)): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def outputs_of(folder: Path) -> dict[str, str]:
    """Hash of every file that is a stage's result: not its logs, its checkpoints to resume from, or hidden files."""
    out = {}
    for entry in sorted(folder.iterdir()):
        if entry.name in (MANIFEST, FINGERPRINT, *LOGS) or entry.name.startswith((".", *_CHECKPOINTS)):
            continue
        if entry.is_dir():
            out.update({f"{entry.name}/{name}": value for name, value in hashes_under(entry).items()})
        else:
            out[entry.name] = sha256(entry)
    return out


def links_out(folder: Path) -> list[Path]:
    """Symbolic links under a folder that lead out of it: what is written there would land elsewhere."""
    inside = folder.resolve()
    return sorted(p for p in folder.rglob("*") if p.is_symlink() and not p.resolve().is_relative_to(inside))


def is_ours(name: str) -> bool:
    """Whether an entry of a stage's folder is one that every stage may write, so that it may be cleared away."""
    fixed = (MANIFEST, FINGERPRINT, *LOGS, *RESULTS)
    return name in fixed or name.startswith(_CHECKPOINTS) or name.endswith(".part")


def has_checkpoint(folder: Path) -> bool:
    """Whether a stage's folder holds something to go on from: more than a draft, or the best weights alone."""
    found = [[e.name for e in path.iterdir()] for path in folder.glob("checkpoint*") if path.is_dir()]
    return any(not names or not all(n.startswith(("best-", "draft")) for n in names) for names in found)


def drop_results(folder: Path) -> None:
    """Take away what a stage that is not done had begun to write, and its error; metrics and checkpoints stay."""
    for entry in list(folder.iterdir()):
        if entry.name in RESULTS and entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name.endswith(".part") or entry.name == "error.log":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def fingerprint_of(**parts: Any) -> str:
    """One hash of everything that decides what a stage's result is, the version of unified among it."""
    text = json.dumps({"unified": __version__, **parts}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def files_named(settings: Settings, home: Path) -> dict[str, str]:
    """Hash of every existing file that a part's settings name (for datasets folders and patterns, too), by that name.

    Data is an input like any other: when a file changes, what was made from it is made again. A text is taken for a
    path when it has a slash or a dot: `view: walks` is no folder of that name.
    """
    found: dict[str, str] = {}
    for chosen in chosen_parts(settings):
        for text in _texts(chosen.settings.model_dump(mode="json")):
            if "/" not in text and "." not in text:
                continue
            path = Path(text).expanduser()
            path = path if path.is_absolute() else home / path
            try:
                if path.is_file():
                    found[text] = sha256(path)
                elif path.is_dir() and chosen.part.kind == "dataset":
                    found.update({f"{text}/{name}": value for name, value in hashes_under(path).items()})
                elif chosen.part.kind == "dataset" and glob.has_magic(text):
                    found.update(
                        {os.path.relpath(p, home): sha256(Path(p)) for p in glob.glob(str(path)) if Path(p).is_file()}
                    )
            except (OSError, ValueError):  # too long for a path, or with a zero byte: a text and no file
                continue
    return found


def chosen_parts(value: Any) -> Iterator[Chosen]:
    """Every part that settings choose, at any depth."""
    if isinstance(value, Chosen):
        yield value
        yield from chosen_parts(value.settings)
    elif isinstance(value, Settings):
        for key in type(value).model_fields:
            yield from chosen_parts(getattr(value, key))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from chosen_parts(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from chosen_parts(item)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str) and value:
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)


def versions() -> dict[str, str]:
    """Versions of Python, the libraries that compute, unified, and every distribution with a plugin."""
    out = {"python": platform.python_version(), "unified": __version__}
    names = {"torch", "transformers", "accelerate"}
    names |= {entry.dist.name for entry in metadata.entry_points(group="unified") if entry.dist}
    for name in sorted(names):
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return out
