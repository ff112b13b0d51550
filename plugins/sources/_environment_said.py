"""What an environment gives, checked: messages, rewards, metrics. What is wrong with it is a text that says so."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

KEYS = ("observation", "done", "reward", "metrics")


@dataclass(frozen=True)
class Said:
    """A step of an environment: its messages, whether that was the last, its reward, numbers by name."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    done: bool = False
    reward: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)


def as_messages(given: Any, role: str) -> list[dict[str, Any]] | str:
    """An observation as messages, texts in this role; or what is wrong with it."""
    several = list(given) if isinstance(given, (list, tuple)) else [given]
    out = []
    for one in several:
        message = {"role": role, "content": one} if isinstance(one, str) else one
        if not isinstance(message, Mapping):
            return f"gave an observation of the type {type(one).__name__}; it must be text or messages"
        if not all(isinstance(message.get(key), str) for key in ("role", "content")):
            return f"gave a message without a text `role` and `content`: {dict(message)!r}"
        if message["role"] == "assistant":
            return "gave a message of the role `assistant`; only the model speaks in it"
        out.append(dict(message))
    return out


def as_said(given: Any, role: str) -> Said | str:
    """What a step gave, a mapping or an object with such attributes; or what is wrong with it."""
    if isinstance(given, Mapping):
        unknown = [key for key in given if key not in KEYS]
        if unknown:
            return f"gave the unknown key {unknown[0]!r}; known: {', '.join(KEYS)}"
        values = dict(given)
    else:
        values = {key: getattr(given, key) for key in KEYS if hasattr(given, key)}
        if not values:
            return f"gave {type(given).__name__} where a Turn, or a mapping with its keys, is needed"
    observation = values.get("observation")
    messages = as_messages(observation, role) if observation is not None and observation != () else []
    if isinstance(messages, str):
        return messages
    reward, metrics = values.get("reward"), values.get("metrics") or {}
    if reward is not None and not _is_number(reward):
        return f"gave the reward {reward!r}; it must be a finite number, or None"
    if not isinstance(metrics, Mapping) or not all(isinstance(k, str) and _is_number(v) for k, v in metrics.items()):
        return f"gave the metrics {metrics!r}; they must be finite numbers by name"
    done = values.get("done", False)
    if not isinstance(done, bool):
        return f"gave done={done!r}; it must be true or false"
    number = None if reward is None else float(reward)
    return Said(messages, done, number, {k: float(v) for k, v in metrics.items()})


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)
