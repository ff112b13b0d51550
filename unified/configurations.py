"""What the configuration of a model says of it: whether it is one, its context, its shape. No weights are looked at.

Only transformers knows what it makes of a configuration, and is slow to load: what is sound is remembered
(`unified.sound`). Imports no torch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from unified.adapters import CONFIG
from unified.errors import Problem, UserError, did_you_mean
from unified.registry import call_named, catalogue
from unified.sound import keep, recall
from unified.stage import ModelSettings

#: the module whose table holds every configuration class
_TABLE = "transformers.models.auto.configuration_auto"
_SHAPE = (
    "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "tie_word_embeddings",
)  # fmt: skip


def configuration_problems(config: dict[str, Any]) -> list[Problem]:
    """A new model's configuration: transformers itself would keep a misspelt key and never use it."""
    name = config.pop("model_type", None)
    if not isinstance(name, str):
        hint = "for example {model_type: llama, hidden_size: 64, num_hidden_layers: 2, ...}"
        return [Problem("a new model needs `model_type`", ("new",), (hint,))]
    question = ["keys", name, sorted(map(str, config))]
    if _asks_the_file() and recall(question):
        return []
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # slow to import

    known = list(CONFIG_MAPPING.keys())
    if name not in known:
        near = did_you_mean(name, known)
        hints = (f"did you mean '{near}'?",) if near else ("the model types are those of transformers",)
        return [Problem(f"transformers knows no model_type '{name}'", ("new", "model_type"), hints)]
    plain = CONFIG_MAPPING[name]()
    fields = [key for key in plain.to_dict() if not key.startswith("_")]
    problems = []
    for key in config:
        if not hasattr(plain, key):
            near = did_you_mean(key, fields)
            hints = (f"did you mean '{near}'?",) if near else (f"known: {', '.join(sorted(fields))}",)
            problems.append(Problem(f"no key '{key}' in the configuration of a {name}", ("new", key), hints))
    if not problems and _is_theirs(plain):
        keep(question, True)
    return problems


def context_at(settings: ModelSettings, home: Path) -> int:
    """Tokens that a model can hold, 1,000,000 where its configuration does not say. UserError where there is none."""
    return int(_facts(settings, home)["context"])


def shape_at(settings: ModelSettings, home: Path) -> dict[str, Any]:
    """`shape_of` the configuration of a model. UserError where it has none."""
    return dict(_facts(settings, home)["shape"])


def shape_of(config: Any) -> dict[str, Any]:
    """What of a configuration decides which weights there are; the same names for every architecture."""
    text = config.get_text_config()
    return {name: getattr(text, name, None) for name in _SHAPE}


def first_difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    """The first name in which two shapes differ; None where they do not."""
    return next((name for name in _SHAPE if ours.get(name) != theirs.get(name)), None)


def made_tokenizer(settings: ModelSettings) -> Any:
    """The tokenizer that a dataset makes for a new model. UserError where none is named, or it makes none."""
    if settings.tokenizer is None:
        raise UserError("a new model needs a tokenizer", "write `tokenizer: NAME`, a dataset that makes one")
    make = settings.tokenizer.part.tokenizer
    if make is None:
        able = [n for n in catalogue().names("dataset") if getattr(catalogue().find("dataset", n), "tokenizer", None)]
        raise UserError(f"dataset '{settings.tokenizer.name}' makes no tokenizer", f"these do: {', '.join(able)}")
    return call_named(make, settings=settings.tokenizer.settings)


def _facts(settings: ModelSettings, home: Path) -> dict[str, Any]:
    question = _question(settings, home)
    found = recall(question) if question is not None and _asks_the_file() else None
    if isinstance(found, dict) and found.keys() == {"context", "shape"}:
        return found
    from unified.models import base_config, context_length

    config = base_config(settings, home)
    facts: dict[str, Any] = {"context": context_length(config), "shape": shape_of(config)}
    facts = json.loads(json.dumps(facts, default=str))  # the same whether they were kept or not
    if question is not None and _is_theirs(config):
        keep(question, facts)
    return facts


def _question(settings: ModelSettings, home: Path) -> Any:
    """What the facts follow from: what is written, or stands in config.json. None for adapters and what is not here."""
    if settings.path is None:
        return ["new", settings.new]
    folder = Path(settings.path).expanduser()
    folder = folder if folder.is_absolute() else home / folder
    if (folder / CONFIG).exists() or settings.trust_remote_code:
        return None
    try:
        return ["folder", json.loads((folder / "config.json").read_text(encoding="utf-8"))]
    except (OSError, ValueError, RecursionError):
        return None


def _asks_the_file() -> bool:
    """Where the table is loaded in any case, and may hold what a plugin has added, it is asked itself."""
    return _TABLE not in sys.modules


def _is_theirs(config: Any) -> bool:
    """Whether the class comes with transformers, and not from a plugin that may be gone the next time."""
    return type(config).__module__.partition(".")[0] == "transformers"
