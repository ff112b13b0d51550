"""What a reward gives is looked at before it is believed: its shape, its numbers, and how long it took."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from unified.blame import named, sample
from unified.data import Answer, PromptGroup
from unified.errors import PluginError, UserError
from unified.guard import Finding
from unified.limits import TookTooLongError, within

if TYPE_CHECKING:
    from unified.settings import Chosen
    from unified.stream import Stream

Given = list[list[Any]]


def judge_groups(
    stream: Stream, reward: Chosen, groups: list[PromptGroup], found: Callable[[Finding], None] | None
) -> None:
    """Write the reward of every answer; None where the judgement failed or took too long.

    found: told of numbers that are NaN or infinite, which are missing then; without, they raise UserError.
    Raises PluginError for judgements that do not fit, or that are no numbers.
    """
    given = _in_time(stream, reward, groups)
    for rewards, group in zip(given, groups, strict=True):
        for i, (value, answer) in enumerate(zip(rewards, group.answers, strict=True)):
            if answer.failed:
                answer.reward = None
                continue
            problem = _problem(stream, reward, value, answer)
            if problem is not None:
                where = sample(group, i)
                text = f"{named(reward.part)} gave {problem} for {where}"
                if found is None:
                    raise UserError(
                        f"stage '{stream.stage}': {text}", "a reward is finite, or None where the judgement failed"
                    )
                found(Finding("reward", text))
                group.reasons.append(f"the reward gave {problem}")
                value = None
            answer.reward = list(value) if isinstance(value, (list, tuple)) else value


def _in_time(stream: Stream, reward: Chosen, groups: list[PromptGroup]) -> Given:
    """The judgements of all groups; where these take longer than the limit, of each group by itself.

    A group then has its share of the limit, so that both together take twice the limit at most.
    """
    models = stream.models_of(reward)
    limit = None if models else stream.time_limit
    before = _noted(groups)
    try:
        return _asked(stream, reward, groups, models, limit)
    except TookTooLongError:
        _put_back(groups, before)
    assert limit is not None
    given: Given = []
    for group in groups:
        share = limit / len(groups)
        before = _noted([group])
        try:
            given += _asked(stream, reward, [group], models, share)
        except TookTooLongError as late:
            _put_back([group], before)
            group.reasons.append(
                f"{named(reward.part)} {late}, the share of one prompt in `reward_timeout` ({limit:g} s)"
            )
            given.append([None] * len(group.answers))
    return given


def _asked(
    stream: Stream, reward: Chosen, groups: list[PromptGroup], models: Mapping[str, Any], limit: float | None
) -> Given:
    """One call; a list for every group with an entry for every answer, or PluginError."""
    about = {"models": models, "folder": stream.folder}
    given = within(limit, lambda: stream.call(reward, "judge", groups=groups, settings=reward.settings, **about))
    wanted = [len(g.answers) for g in groups]
    lists = isinstance(given, (list, tuple)) and all(isinstance(r, (list, tuple)) for r in given)
    if lists and [len(r) for r in given] == wanted:
        return [list(r) for r in given]
    name = type(given).__name__
    what: Any = [len(r) for r in given] if lists else "no lists" if isinstance(given, list) else name
    raise PluginError(
        f"stage '{stream.stage}': {named(reward.part)} gave {what} judgements for {wanted} answers; "
        "it must give a list for every group, with an entry for every answer"
    )


def _noted(groups: list[PromptGroup]) -> list[Any]:
    """What a reward may write into."""
    return [([dict(a.columns) for a in g.answers], list(g.reasons)) for g in groups]


def _put_back(groups: list[PromptGroup], before: list[Any]) -> None:
    """New answers in the place of those that a call which was left behind may still write into."""
    for group, (columns, reasons) in zip(groups, before, strict=True):
        group.answers[:] = [replace(a, columns=c) for a, c in zip(group.answers, columns, strict=True)]
        group.reasons = reasons


def _problem(stream: Stream, reward: Chosen, value: Any, answer: Answer) -> str | None:
    """The number of a judgement that is NaN or infinite, as it is written; PluginError for what is no number."""
    several = isinstance(value, (list, tuple))
    numbers = value if several else [0.0 if value is None else value]
    where = f"stage '{stream.stage}': {named(reward.part)} gave"
    if several and len(value) != len(answer.ids):
        raise PluginError(f"{where} {len(value)} numbers for the {len(answer.ids)} tokens of {_short(answer)}")
    for number in numbers:
        if not isinstance(number, (int, float)):
            raise PluginError(
                f"{where} {number!r} for the answer {_short(answer)}; "
                "a reward is a finite number, or None where the judgement failed"
            )
        if number != number or abs(number) == float("inf"):
            return repr(number)
    return None


def _short(answer: Answer) -> str:
    return repr(answer.text[:60])
