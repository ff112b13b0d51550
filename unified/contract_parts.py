"""What holds for every reward, dataset and source, on made-up text; the checks of `unified.testing`."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unified.data import Answer, Example, PromptGroup, Sampling
from unified.errors import UserError
from unified.registry import call_named
from unified.settings import Settings


class Unfit(Exception):  # noqa: N818 - it is no error: the part says that made-up input is not for it
    """A part refused what was made up for it, so that nothing can be said."""


@dataclass(frozen=True)
class PartUnderTest:
    """A part with its settings, and input that it can take."""

    part: Any
    settings: Settings
    groups: list[PromptGroup] = field(default_factory=list)

    def call(self, function: str, **arguments: Any) -> Any:
        """Call a function of the part; Unfit where it refuses made-up input as a user's mistake."""
        try:
            return call_named(getattr(self.part, function), settings=self.settings, **arguments)
        except UserError as error:
            if not self.groups:
                raise Unfit from error
            raise

    def judged(self, groups: list[PromptGroup]) -> Any:
        """What a reward says of groups, by stand-ins for the models that it names."""
        try:
            models = self.call("models") if self.part.models else {}
            stand_ins = {reference: StandIn() for reference in models}
            return self.call("judge", groups=groups, models=stand_ins, folder=None)
        except (KeyError, ValueError) as error:
            if not self.groups:  # a column of the data that made-up text has not
                raise Unfit from error
            raise


class StandIn:
    """In the place of a model that judges: scores an answer by its length, and answers every prompt with "yes"."""

    class tokenizer:  # noqa: N801 - read as an attribute
        """Without a chat template."""

        chat_template = None

    def score(self, groups: Sequence[PromptGroup]) -> list[list[float | None]]:
        """The number of tokens of each answer."""
        return [[float(len(a.ids)) if a.ids else None for a in g.answers] for g in groups]

    def score_tokens(self, groups: Sequence[PromptGroup]) -> list[list[list[float]]]:
        """1, 2, 3, ... along each answer."""
        return [[[float(t + 1) for t in range(len(a.ids))] for a in g.answers] for g in groups]

    def answer(
        self, prompts: Sequence[Any], sampling: Sampling, n: int = 1, draws: Sequence[int] | None = None
    ) -> list[list[Answer]]:
        """n times the same to every prompt."""
        return [[_answer("yes") for _ in range(n)] for _ in prompts]


def made_up() -> list[PromptGroup]:
    """Two prompts with answers of several lengths, one of them empty, and one prompt without an answer."""
    texts = [["yes", "no way.", ""], ["one two three", "four"], []]
    return [
        PromptGroup([5, 6, 7 + i], [_answer(t) for t in answers], f"prompt {i}", key=i)
        for i, answers in enumerate(texts)
    ]


def _answer(text: str) -> Answer:
    return Answer([3 + ord(c) % 20 for c in text], text)


# --- rewards ---


def judgements(subject: PartUnderTest) -> Iterator[str]:
    """A list for every group with an entry for every answer: a finite number, one per token, or None."""
    groups = subject.groups or made_up()
    given = subject.judged(copy.deepcopy(groups))
    if len(given) != len(groups):
        yield f"it gave {len(given)} lists for {len(groups)} groups"
        return
    for i, (rewards, group) in enumerate(zip(given, groups, strict=True)):
        if len(rewards) != len(group.answers):
            yield f"it gave {len(rewards)} entries for the {len(group.answers)} answers of group {i}"
            continue
        for reward, answer in zip(rewards, group.answers, strict=True):
            yield from _judgement(reward, answer)


def _judgement(reward: Any, answer: Answer) -> Iterator[str]:
    many = isinstance(reward, (list, tuple))
    if many and len(reward) != len(answer.ids):
        yield f"it gave {len(reward)} numbers for the {len(answer.ids)} tokens of {answer.text!r}"
    for number in reward if many else [0.0 if reward is None else reward]:
        if not isinstance(number, (int, float)) or not math.isfinite(number):
            yield f"it gave {number!r} for {answer.text!r}; a reward is a finite number, or None where judging failed"


def leaves_groups_alone(subject: PartUnderTest) -> Iterator[str]:
    """It does not change the groups, but for new columns and reasons: writing rewards is the engine's."""
    groups = subject.groups or made_up()
    seen = copy.deepcopy(groups)
    subject.judged(seen)
    for group, before in zip(seen, groups, strict=False):
        for answer, old in zip(group.answers, before.answers, strict=False):
            answer.columns = {name: value for name, value in answer.columns.items() if name in old.columns}
        group.reasons = list(before.reasons)
    if seen != groups:
        yield "it changed the groups that it judged"


def order_of_groups(subject: PartUnderTest) -> Iterator[str]:
    """A judgement does not depend on the order of the prompts."""
    groups = subject.groups or made_up()
    forwards, backwards = subject.judged(copy.deepcopy(groups)), subject.judged(copy.deepcopy(groups[::-1]))
    if list(forwards) != list(backwards)[::-1]:
        yield "its judgements change with the order of the prompts"


REWARD = (judgements, leaves_groups_alone, order_of_groups)


# --- datasets ---


def _opened(subject: PartUnderTest, split: str) -> Any:
    return subject.call("open", split=split, seed=0, folder=Path())


def rows(subject: PartUnderTest) -> Iterator[str]:
    """Both splits hold Examples, with a reward for every answer or none at all."""
    for split in ("train", "held_out"):
        found = _opened(subject, split)
        if not len(found):
            yield f"split {split} has no rows"
        for i, row in enumerate(found):
            if not isinstance(row, Example):
                yield f"row {i} of {split} is {type(row).__name__}; it must be an Example"
                return
            if row.rewards is not None and len(row.rewards) != len(row.answers):
                yield f"row {i} of {split} has {len(row.answers)} answers but {len(row.rewards)} rewards"
                return


def opens_the_same_twice(subject: PartUnderTest) -> Iterator[str]:
    """Opened again with the same seed it gives the same rows."""
    for split in ("train", "held_out"):
        if list(_opened(subject, split)) != list(_opened(subject, split)):
            yield f"split {split} has other rows when it is opened again with the same seed"


DATASET = (rows, opens_the_same_twice)


# --- sources ---


def _sample(prompts: list[PromptGroup], n: int, sampling: Sampling) -> list[list[Answer]]:
    """Answers of two or three tokens in the place of a rollout engine."""
    length = min(3, sampling.max_tokens)
    return [[Answer([4 + k] * length, "x" * length, sampling_logp=[-1.0] * length) for k in range(n)] for _ in prompts]


def collects(subject: PartUnderTest) -> Iterator[str]:
    """It gives PromptGroups, as they stand or with answers of tokens, and does not judge sampled ones."""
    prompts = subject.groups or made_up()[:2]
    given = subject.call("collect", prompts=copy.deepcopy(prompts), sample=_sample, seed=0)
    if not isinstance(given, list) or not all(isinstance(g, PromptGroup) for g in given):
        yield "collect must give a list of PromptGroups"
        return
    if not given:
        yield f"it gave no group for {len(prompts)} prompts"
    for group in given:
        if subject.part.online and not group.answers:
            yield f"it gave no answer to {group.text!r}"
        if subject.part.online and any(a.reward is not None for a in group.answers if not a.probe):
            yield "it gave sampled answers a reward; judging is the reward function's"


def collects_the_same_twice(subject: PartUnderTest) -> Iterator[str]:
    """With the same seed, and the same answers sampled, it gives the same groups."""
    prompts = subject.groups or made_up()[:2]
    first, again = (subject.call("collect", prompts=copy.deepcopy(prompts), sample=_sample, seed=0) for _ in range(2))
    if first != again:
        yield "it gave other groups when asked again with the same seed"


SOURCE = (collects, collects_the_same_twice)
