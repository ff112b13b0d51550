"""Asking a language model for its opinion: one of the recipe's own, or one behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from unified import Field, PromptGroup, Sampling, Settings
from unified_plugins.rewards._http import Failed, ServerSettings, post, side_by_side

if TYPE_CHECKING:
    from unified import Judge


class EndpointSettings(ServerSettings):
    """An endpoint that speaks OpenAI's chat completions; `url` ends where /chat/completions begins."""

    model: str = Field(description="the model's name at the endpoint")


class AskSettings(Settings):
    """Who is asked, and how often."""

    model: str | None = Field(
        None, description="the judge: stage:NAME, a path or a hub id; without one, self: the policy as it is now"
    )
    endpoint: EndpointSettings | None = Field(None, description="in place of a model: {url: ..., model: ...}")
    votes: int = Field(1, ge=1, description="opinions asked for; those that can be read are averaged")
    temperature: float = Field(1.0, ge=0, description="of the judge; 0 takes the likeliest words")
    max_tokens: int = Field(256, ge=1, description="longest opinion, in tokens")

    @model_validator(mode="after")
    def _one_judge(self) -> AskSettings:
        if self.model is not None and self.endpoint is not None:
            raise ValueError("name the judge by `model` or by `endpoint`, one of both")
        if self.votes > 1 and self.temperature == 0:
            raise ValueError(f"{self.votes} votes at temperature 0 are one vote {self.votes} times")
        return self


@dataclass(frozen=True)
class Said:
    """The opinions on one question; why: what it was that some of them, or all, were not given."""

    opinions: list[str]
    why: str = ""


def ask(
    settings: AskSettings, questions: Sequence[str], models: Mapping[str, Judge], draws: Sequence[int]
) -> list[Said]:
    """`votes` opinions on each question; fewer, or none, where the question is too long or the endpoint failed.

    draws: that of the group which each question is about.
    """
    if not questions:
        return []
    if settings.endpoint is not None:
        return _from_endpoint(settings.endpoint, settings, questions)
    judge = models[settings.model or "self"]
    chat = bool(judge.tokenizer.chat_template)
    prompts: list[Any] = [[{"role": "user", "content": q}] if chat else q for q in questions]
    sampling = Sampling(settings.temperature, max_tokens=settings.max_tokens)
    votes = settings.votes if settings.temperature else 1
    long = f"the question and an opinion of {settings.max_tokens} tokens are more than the judge can hold"
    given = judge.answer(prompts, sampling, votes, draws)
    return [Said([answer.text for answer in answers], "" if answers else long) for answers in given]


def _from_endpoint(endpoint: EndpointSettings, settings: AskSettings, questions: Sequence[str]) -> list[Said]:
    def opinion(question: str) -> str:
        payload = {
            "model": endpoint.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
        }
        reply = post(endpoint, "/chat/completions", payload)
        try:
            return str(reply["choices"][0]["message"]["content"])
        except (KeyError, IndexError, TypeError):
            raise Failed("it replied no choices[0].message.content") from None

    each = [question for question in questions for _ in range(settings.votes)]
    replies = iter(side_by_side(endpoint, opinion, each))
    given = [[next(replies) for _ in range(settings.votes)] for _ in questions]
    failed = [next((f"the server at {endpoint.url}: {t}" for t in each if isinstance(t, Failed)), "") for each in given]
    texts = [[text for text in each if not isinstance(text, Failed)] for each in given]
    return [Said(opinions, why) for opinions, why in zip(texts, failed, strict=True)]


def unread(said: Said, what: str) -> str:
    """Why an answer is missing: no opinion, or none in which `what` stands."""
    if not said.opinions:
        return said.why or "the question got no opinion"
    return f"no {what} in {said.opinions[0][-80:]!r}"


def models(settings: AskSettings) -> dict[str, str]:
    """The judge, where it is a model of the recipe."""
    return {} if settings.endpoint is not None else {settings.model or "self": "policy"}


def filled(template: str, group: PromptGroup, **values: str) -> str:
    """The template with {prompt}, {NAME} of a column, and the values given; other braces stay as they are."""
    known = {"prompt": group.text, **{k: str(v) for k, v in group.columns.items()}, **values}
    return re.sub(r"\{(\w+)\}", lambda found: known.get(found[1], found[0]), template)


def last_match(pattern: str, text: str) -> str | None:
    """The last match of a regular expression: its first group, where it has one."""
    found = None
    for match in re.finditer(pattern, text):
        found = match[1] if match.re.groups else match[0]
    return found


def regular(pattern: str) -> str:
    """The pattern; ValueError where it is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern is no regular expression: {error}") from error
    return pattern
