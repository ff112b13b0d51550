"""`unified export`: a model as others load it, with a card that says how it was made. Sent only on request."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from unified import __version__
from unified.errors import UserError
from unified.found_model import FoundModel, find_model
from unified.lineage import Ancestor, lineage
from unified.manifest import Manifest
from unified.secret import masked

DTYPES = ("float32", "bfloat16", "float16")
UNKNOWN = "not stated"


def export_model(
    reference: str,
    folder: Path,
    *,
    dtype: str = "float32",
    name: str | None = None,
    license: str | None = None,
    data_license: str | None = None,
    push: str | None = None,
    trusted: bool = False,
) -> list[str]:
    """Write weights (safetensors, adapters folded), configuration, tokenizer and README.md; lines on what was done.

    All of it is written, or nothing. push: the hub repository that it is put in as well, made private.

    Raises:
        UserError: no model, a folder that is there, a dtype that is none, a hub that refuses.
    """
    if dtype not in DTYPES:
        raise UserError(f"--dtype is one of {', '.join(DTYPES)}, not '{dtype}'")
    if folder.exists():
        raise UserError(f"{folder} is there already", "give a new folder; nothing is written over")
    import torch

    from unified.disk import whole_folder
    from unified.models import save_model, stored_value_head

    found = find_model(reference)
    artifact = found.artifact(trusted=trusted)
    tokenizer = artifact.tokenizer()
    model = artifact.load(artifact.kind).to(getattr(torch, dtype))
    model.config._attn_implementation = "sdpa"  # whoever loads it has not the attention of this project
    head = stored_value_head(artifact) if artifact.kind == "policy" else None
    folder.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(folder) as draft:
        save_model(model, tokenizer, draft, head)
        card = model_card(found, name or folder.name, artifact.kind, license, data_license, type(model).__name__)
        (draft / "README.md").write_text(card, encoding="utf-8")
    said = [f"The {artifact.kind} model is in {folder}, {dtype}, with its tokenizer and a card (README.md)."]
    if license is None:
        said.append("The card states no licence: give one with --license before you pass the model on.")
    return [*said, *(_pushed(folder, push) if push else ())]


def _pushed(folder: Path, repository: str) -> Iterator[str]:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        api = HfApi()
        url = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{folder} was written, but not put on the hub: {first}", "log in with `hf auth login`"
        ) from error
    yield f"It is at {url}; a repository that was made now is private."


def model_card(found: FoundModel, name: str, kind: str, license: str | None, data_license: str | None, cls: str) -> str:
    """README.md: front matter of the hub, then what the model is, data, rewards, metrics, lineage and licences.

    Folders of this machine and secrets are not in it.
    """
    ancestors = _ancestors(found)
    stages = [a.manifest for a in ancestors if a.manifest is not None]
    starts = [a.name for a in ancestors if a.manifest is None and re.fullmatch(r"[\w.-]+/[\w.-]+", a.name)]
    task = "text-generation" if kind == "policy" else "text-classification"
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": task, "tags": ["unified"]}
    front |= {"license": license} if license else {}
    front |= {"base_model": starts[0] if len(starts) == 1 else starts} if starts else {}
    what = "causal language model" if kind == "policy" else "scalar model: one number for a text"
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {name}",
        f"A {what} ({cls}), made with unified {__version__}.",
        _section("How it was made", _made(ancestors)),
        _section("Data", _named(stages, "data")),
        _section("Rewards", _named(stages, "reward")),
        _section("Metrics", _metrics(stages)),
        _section("Licence", [f"- of the model: {license or UNKNOWN}", f"- of the data: {data_license or UNKNOWN}"]),
        _section("Use", _use(kind)),
    ]
    return masked(_without_folders("\n\n".join(parts))) + "\n"


def _section(title: str, lines: list[str]) -> str:
    return f"## {title}\n\n" + ("\n".join(lines) or f"- {UNKNOWN}")


def _ancestors(found: FoundModel) -> list[Ancestor]:
    """The model's own stage first, then all that it came from, each once; [] where nothing is written down."""
    if found.stage is None:
        return [] if isinstance(found.path, Path) else [Ancestor(found.path, about=["a model of the hub"])]
    out: list[Ancestor] = []
    left = lineage(found.stage)
    while left:
        one = left.pop(0)
        if one not in out:
            out.append(one)
            left += [below for _, below in one.inputs]
    return out


def _made(ancestors: list[Ancestor]) -> list[str]:
    """The start first, then the stages in the order in which they ran."""
    lines = []
    for one in reversed(ancestors):
        head = f"- **{one.name}**" + (f", {one.manifest.kind}" if one.manifest else "")
        below = ", ".join(reference for reference, _ in one.inputs)
        lines.append(head + (f", from {below}" if below else ""))
        lines += [f"    - {line}" for line in one.about]
    return lines


def _named(stages: list[Manifest], key: str) -> list[str]:
    """What the stages name as `key`, also inside terms; with the hashes of files for data."""
    lines = []
    for stage in reversed(stages):
        seen: dict[str, None] = {}
        for settings in [stage.settings, *(stage.settings.get("terms") or [])]:
            if settings.get(key):
                seen[_short(settings[key])] = None
        lines += [f"- {stage.name}: `{text}`" for text in seen]
        if key == "data":
            lines += [f"    - {file}: sha256 {digest}" for file, digest in stage.files.items()]
    return lines


def _short(chosen: Any) -> str:
    """A chosen part in one line, as the lineage shows it."""
    from unified.lineage import compact

    return compact(chosen)


def _metrics(stages: list[Manifest]) -> list[str]:
    """A table of what was measured on held-out rows, by stage."""
    rows = [
        (stage.name, key.removeprefix("eval/"), value)
        for stage in reversed(stages)
        for key, value in stage.summary.items()
        if key.startswith("eval/") and isinstance(value, (int, float)) and not isinstance(value, bool)
    ]
    if not rows:
        return []
    return ["| stage | metric | value |", "|---|---|---|", *(f"| {s} | {k} | {v:.6g} |" for s, k, v in rows)]


def _use(kind: str) -> list[str]:
    cls = "AutoModelForCausalLM" if kind == "policy" else "AutoModelForSequenceClassification"
    return [
        "```python",
        f"from transformers import AutoTokenizer, {cls}",
        "",
        'folder = "."  # or the name of its repository',
        f"model, tokenizer = {cls}.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)",
        "```",
    ]


def _without_folders(text: str) -> str:
    """The text with absolute paths cut to their last name."""
    return re.sub(r"(?<![\w.:/])/(?:[^\s/,`}\]]+/)+", "", text)


def fields_of(card: str) -> Mapping[str, Any]:
    """The front matter of a card."""
    return yaml.safe_load(card.split("---\n")[1]) or {}
