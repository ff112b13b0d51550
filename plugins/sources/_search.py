"""What the searches share: partial answers, their continuation by one step, and their judgement."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unified import Answer, Chosen, Field, PromptGroup, Sampling, Settings, choice, number_columns
from unified_plugins.rewards._inner import inner_judge, inner_models

#: of an answer that could not be judged: it loses against every other
UNJUDGED = -math.inf


class SearchSettings(Settings):
    """What every search needs to know."""

    reward: Chosen = choice("reward", description="what judges answers, and what is written of them so far")
    keep: int = Field(1, ge=1, description="answers returned per prompt, the best first")
    temperature: float = Field(1.0, gt=0, description="divides the logits")
    top_p: float = Field(1.0, gt=0, le=1, description="keep the likeliest tokens up to this mass; 1 keeps all")
    min_p: float = Field(
        0.0, ge=0, lt=1, description="keep tokens of so many times the probability of the likeliest; 0 keeps all"
    )
    max_tokens: int = Field(256, ge=1, description="longest answer, in tokens")


class StepSettings(SearchSettings):
    """A search that goes step by step."""

    step_tokens: int = Field(64, ge=1, description="longest step, in tokens")
    step_end: str | None = Field(None, description='text that ends a step, such as "\\n\\n"; none: step_tokens do')


@dataclass(frozen=True)
class Partial:
    """An answer as far as it is written; `ends`: tokens after each of its steps, `value`: its judgement."""

    ids: tuple[int, ...] = ()
    logp: tuple[float, ...] = ()
    ends: tuple[int, ...] = ()
    done: bool = False
    stopped: bool = False
    value: float = UNJUDGED
    version: int | None = None

    def answer(self, sample: Any) -> Answer:
        """As an answer, which `stop` ends only where it ended by itself."""
        finish = "stop" if self.stopped else "length"
        ids = list(self.ids)
        return Answer(ids, sample.decode(ids), sampling_logp=list(self.logp), finish=finish, version=self.version)  # type: ignore[arg-type]


class Search:
    """One search: what it may ask for, and how many tokens it had sampled for each prompt."""

    def __init__(
        self,
        prompts: Sequence[PromptGroup],
        settings: SearchSettings,
        sample: Callable[[list[PromptGroup], int, Sampling], list[list[Answer]]],
        models: Mapping[str, Any],
        folder: Path | None,
    ) -> None:
        self.prompts, self.settings, self.sample, self.models, self.folder = prompts, settings, sample, models, folder
        self.tokens = [0] * len(prompts)

    def step(self, written: Sequence[tuple[int, Partial]], n: int) -> list[list[Partial]]:
        """n continuations by one step of each partial answer (prompt, partial), equal ones once, not yet judged."""
        settings = self.settings
        assert isinstance(settings, StepSettings)
        left = {settings.max_tokens - len(p.ids) for _, p in written}
        out: list[list[Partial]] = [[] for _ in written]
        for room in sorted(left):  # steps of one length go together
            places = [i for i, (_, p) in enumerate(written) if settings.max_tokens - len(p.ids) == room]
            made = self._sampled([written[i] for i in places], n, min(room, settings.step_tokens))
            for i, answers in zip(places, made, strict=True):
                grown = [self._grown(written[i][1], answer) for answer in answers]
                out[i] = list({p.ids: p for p in reversed(grown)}.values())[::-1]
        return out

    def whole(self, written: Sequence[tuple[int, Partial]], n: int) -> list[list[Partial]]:
        """n whole answers that go on from each partial one, not yet judged."""
        left = {self.settings.max_tokens - len(p.ids) for _, p in written}
        out: list[list[Partial]] = [[] for _ in written]
        for room in sorted(left):
            places = [i for i, (_, p) in enumerate(written) if self.settings.max_tokens - len(p.ids) == room]
            made = self._sampled([written[i] for i in places], n, room)
            for i, answers in zip(places, made, strict=True):
                out[i] = [_joined(written[i][1], answer, done=True) for answer in answers]
        return out

    def judged(self, found: Sequence[Sequence[Partial]]) -> list[list[Partial]]:
        """The same with their values: one list per prompt. Asks the reward once, also where there is nothing to judge,
        so that all processes ask equally often."""
        groups = [
            replace(prompt, answers=[p.answer(self.sample) for p in partials], columns=dict(prompt.columns))
            for prompt, partials in zip(self.prompts, found, strict=True)
            if partials
        ]
        given = iter(inner_judge(self.settings.reward, groups, self.models, self.folder))
        return [
            [replace(p, value=_value(v)) for p, v in zip(partials, next(given), strict=True)] if partials else []
            for partials in found
        ]

    def groups(self, found: Sequence[Sequence[Partial]]) -> list[PromptGroup]:
        """The best `keep` answers of each prompt, with their judgement as reward, and `search_tokens` as a column."""
        out = []
        for prompt, partials, tokens in zip(self.prompts, found, self.tokens, strict=True):
            best = sorted(partials, key=lambda p: p.value, reverse=True)[: self.settings.keep]
            columns = {**number_columns(prompt.columns), "search_tokens": float(tokens)}
            answers = [
                replace(p.answer(self.sample), reward=None if p.value == UNJUDGED else p.value, columns=dict(columns))
                for p in best
            ]
            out.append(replace(prompt, prompt=list(prompt.prompt), answers=answers, columns=dict(prompt.columns)))
        return out

    def _sampled(self, written: Sequence[tuple[int, Partial]], n: int, longest: int) -> list[list[Answer]]:
        sampling = Sampling(self.settings.temperature, self.settings.top_p, 0, longest, self.settings.min_p)
        asked = [PromptGroup([*self.prompts[i].prompt, *p.ids], draw=self.prompts[i].draw) for i, p in written]
        made = self.sample(asked, n, sampling) if asked else []
        for (i, _), answers in zip(written, made, strict=True):
            self.tokens[i] += sum(len(a.ids) for a in answers)
        return made

    def _grown(self, before: Partial, answer: Answer) -> Partial:
        settings = self.settings
        assert isinstance(settings, StepSettings)
        cut = len(answer.ids)
        if settings.step_end is not None:
            cut = next(
                (t for t in range(1, cut + 1) if settings.step_end in self.sample.decode(answer.ids[:t])),  # type: ignore[attr-defined]
                cut,
            )
        if cut < len(answer.ids):
            logp = answer.sampling_logp[:cut] if answer.sampling_logp is not None else None
            answer = replace(answer, ids=answer.ids[:cut], sampling_logp=logp, finish="length")
        full = len(before.ids) + cut >= settings.max_tokens
        return _joined(before, answer, done=full or answer.finish == "stop")


def _joined(before: Partial, answer: Answer, *, done: bool) -> Partial:
    ids = (*before.ids, *answer.ids)
    logp = (*before.logp, *(answer.sampling_logp or [0.0] * len(answer.ids)))
    return Partial(ids, logp, (*before.ends, len(ids)), done, answer.finish == "stop", version=answer.version)


def _value(judgement: float | list[float] | None) -> float:
    if judgement is None:
        return UNJUDGED
    return sum(judgement) if isinstance(judgement, list) else float(judgement)


def models(settings: SearchSettings) -> dict[str, str]:
    """The models of the reward that judges."""
    return inner_models(settings.reward)
