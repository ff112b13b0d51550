"""A judge that compares: every two answers to a prompt are shown to a language model, in both orders.

The reward is the share of its comparisons that an answer wins, a draw counting half. A comparison is `votes` opinions
in each order; who has more of them wins, so that a judge who prefers the first place gives a draw. Missing where no
comparison could be read, and for the only answer of a prompt.
Source: Zheng et al. 2023, arXiv:2306.05685, section 3.1 (pairwise comparison) and 3.4 (swapped positions).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from statistics import fmean
from typing import TYPE_CHECKING

from pydantic import model_validator

from unified import Field, PromptGroup, Reward, hookimpl
from unified_plugins.rewards._asking import AskSettings, Said, ask, filled, last_match, models, regular, unread

if TYPE_CHECKING:
    from unified import Judge

COMPARE = """Which of two replies answers the request better? Look at whether it does what was asked, and whether \
it is correct, useful and clear. Neither the order of the replies nor their length may count.

Request:
{prompt}

Reply A:
{first}

Reply B:
{second}

Say why in at most 100 words. End with one line: "Better: A", "Better: B", or "Better: neither"."""


class PairwiseSettings(AskSettings):
    """What the judge is shown, and how its verdict is read."""

    template: str = Field(COMPARE, description="what the judge reads; {prompt}, {first}, {second} and columns")
    pattern: str = Field(
        r"Better:\s*(\w+)", description="regular expression; its last match in an opinion is a verdict"
    )
    first: str = Field("A", description="the verdict for the reply shown first")
    second: str = Field("B", description="the verdict for the other; any other verdict that is found is a draw")

    @model_validator(mode="after")
    def _can_be_read(self) -> PairwiseSettings:
        regular(self.pattern)
        for name in ("{first}", "{second}"):
            if name not in self.template:
                raise ValueError(f"the template shows no {name}")
        return self


def judge(
    groups: list[PromptGroup], settings: PairwiseSettings, models: Mapping[str, Judge]
) -> list[list[float | None]]:
    """Share of comparisons that each answer wins."""
    shown = [
        (group, i, k)
        for group in groups
        for a, b in combinations(range(len(group.answers)), 2)
        for i, k in ((a, b), (b, a))
    ]
    questions = [filled(settings.template, g, first=g.answers[i].text, second=g.answers[k].text) for g, i, k in shown]
    said = iter(ask(settings, questions, models, [group.draw for group, _, _ in shown]))
    return [_shares(group, said, settings) for group in groups]


def _shares(group: PromptGroup, said: Iterator[Said], settings: PairwiseSettings) -> list[float | None]:
    if len(group.answers) == 1:
        group.reasons.append("the only answer of a prompt has nothing to be compared with")
    won: list[list[float]] = [[] for _ in group.answers]
    for a, b in combinations(range(len(group.answers)), 2):
        both = next(said), next(said)
        for_a, for_b = ([v for text in one.opinions if (v := _lead(text, settings)) is not None] for one in both)
        if for_a and for_b:  # an order that could not be read would leave its place's advantage in
            lead = fmean(for_a) - fmean(for_b)
            share = 1.0 if lead > 0 else 0.0 if lead < 0 else 0.5
            won[a].append(share)
            won[b].append(1.0 - share)
        else:
            unclear = both[1] if for_a else both[0]
            group.reasons.append(unread(unclear, f"verdict ({settings.pattern})"))
    return [fmean(each) if each else None for each in won]


def _lead(text: str, settings: PairwiseSettings) -> float | None:
    """1 for the reply shown first, -1 for the other, 0 for a draw; None for an opinion without a verdict."""
    found = last_match(settings.pattern, text)
    return None if found is None else {settings.first: 1.0, settings.second: -1.0}.get(found, 0.0)


@hookimpl
def unified_rewards() -> list[Reward]:
    """Offer it as `reward: {name: pairwise, model: stage:NAME}`."""
    return [Reward("pairwise", PairwiseSettings, judge=judge, models=models)]
