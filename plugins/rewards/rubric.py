"""A judge that gives points: a language model, the policy itself among them, reads a rubric and an answer.

The mean of what can be read of its `votes`, as (points − low) / (high − low); missing where none can be read. The
rubric adds a point for each of five qualities; {prompt}, {answer} and {NAME} of a column stand for themselves.
Source: Yuan et al. 2024, arXiv:2401.10020, section 2.2 (LLM-as-a-judge by the policy, additive rubric); for voting
Bai et al. 2022, arXiv:2212.08073, section 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import TYPE_CHECKING

from pydantic import model_validator

from unified import Field, PromptGroup, Reward, hookimpl
from unified_plugins.rewards._asking import AskSettings, Said, ask, filled, last_match, models, regular, unread

if TYPE_CHECKING:
    from unified import Judge

ADDITIVE = """Read the request and the reply, and give the reply points from 0 to 5. Begin at 0 and add one point for \
each of these that holds:
- it has to do with the request, even if it is incomplete or holds more than was asked for;
- it deals with a large part of the request, even if not all of it;
- it answers the heart of the request so that the person who asked can use it;
- it is written from the view of an assistant, to the point, complete and well ordered;
- it fits this person and this request exactly, shows expert knowledge, and says nothing that is beside the point.

Request:
{prompt}

Reply:
{answer}

Say why in at most 100 words. End with a line of this form: "Score: N"."""


class RubricSettings(AskSettings):
    """What the judge is shown, and how its points are read."""

    template: str = Field(ADDITIVE, description="what the judge reads; {prompt}, {answer} and columns are filled in")
    pattern: str = Field(
        r"Score:\s*(-?\d+(?:\.\d+)?)", description="regular expression; its last match in an opinion is the points"
    )
    points: dict[str, float] = Field({}, description="what a match is worth, where it is a word: {good: 1, bad: 0}")
    low: float = Field(0.0, description="points that become reward 0; an opinion outside of low and high is not read")
    high: float = Field(5.0, description="points that become reward 1")

    @model_validator(mode="after")
    def _can_be_read(self) -> RubricSettings:
        regular(self.pattern)
        if self.high <= self.low:
            raise ValueError(f"high is {self.high:g}, but it must be above low ({self.low:g})")
        if "{answer}" not in self.template:
            raise ValueError("the template shows no {answer}")
        return self


def judge(groups: list[PromptGroup], settings: RubricSettings, models: Mapping[str, Judge]) -> list[list[float | None]]:
    """Mean points of every answer, from 0 to 1."""
    questions = [filled(settings.template, group, answer=answer.text) for group in groups for answer in group.answers]
    draws = [group.draw for group in groups for _ in group.answers]
    said = iter(ask(settings, questions, models, draws))
    return [[_mean(next(said), settings, group) for _ in group.answers] for group in groups]


def _mean(said: Said, settings: RubricSettings, group: PromptGroup) -> float | None:
    read = [points for text in said.opinions if (points := _points(text, settings)) is not None]
    if read:
        return fmean(read)
    group.reasons.append(unread(said, f"points from {settings.low:g} to {settings.high:g} ({settings.pattern})"))
    return None


def _points(text: str, settings: RubricSettings) -> float | None:
    found = last_match(settings.pattern, text)
    if found is None:
        return None
    try:
        points = settings.points[found] if settings.points else float(found)
    except (KeyError, ValueError):
        return None
    inside = settings.low <= points <= settings.high
    return (points - settings.low) / (settings.high - settings.low) if inside else None


@hookimpl
def unified_rewards() -> list[Reward]:
    """Offer it as `reward: {name: rubric, model: self, votes: 3}`."""
    return [Reward("rubric", RubricSettings, judge=judge, models=models)]
