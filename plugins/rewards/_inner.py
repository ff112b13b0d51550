"""How a reward asks the reward inside it."""

from collections.abc import Callable
from typing import Any

from unified import Chosen, PromptGroup, call_named

Judged = list[list[float | list[float] | None]]


def inner_judge(of: Chosen, groups: list[PromptGroup], score: Callable[..., Any]) -> Judged:
    """The judgements of the reward inside, a list per group."""
    given: Judged = call_named(of.part.judge, groups=groups, settings=of.settings, score=score)
    return given


def inner_model(of: Chosen) -> str | None:
    """The scalar model that the reward inside needs, if any."""
    return call_named(of.part.model, settings=of.settings) if of.part.model else None
