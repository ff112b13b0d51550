"""`unified lineage`: where a model came from, stage by stage back to the start, as the manifests tell it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unified.adapters import adapter_at, base_of
from unified.errors import UserError
from unified.made import STAGE
from unified.manifest import MANIFEST, Manifest, fingerprint_of, read_manifest, stage_folder
from unified.named_models import local_path
from unified.registry import catalogue
from unified.runner import RUN_FILE
from unified.settings import Chosen, Settings, choice_kind, nested_settings

#: settings that say what a stage learned from; the others are shown where they are not the defaults of its kind
ALWAYS = ("algorithm", "terms", "data", "source", "reward", "model", "reference", "teacher")
HASH_DIGITS = 12


@dataclass
class Ancestor:
    """Something that a model came from.

    name: of the stage, or the reference of what no stage made. manifest: of the stage; None for the start. folder: of
    the stage. about: lines on it. inputs: (how the stage referred to it, the ancestor).
    """

    name: str
    folder: Path | None = None
    manifest: Manifest | None = None
    about: list[str] = field(default_factory=list)
    inputs: list[tuple[str, Ancestor]] = field(default_factory=list)


def lineage(path: Path) -> list[Ancestor]:
    """What a run, a stage's folder or a model came from; of a run, the stages that no other stage of it used.

    UserError where no manifest belongs to the path.
    """
    seen: dict[Path, Ancestor] = {}
    if (path / RUN_FILE).is_file():
        names = _run_of(path).get("stages") or []
        folders = [f for name in names if (f := stage_folder(path, name)) and (f / MANIFEST).is_file()]
        made = [_ancestor(folder, seen) for folder in folders]
        used = {id(a) for one in seen.values() for _, a in one.inputs}
        last = [a for a in made if id(a) not in used]
        if not last:
            raise UserError(f"no stage of {path} is done yet", f"unified status {path} tells how far it is")
        return last
    for folder in (path, path.parent):
        if read_manifest(folder) is not None:
            return [_ancestor(folder, seen)]
    raise UserError(
        f"no manifest belongs to {path}", "give the folder of a run, of one of its stages, or of a model in one"
    )


def _ancestor(folder: Path, seen: dict[Path, Ancestor]) -> Ancestor:
    """A stage with everything behind it; `seen` holds those that were met already, so each is one object."""
    key = folder.resolve()
    if key in seen:
        return seen[key]
    manifest = read_manifest(folder)
    assert manifest is not None
    seen[key] = found = Ancestor(manifest.name, folder, manifest)
    run = folder.parents[manifest.name.count(".")]
    found.about = list(_lines(manifest))
    for reference, said in manifest.inputs.items():
        found.inputs.append((reference, _input(reference, said, run, seen)))
    return found


def _input(reference: str, said: Mapping[str, Any], run: Path, seen: dict[Path, Ancestor]) -> Ancestor:
    """What a manifest refers to: a stage of the same run, a model of another run, or a start."""
    if reference.startswith(STAGE):
        folder = stage_folder(run, reference.removeprefix(STAGE))
        if read_manifest(folder) is None:  # the run has lost it; the path that was written then may still hold
            written = Path(str(said["path"]))
            folder = next((f for f in (written, written.parent) if read_manifest(f) is not None), folder)
        return _followed(reference, said, folder, seen)
    about = _run_of(run)
    path = said.get("path")
    if path is None:
        model = (about.get("resolved") or {}).get("model")
        text = compact(model) if model is not None else "its configuration is not known any more"
        return Ancestor(reference, about=[f"new, random weights: {text}", f"sha256 {_digest(said['sha256'])}"])
    return _start(str(path), said["sha256"], Path(about.get("home") or "."), seen)


def _start(path: str, hashes: Mapping[str, str], home: Path, seen: dict[Path, Ancestor]) -> Ancestor:
    """A model by its path: that of another run, an adapter with the model that it adapts, or a start."""
    folder = local_path(path, home)
    if read_manifest(folder.parent) is not None:
        return _followed(path, {"sha256": hashes}, folder.parent, seen)
    start = Ancestor(path, about=[f"sha256 {_digest(hashes)}" if folder.is_dir() else "a hub id, or gone"])
    try:
        adapter = adapter_at(folder, fetch=False)
        base = base_of(adapter, folder, home) if adapter is not None else None
    except UserError as error:
        start.about.append(str(error).splitlines()[0])
        return start
    if base is None:
        start.about.append("where it came from is not written down")
        return start
    start.about.append("an adapter, folded into the model that it adapts; how it was trained is not written down")
    below = {name.removeprefix("base/"): value for name, value in hashes.items() if name.startswith("base/")}
    adapted = str(base.resolve() if isinstance(base, Path) else base)
    start.inputs.append((adapted, _start(adapted, below, home, seen)))
    return start


def _followed(reference: str, said: Mapping[str, Any], folder: Path, seen: dict[Path, Ancestor]) -> Ancestor:
    """The stage in a folder, unless it holds another result by now, or none."""
    manifest = read_manifest(folder)
    if manifest is None:
        return Ancestor(reference, about=[f"sha256 {_digest(said['sha256'])}", f"its manifest is gone: {folder}"])
    if _digest(content_of(manifest)) != _digest(said["sha256"]):
        lost = [f"sha256 {_digest(said['sha256'])}", f"{folder} holds another result by now; this one is gone"]
        return Ancestor(reference, about=lost)
    return _ancestor(folder, seen)


def content_of(manifest: Manifest) -> dict[str, str]:
    """The files that a later stage is handed, by hash: those of the model, or all where there is none."""
    under = f"{manifest.model}/" if manifest.model else ""
    return {k.removeprefix(under): v for k, v in manifest.outputs.items() if k.startswith(under)}


def _lines(manifest: Manifest) -> Iterator[str]:
    """What a manifest tells of its stage."""
    part: Any = catalogue().find("stage", manifest.kind)
    settings = _essential(part.settings if part else None, manifest.settings, keep=ALWAYS)
    for key in (*ALWAYS, *(k for k in settings if k not in ALWAYS)):
        if settings.get(key) not in (None, [], {}):
            yield f"{key}: {compact(settings[key])}"
    for name, value in manifest.files.items():
        yield f"file {name}: sha256 {value[:HASH_DIGITS]}"
    threads = f", {manifest.threads} threads" if manifest.threads else ""
    yield f"seed {manifest.seed}{threads}; {manifest.finished or 'at an unknown time'}"
    yield ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    yield f"result sha256 {_digest(content_of(manifest))}, fingerprint {manifest.fingerprint[:HASH_DIGITS]}"


def _essential(
    cls: type[Settings] | None, values: Mapping[str, Any], *, keep: Sequence[str] = ("name",)
) -> dict[str, Any]:
    """Settings without those that are the defaults of their class, as far as what is installed knows it."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if cls is None or key not in cls.model_fields:
            out[key] = value
            continue
        default = cls.model_fields[key].get_default(call_default_factory=True)
        default = default.as_dict() if isinstance(default, Chosen) else default
        default = default.model_dump(mode="json") if isinstance(default, Settings) else default
        short, plain = _shortened(cls, key, value), _shortened(cls, key, default)
        if key in keep or compact(short) != compact(plain):
            out[key] = short
    return out


def _shortened(cls: type[Settings], key: str, value: Any) -> Any:
    """The value of a field with defaults left out inside it, too."""
    if isinstance(value, list):
        return [_shortened(cls, key, item) for item in value]
    if not isinstance(value, Mapping):
        return value
    kind, _ = choice_kind(cls, key)
    part: Any = catalogue().find(kind, str(value.get("name"))) if kind else None
    return _essential(part.settings if part is not None else nested_settings(cls, key)[0], value)


def render(ancestors: list[Ancestor]) -> list[str]:
    """The ancestors as lines, what something came from below it and further in; what was shown is not shown again."""
    lines: list[str] = []
    shown: set[int] = set()
    for ancestor in ancestors:
        _render(ancestor, "", "", lines, shown)
    return lines


def _render(ancestor: Ancestor, indent: str, how: str, lines: list[str], shown: set[int]) -> None:
    manifest = ancestor.manifest
    kind = f"  {manifest.kind}, makes {manifest.model_kind or _makes(manifest)}" if manifest else ""
    where = f"  {ancestor.folder}" if ancestor.folder else ""
    again = id(ancestor) in shown
    name = "" if how == ancestor.name or how == f"{STAGE}{ancestor.name}" else ancestor.name
    head = f"from {how}{f': {name}' if name else ''}" if how else ancestor.name
    lines.append(f"{indent}{head}{'  (see above)' if again else f'{kind}{where}'}")
    if again:
        return
    shown.add(id(ancestor))
    lines += [f"{indent}    {line}" for line in ancestor.about]
    for reference, below in ancestor.inputs:
        _render(below, f"{indent}  ", reference, lines, shown)


def _makes(manifest: Manifest) -> str:
    return "dataset" if manifest.dataset else "nothing"


def compact(value: Any) -> str:
    """Settings in one line, as a recipe may write them; what is not set is left out."""
    if isinstance(value, Mapping):
        inner = {k: v for k, v in value.items() if v not in (None, [], {})}
        if set(inner) == {"name"}:
            return str(inner["name"])
        return "{" + ", ".join(f"{k}: {compact(v)}" for k, v in inner.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(compact(v) for v in value) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _digest(hashes: Mapping[str, str]) -> str:
    """One short hash of several files."""
    if len(hashes) == 1:
        return next(iter(hashes.values()))[:HASH_DIGITS]
    return fingerprint_of(files=dict(hashes))[:HASH_DIGITS]


def _run_of(run: Path) -> dict[str, Any]:
    try:
        about = json.loads((run / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}
