"""How a reward asks the rewards inside it."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from unified import Chosen, PromptGroup, call_named

Judged = list[list[float | list[float] | None]]


def inner_judge(of: Chosen, groups: list[PromptGroup], models: Mapping[str, Any], folder: Path | None = None) -> Judged:
    """The judgements of the reward inside, a list per group; it is handed the models that it names itself."""
    own = {name: models[name] for name in inner_models(of)}
    given: Judged = call_named(of.part.judge, groups=groups, settings=of.settings, models=own, folder=folder)
    return given


def inner_judges(
    rewards: list[Chosen], groups: list[PromptGroup], models: Mapping[str, Any], folder: Path | None = None
) -> list[Judged]:
    """The judgements of each, of the same groups."""
    return inner_judges_of([(of, groups) for of in rewards], models, folder)


def inner_judges_of(
    asked: list[tuple[Chosen, list[PromptGroup]]], models: Mapping[str, Any], folder: Path | None = None
) -> list[Judged]:
    """The judgements of each reward, of its own groups; one that asks no model is not called for an empty list.

    Those that ask no model run side by side, so that the slowest one sets the time.
    """
    with ThreadPoolExecutor(max_workers=max(1, len(asked))) as pool:
        apart = {
            i: pool.submit(inner_judge, of, groups, models, folder) if groups else None
            for i, (of, groups) in enumerate(asked)
            if not inner_models(of)
        }
        here = {i: inner_judge(of, gs, models, folder) for i, (of, gs) in enumerate(asked) if i not in apart}
        waited = {i: [] if future is None else future.result() for i, future in apart.items()}
    return [here[i] if i in here else waited[i] for i in range(len(asked))]


def inner_models(*rewards: Chosen) -> dict[str, str]:
    """The models that the rewards inside need: reference -> kind. ValueError for one that is asked for as both."""
    out: dict[str, str] = {}
    for of in rewards:
        named: Mapping[str, str] = call_named(of.part.models, settings=of.settings) if of.part.models else {}
        for reference, kind in named.items():
            if out.setdefault(reference, kind) != kind:
                raise ValueError(f"'{reference}' cannot judge both as a {kind} and as a {out[reference]} model")
    return out
