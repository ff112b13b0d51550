"""Rollouts of a `verifiers` environment as episodes: played like those of any environment, judged by its rubric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from unified import PromptGroup
from unified_plugins.sources._environment_episodes import Episode, Episodes
from unified_plugins.sources._environment_settings import EpisodeSettings
from unified_plugins.sources._environment_threads import Failure, side_by_side
from unified_plugins.sources._environment_writing import Tools
from unified_plugins.sources._verifiers_guard import UNJUDGED, UNMEASURED, guard
from unified_plugins.sources._verifiers_rollout import Rollout, begun


def play(
    prompts: Sequence[PromptGroup], environment: Any, settings: EpisodeSettings, sample: Any, seed: int
) -> list[PromptGroup]:
    """New groups with the rollouts as answers. Raises UserError as `Episodes` does."""
    rollouts: list[Rollout] = []

    class One(Rollout):
        """One of this batch."""

        def __init__(self) -> None:
            super().__init__(environment, {"temperature": settings.temperature, "max_tokens": settings.turn_tokens})
            rollouts.append(self)

    try:
        episodes = Rollouts(prompts, One, settings.model_copy(update={"arguments": {}}), sample, seed)
        episodes.play()
        episodes.judge(environment.rubric)
        episodes.close()
        return episodes.groups()
    finally:
        for one in rollouts:
            one.cancel()


class Rollouts(Episodes):
    """The episodes of one batch, whose rewards come from a rubric when they are over."""

    def begun(self, episode: Episode, tools: Tools | None) -> PromptGroup:
        """The row, or the prompt that the environment has made in its place."""
        opening = episode.environment.opening
        if opening is None:
            return episode.group
        ids = self.writing.renderer.prompt_ids(opening, tools)
        return replace(episode.group, prompt=ids, messages=opening)

    def judge(self, rubric: Any) -> None:
        """End what goes on, and let the rubric judge the rollouts of each prompt together, prompts side by side."""
        there = [episode for episode in self.all if episode.failure is None]
        self._run([(episode, episode.environment.finish) for episode in there])
        groups = [[e for e in episodes if e.failure is None] for episodes in self.of_group]
        groups = [episodes for episodes in groups if episodes]
        guard(rubric)
        states = [[e.environment.state for e in episodes] for episodes in groups]
        limits: Any = {"threads": self.settings.threads, "timeout_s": self.settings.timeout_s}
        given = side_by_side([partial(_judged, rubric, group) for group in states], **limits)
        for episodes, failure in zip(groups, given, strict=True):
            for episode in episodes:
                _take(episode, failure.what if isinstance(failure, Failure) else None)


def _judged(rubric: Any, states: list[Any]) -> None:
    begun(_scored(rubric, states)).result()


async def _scored(rubric: Any, states: list[Any]) -> None:
    await rubric.score_group(states)
    for state in states:
        await rubric.cleanup(state)


def _take(episode: Episode, failure: str | None) -> None:
    """Reward and measures out of the state of a rollout; a reward that is none stays missing, with the reason."""
    state = episode.environment.state
    reward, metrics = state.get("reward"), dict(state.get("metrics") or {})
    why = failure or state.get(UNJUDGED)
    if why is None and not _is_number(reward):
        why = f"gave the reward {reward!r}"
    lacking = set(state.get(UNMEASURED) or ())
    lacking |= {name for name, value in metrics.items() if not _is_number(value)}
    if why is not None:
        episode.unjudged = f"rubric: {why}"
    else:
        episode.metrics |= {name: float(value) for name, value in metrics.items() if name not in lacking}
    episode.metrics["failed_measures"] = float(len(lacking))
    end, _ = episode.ends[-1]
    episode.ends[-1] = (end, None if why is not None else float(reward))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
