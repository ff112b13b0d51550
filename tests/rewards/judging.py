"""Asks a reward as a recipe writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unified import Answer, PromptGroup, call_named
from unified.settings import choose


def judged(reward: str | dict[str, Any], groups: list[PromptGroup], folder: Path | None = None) -> list[list[Any]]:
    """The judgements of all groups."""
    chosen, problems = choose("reward", reward)
    assert chosen is not None, "\n".join(p.text() for p in problems)
    found = call_named(chosen.part.judge, groups=groups, settings=chosen.settings, models={}, folder=folder)
    return [list(each) for each in found]


def judged_texts(reward: str | dict[str, Any], texts: list[str], prompt: str = "", **columns: Any) -> list[Any]:
    """The judgements of several answers to one prompt."""
    (found,) = judged(reward, [PromptGroup([0], [Answer([5], text) for text in texts], prompt, columns)])
    return found


def refusal(reward: dict[str, Any]) -> str:
    """What is said of settings that make no sense; "" where they do."""
    return "\n".join(p.text() for p in choose("reward", reward)[1])
