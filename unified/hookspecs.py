"""The whole contract between `unified` and its plugins, on one screen.

A plugin is a module (or object) named by an entry point of group `unified`. It implements any of the functions below,
each marked with `unified.hookimpl`, and may say `unified_api = 1`, the version it was written for. Every answer
counts; an empty list means none. Two plugins that offer one name are an error that names both; order never decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from unified.parts import Algorithm, DataFormat, Dataset, DataSource, Reward, RolloutEngine, Rule, StageKind

API_VERSION = 1
hookspec = pluggy.HookspecMarker("unified")
hookimpl = pluggy.HookimplMarker("unified")

# --- parts: called once, when plugins are loaded; return [] for none ---


@hookspec
def unified_algorithms() -> list[Algorithm]:  # type: ignore[empty-body]
    """Offer gradient coefficients, used in recipes as `algorithm: NAME`."""


@hookspec
def unified_rules() -> list[Rule]:  # type: ignore[empty-body]
    """Offer advantage, ratio, kl, margin, link, filter and selection rules, used inside the settings of others."""


@hookspec
def unified_datasets() -> list[Dataset]:  # type: ignore[empty-body]
    """Offer places that rows come from, used as `data: NAME`."""


@hookspec
def unified_formats() -> list[DataFormat]:  # type: ignore[empty-body]
    """Offer conversions of file rows, chosen by name or recognised from a file's columns."""


@hookspec
def unified_sources() -> list[DataSource]:  # type: ignore[empty-body]
    """Offer ways for prompts to get their answers, used as `source: NAME`."""


@hookspec
def unified_rewards() -> list[Reward]:  # type: ignore[empty-body]
    """Offer reward functions, used as `reward: NAME`."""


@hookspec
def unified_engines() -> list[RolloutEngine]:  # type: ignore[empty-body]
    """Offer rollout engines, used as `engine: NAME`."""


@hookspec
def unified_stages() -> list[StageKind]:  # type: ignore[empty-body]
    """Offer kinds of stages, used as `kind: NAME`."""


# --- events of a run: every plugin is told, in the main process and the others; return nothing ---


@hookspec
def stage_started(stage: str, folder: str, plan: dict[str, Any]) -> None:
    """A stage begins. `plan` holds its kind, its algorithms and the number of steps."""


@hookspec
def groups_judged(stage: str, step: int, groups: list[Any]) -> None:
    """Prompt groups have answers and rewards, before any is filtered. Do not change them."""


@hookspec
def step_finished(stage: str, step: int, metrics: dict[str, float]) -> None:
    """A collected batch has been learned from; `metrics` are means over all processes."""


@hookspec
def warning_raised(stage: str, step: int, kind: str, message: str, values: dict[str, float]) -> None:
    """A sign that training goes wrong has appeared, or numbers that are not finite were left out."""


@hookspec
def checkpoint_saved(stage: str, step: int, folder: str) -> None:
    """A checkpoint lies complete in `folder`."""


@hookspec
def stage_finished(stage: str, folder: str, summary: dict[str, Any]) -> None:
    """A stage is done and its result lies in `folder`."""
