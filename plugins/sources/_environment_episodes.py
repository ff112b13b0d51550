"""The episodes of one batch: they begin, the assistant speaks, the environments step, and they become answers."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from unified import Answer, PromptGroup, Sampling, UserError, call_named, number_columns
from unified_plugins.sources._environment_calls import Call, calls_in, functions, schemas
from unified_plugins.sources._environment_said import Said, as_messages, as_said
from unified_plugins.sources._environment_settings import EpisodeSettings
from unified_plugins.sources._environment_threads import Failure, side_by_side
from unified_plugins.sources._environment_writing import Tools, Writing

#: what the methods of an environment may name
OFFERED = {"reset": ("prompt", "columns", "seed"), "step": ("text", "calls", "finish", "turn"), "close": ()}


@dataclass
class Episode:
    """One conversation with one instance of the environment.

    context: ids before the first turn of the assistant. ids, mask, logp: of the answer so far, behind the context; mask
    is true and logp what was sampled where the assistant spoke. ends: (tokens of the answer after a turn of the
    assistant, the reward of that turn). cut: whether a limit ended a turn or the episode. failure: why it broke down;
    unjudged: why it has no reward, though it came to its end.
    """

    group: PromptGroup
    seed: int
    environment: Any = None
    tools: Tools | None = None
    functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    context: list[int] | None = None
    ids: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)
    ends: list[tuple[int, float | None]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    turn: Answer | None = None
    version: int | None = None
    tool_calls: int = 0
    failed_calls: int = 0
    live: bool = True
    cut: bool = False
    late: bool = False
    failure: str | None = None
    unjudged: str | None = None

    @property
    def length(self) -> int:
        """Tokens so far, the context included."""
        return len(self.context or ()) + len(self.ids)

    def add(self, ids: Sequence[int], logp: Sequence[float] | None) -> None:
        """Tokens of the assistant with what they were sampled with; without it, of the environment."""
        self.ids += ids
        self.mask += [logp is not None] * len(ids)
        self.logp += logp if logp is not None else [0.0] * len(ids)

    def end(self, *, cut: bool = False, failure: str | None = None, late: bool = False) -> None:
        """Nothing follows any more."""
        self.live, self.cut, self.failure, self.late = False, self.cut or cut, failure, late


class Episodes:
    """All episodes of a batch.

    rewards: "total" or "turn"; cut_off_reward: of an episode cut off before there was one; see EnvironmentSettings.
    Raises UserError for a class that cannot be called as the settings say.
    """

    def __init__(
        self,
        prompts: Sequence[PromptGroup],
        made: type,
        settings: EpisodeSettings,
        sample: Any,
        seed: int,
        rewards: Literal["total", "turn"] = "total",
        cut_off_reward: float | None = None,
    ) -> None:
        self.prompts, self.made, self.settings, self.sample = prompts, made, settings, sample
        self.rewards, self.cut_off_reward = rewards, cut_off_reward
        self.owner = f"environment '{settings.environment}'"
        _check(made, settings.arguments, self.owner)
        self.writing = Writing(sample.tokenizer, keep=settings.past == "keep", owner=self.owner)
        self.of_group = [
            [
                Episode(group, _drawn(seed, group.draw if group.draw >= 0 else i, group.key, k))
                for k in range(settings.group_size)
            ]
            for i, group in enumerate(prompts)
        ]
        self.all = [episode for episodes in self.of_group for episode in episodes]
        self._begin()

    @property
    def live(self) -> list[Episode]:
        """Those that go on."""
        return [episode for episode in self.all if episode.live]

    def _begin(self) -> None:
        given = self._run([(e, partial(self._reset, e)) for e in self.all])
        for episode, first in given:
            said = as_messages(first, "user") if first is not None else []
            if isinstance(said, str):
                episode.end(failure=f"reset {said}")
                continue
            tools = list(getattr(episode.environment, "tools", None) or ())
            episode.functions = functions(tools)
            shown = schemas(tools, self.owner) if tools and self.settings.show_tools else None
            episode.group = self.begun(episode, shown)
            episode.context, episode.tools = self.writing.opening(episode.group, said, shown)
            if self._room(episode) < 1:
                episode.end(
                    failure=f"max_tokens ({self.settings.max_tokens}) leaves no room for a turn behind the prompt"
                )

    def begun(self, episode: Episode, tools: Tools | None) -> PromptGroup:
        """The prompt behind which the episode begins; of a row, unless the environment has one of its own."""
        return episode.group

    def _reset(self, episode: Episode) -> Any:
        """In a thread: make the instance and begin."""
        episode.environment = self.made(**self.settings.arguments)
        if not hasattr(self.made, "reset"):
            return None
        group = episode.group
        prompt = group.text if group.messages is None else [dict(m) for m in group.messages]
        return call_named(episode.environment.reset, prompt=prompt, columns=dict(group.columns), seed=episode.seed)

    def play(self) -> None:
        """Speak and step in turn, until no episode is live."""
        for turn in range(1, self.settings.max_turns + 1):
            if not self.live:
                break
            self.speak()
            self.step(turn)

    def speak(self) -> None:
        """Sample the next turn of the assistant in every live episode; those with equally much room together."""
        settings = self.settings
        rooms: dict[int, list[Episode]] = {}
        for episode in self.live:
            rooms.setdefault(min(settings.turn_tokens, self._room(episode)), []).append(episode)
        for room, episodes in sorted(rooms.items()):
            how = (settings.temperature, settings.top_p, settings.top_k, room, settings.min_p, tuple(settings.stop))
            sampling = Sampling(*how)
            asked = [replace(e.group, prompt=[*(e.context or ()), *e.ids], answers=[]) for e in episodes]
            for episode, (answer,) in zip(episodes, self.sample(asked, 1, sampling), strict=True):
                if episode.version is None:
                    episode.version = answer.version
                episode.turn = answer
                episode.add(answer.ids, answer.sampling_logp or [0.0] * len(answer.ids))
                known = episode.functions
                episode.calls = calls_in(self._with_markers(answer), settings.calls, known)

    def step(self, turn: int) -> None:
        """Let the environments answer, and write what they say where the episode goes on."""
        for episode, given in self._run([(e, partial(self._step, e, turn)) for e in self.live]):
            said = as_said(given, "tool" if episode.calls else "user")
            episode.tool_calls += len(episode.calls)
            episode.failed_calls += sum(call.failed for call in episode.calls)
            if isinstance(said, str):
                episode.end(failure=f"step {turn} {said}")
                continue
            episode.metrics |= said.metrics
            episode.ends.append((len(episode.ids), said.reward))
            self._go_on(episode, said, last=turn == self.settings.max_turns)

    def _step(self, episode: Episode, turn: int) -> Any:
        """In a thread."""
        answer = episode.turn
        assert answer is not None
        return call_named(
            episode.environment.step, text=answer.text, calls=list(episode.calls), finish=answer.finish, turn=turn
        )

    def _go_on(self, episode: Episode, said: Said, *, last: bool) -> None:
        """End the episode, or write what the environment said behind it."""
        answer = episode.turn
        assert answer is not None
        if said.done or last or answer.finish == "length":
            episode.end(cut=answer.finish == "length" or not said.done)
            return
        if not said.messages:
            episode.end(failure=f"step {len(episode.ends)} gave no observation, and the episode is not done")
            return
        ids = self.writing.between(said.messages, episode.group, episode.tools, answer.ids[-1] if answer.ids else None)
        if len(ids) >= self._room(episode):
            episode.end(cut=True)
        else:
            episode.add(ids, None)

    def close(self) -> None:
        """Close the environments that want it. UserError where too many episodes failed."""
        there = [e for e in self.all if hasattr(e.environment, "close") and not e.late]
        jobs = [partial(call_named, e.environment.close) for e in there]
        limits = {"threads": self.settings.threads, "timeout_s": self.settings.timeout_s}
        for episode, given in zip(there, side_by_side(jobs, **limits), strict=True):  # type: ignore[arg-type]
            if isinstance(given, Failure) and episode.failure is None:
                episode.failure = f"close {given.what}"
        failed = [e for e in self.all if e.failure is not None]
        if len(failed) > self.settings.max_failed * len(self.all):
            first = failed[0]
            raise UserError(
                f"{self.owner} failed in {len(failed)} of {len(self.all)} episodes, "
                f"first in one of row {first.group.key}: {first.failure}",
                f"mend it, or raise max_failed (now {self.settings.max_failed:g}) or timeout_s "
                f"(now {self.settings.timeout_s:g})",
            )

    def groups(self) -> list[PromptGroup]:
        """The episodes as answers, by prompt; the `reasons` of a group tell what went wrong in it."""
        out = []
        for group, episodes in zip(self.prompts, self.of_group, strict=True):
            contexts = [e.context for e in episodes if e.context is not None]
            prompt = _in_common(contexts) if contexts else list(group.prompt)
            reasons = [why for e in episodes if (why := e.failure or e.unjudged)]
            answers = [self._answer(e, len(prompt)) for e in episodes]
            text = group.text if prompt == group.prompt else str(self.sample.tokenizer.decode(prompt))
            out.append(replace(group, prompt=prompt, answers=answers, text=text, reasons=reasons))
        return out

    def _answer(self, episode: Episode, begin: int) -> Answer:
        """begin: where the prompt of the group ends."""
        lead = (episode.context or [])[begin:]
        ids, mask = [*lead, *episode.ids], [*[False] * len(lead), *episode.mask]
        ids, mask = ids or [self.writing.eos], mask or [False]  # an answer has a token
        finish: Literal["stop", "length"] = "length" if episode.cut or episode.failure is not None else "stop"
        if episode.failure is not None:
            mask = [False] * len(ids)
        columns = {
            **number_columns(episode.group.columns),
            "turns": float(len(episode.ends)), "tool_calls": float(episode.tool_calls),
            "failed_calls": float(episode.failed_calls), "failed": float(episode.failure is not None),
            **episode.metrics,
        }  # fmt: skip
        logp = [*[0.0] * (len(ids) - len(episode.logp)), *episode.logp]
        text = self.sample.decode(episode.ids)
        reward = self._reward(episode, len(lead), len(ids))
        failed = episode.failure is not None
        return Answer(ids, text, mask, reward, logp, finish, version=episode.version, failed=failed, columns=columns)

    def _reward(self, episode: Episode, lead: int, length: int) -> float | list[float] | None:
        """None where it failed, or the environment gave no reward."""
        given = [(end, reward) for end, reward in episode.ends if reward is not None]
        if episode.failure is not None:
            return None
        if not given:
            return self.cut_off_reward if episode.cut else None
        if self.rewards == "total":
            return sum(reward for _, reward in given)
        each = [0.0] * length
        for end, reward in given:
            each[lead + end - 1] += reward
        return each

    def _run(self, jobs: Sequence[tuple[Episode, Callable[[], Any]]]) -> list[tuple[Episode, Any]]:
        """What the jobs give, side by side; an episode whose job failed ends, and is left out."""
        settings = self.settings
        made = side_by_side([job for _, job in jobs], threads=settings.threads, timeout_s=settings.timeout_s)
        out = []
        for (episode, _), given in zip(jobs, made, strict=True):
            if isinstance(given, Failure):
                where = f"step {len(episode.ends) + 1}" if episode.turn is not None else "reset"
                episode.end(failure=f"{where} {given.what}", late=given.late)
            else:
                out.append((episode, given))
        return out

    def _room(self, episode: Episode) -> int:
        """Tokens that the episode may still have."""
        return len(episode.group.prompt) + self.settings.max_tokens - episode.length

    def _with_markers(self, answer: Answer) -> str:
        """The text with special tokens (in some vocabularies those around a call are), but for the one that ends it."""
        ids = answer.ids[:-1] if answer.finish == "stop" else answer.ids
        return str(self.sample.tokenizer.decode(ids, skip_special_tokens=False))


def _check(made: type, arguments: Mapping[str, Any], owner: str) -> None:
    """UserError for a class without `step`, that does not take the arguments, or whose methods name others."""
    if not callable(getattr(made, "step", None)):
        raise UserError(f"{owner} has no method `step`", "`step(self, text)` answers a turn of the assistant")
    try:
        inspect.signature(made).bind(**arguments)
    except TypeError as error:
        raise UserError(f"{owner} does not take these `arguments`: {error}") from error
    for name, offered in OFFERED.items():
        method = getattr(made, name, None)
        if method is None:
            continue
        bound = isinstance(inspect.getattr_static(made, name), (staticmethod, classmethod))
        wanted = list(inspect.signature(method).parameters.values())[0 if bound else 1 :]
        for one in wanted:
            if (
                one.name not in offered
                and one.default is one.empty
                and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
            ):
                raise UserError(
                    f"{owner}: `{name}` asks for '{one.name}'", f"it may ask for: {', '.join(offered) or 'nothing'}"
                )


def _drawn(*place: object) -> int:
    """A seed of an episode's own."""
    return random.Random(" ".join(map(str, place))).getrandbits(32)


def _in_common(contexts: Sequence[list[int]]) -> list[int]:
    """The ids with which all begin."""
    first, *others = contexts
    end = len(first)
    for other in others:
        end = next((i for i in range(min(end, len(other))) if other[i] != first[i]), min(end, len(other)))
    return first[:end]
