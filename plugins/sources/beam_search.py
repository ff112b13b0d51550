"""Beam search over steps: of the continuations of every partial answer the reward keeps the best `beams`.

In each round every partial answer is continued `expand` times by one step; of all of them, those that have ended
included, the `beams` of the highest reward go on, until all have ended. The reward judges partial answers: a process
reward model, or an outcome model read as a value.
Source: Snell et al. 2024, arXiv:2408.03314, section 5.2 (beam search against a process reward model).
"""

from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any

from pydantic import model_validator

from unified import DataSource, Field, PromptGroup, hookimpl
from unified_plugins.sources._search import Partial, Search, StepSettings, models


class BeamSearchSettings(StepSettings):
    """How wide the search is."""

    beams: int = Field(4, ge=1, description="partial answers kept after every step")
    expand: int = Field(4, ge=1, description="continuations sampled of each of them")

    @model_validator(mode="after")
    def _keep_fits(self) -> "BeamSearchSettings":
        if self.keep > self.beams:
            raise ValueError(f"keep is {self.keep}, but only {self.beams} answers are left at the end (beams)")
        return self


def collect(
    prompts: list[PromptGroup],
    settings: BeamSearchSettings,
    sample: Any,
    models: Mapping[str, Any],
    folder: Path | None = None,
) -> list[PromptGroup]:
    """The best `keep` answers, the best first; the column `search_tokens` counts the tokens sampled for the prompt."""
    search = Search(prompts, settings, sample, models, folder)
    beams = [[Partial()] for _ in prompts]
    for number in range(_rounds(settings)):
        live = [(i, p) for i, partials in enumerate(beams) for p in partials if not p.done]
        width = settings.expand if number else settings.expand * settings.beams  # the first step has one to go on from
        grown = search.step(live, width)
        fresh: list[dict[tuple[int, ...], Partial]] = [{} for _ in prompts]
        for (i, _), partials in zip(live, grown, strict=True):
            fresh[i].update({p.ids: p for p in partials})
        judged = search.judged([list(f.values()) for f in fresh])
        for i, new in enumerate(judged):
            candidates = [*(p for p in beams[i] if p.done), *new]
            beams[i] = sorted(candidates, key=lambda p: p.value, reverse=True)[: settings.beams]
    return search.groups(beams)


def _rounds(settings: BeamSearchSettings) -> int:
    """Rounds after which every answer has ended, the same in all processes: a step has at least one token."""
    return settings.max_tokens if settings.step_end is not None else ceil(settings.max_tokens / settings.step_tokens)


@hookimpl
def unified_sources() -> list[DataSource]:
    """Offer it as `source: {name: beam_search, beams: 4, expand: 4, reward: {name: process, model: stage:NAME}}`."""
    return [DataSource("beam_search", BeamSearchSettings, collect=collect, models=models, online=True)]
