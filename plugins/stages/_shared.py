"""What the stages that sample have in common: their source, its check, and rows as files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from unified import Chosen, Example, PromptGroup, TokenRow, catalogue
from unified_plugins.formats.groups import row_of

SOURCE = "rollouts"


def name_source(data: dict[str, Any]) -> dict[str, Any]:
    """A `source` without a name is the one that samples."""
    source = data.get("source")
    return {**data, "source": {"name": SOURCE, **source}} if isinstance(source, Mapping) else data


def source_of(written: Chosen | None, **settings: Any) -> Chosen:
    """The source that was chosen, or sampling with these settings."""
    if written is not None:
        return written
    part = catalogue().get("source", SOURCE)
    return Chosen(part, part.settings(**settings))


def reserve_of(source: Chosen) -> int:
    """TokenRow to keep free for an answer of this source."""
    return int(getattr(source.settings, "max_tokens", 0)) if source.part.online else 0


def as_example(group: PromptGroup, rows: Sequence[Example], vocabulary: str) -> Example:
    """A group as a row again: the prompt as its row has it, the answers with their rewards, text and tokens.

    vocabulary: hash of the tokenizer's, so that nobody reads the tokens as others.
    """
    rewards = [a.total_reward for a in group.answers]
    judged = None if any(r is None for r in rewards) else [float(r) for r in rewards if r is not None]
    row = rows[group.key]
    example = Example(row.prompt, [a.text for a in group.answers], judged, dict(row.columns))
    return replace(example, tokens=TokenRow(vocabulary, example.digest(), list(group.prompt), list(group.answers)))


def write_rows(path: Path, examples: Iterable[Example]) -> None:
    """One JSON object a line, written whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with part.open("w", encoding="utf-8") as file:
        for example in examples:
            file.write(json.dumps(row_of(example), ensure_ascii=False, default=str) + "\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
