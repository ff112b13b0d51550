"""A Python function as a reward. Two ways to write one; which one it is, is told by the arguments that it names.

- For one answer: any of `prompt` (text), `answer` (text), `columns` (of the row), `ids` (token ids), `finish` ("stop"
  or "length"); gives a number, a list with one number per token, or None where it cannot judge.
- For all answers at once, as TRL calls it: any of `completions`, `prompts`, `completion_ids`, and of the row's columns
  by their names, all lists with an entry per answer (`trainer_state` is None, `log_extra` and `log_metric` do nothing);
  gives a list of numbers or None. Completions are strings; where the row's `prompt` or `messages` is a conversation,
  prompts are lists of messages, and completions lists with one message of the assistant.

Both may be `async`. Source of the second: the documentation of TRL 1.16, GRPO trainer, custom reward functions.
"""

import asyncio
import inspect
import math
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from unified import Answer, Field, Problem, PromptGroup, Reward, Settings, UserError, hookimpl
from unified_plugins.rewards._user_code import look_up, module_files, parameters_of
from unified_plugins.rewards._user_function import could_name, file_and_name, find_function

ONE = ("prompt", "answer", "columns", "ids", "finish")
#: what makes a function one for all answers at once
ALL = ("completions", "prompts", "completion_ids")
#: what is there for functions that were written for TRL, and says nothing
_OF_TRL = ("trainer_state", "log_extra", "log_metric")
#: columns that the arguments of the same meaning stand for
_TAKEN = {"prompt", "prompts", "completion", "completions", "completion_ids", *_OF_TRL}

_NOBODY_CALLS = "{} names none of the arguments that say how it is to be called"
_HOW = f"name `answer` to judge one answer ({', '.join(ONE)}), or `completions` to judge all at once"

Judged = list[list[float | list[float] | None]]


class PythonSettings(Settings):
    """Which function."""

    function: str = Field(description="package.module:function, package.module.function, or FILE.py:function")
    file: str | None = Field(None, description="the file with the function, relative to the recipe")
    arguments: dict[str, Any] = Field({}, description="further arguments by name, the same at every call")
    completions: Literal["auto", "text", "messages"] = Field(
        "auto", description="for all answers at once: what answers are given as; auto: as the row has its prompt"
    )

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        """`function: rewards.py:right` is `file: rewards.py, function: right`: a file that a run's lineage sees."""
        file, name = file_and_name(str(data.get("function", "")))
        return {**data, "function": name, "file": file} if file is not None and "file" not in data else data

    def model_post_init(self, _: Any) -> None:
        """ValueError for a name that can be none of a function."""
        file, name = file_and_name(self.function)
        if not could_name(name, in_file=bool(file or self.file)):
            raise ValueError("function is written package.module:function, or FILE.py:function")


def check(settings: PythonSettings, home: Path, columns: frozenset[str] | None) -> list[Problem]:
    """A function that is not there, or needs what nobody gives it, as far as its text shows; it is not run."""
    file, name = file_and_name(settings.function)
    seen = look_up(settings.file or file, name, home, what="function", key="function")
    named = parameters_of(seen.node)
    if seen.problems or named is None:
        return seen.problems
    every, needed, takes_all = named
    if not any(one in every for one in (*ONE, *ALL)):
        return [Problem(_NOBODY_CALLS.format(settings.function), ("function",), (_HOW,))]
    at_once = any(one in every for one in ALL)
    if at_once and columns is None:
        return []
    offered = (columns or frozenset()) - _TAKEN | {*ALL, *_OF_TRL} if at_once else {*ONE}
    given = offered | settings.arguments.keys()
    lacking = [one for one in needed if one not in given]
    unknown = [one for one in settings.arguments if one not in every and not takes_all]
    if not (lacking or unknown):
        return []
    what = f"does not take the argument '{unknown[0]}'" if unknown else f"needs the argument '{lacking[0]}'"
    if unknown:
        hints = [f"it takes: {', '.join(every)}"]
    else:
        hints = ["what else it needs stands in `arguments`" + (" or in a column" if at_once else "")]
    if not unknown and at_once:
        hints.append(f"the data have: {', '.join(sorted(columns or ()))}")
    return [Problem(f"{settings.function} {what}", ("arguments",) if unknown else ("function",), tuple(hints))]


def files(settings: PythonSettings, home: Path) -> dict[str, Path]:
    """The file of the module with the function: what is written there decides what the reward is."""
    file, name = file_and_name(settings.function)
    return module_files(settings.file or file, name, home)


def judge(groups: list[PromptGroup], settings: PythonSettings, folder: Path | None = None) -> Judged:
    """What the function gives for every answer.

    Raises UserError: no such function, or it needs an argument that is not there; ValueError: it gave something else
    than one number, or None, for every answer.
    """
    file, name = file_and_name(settings.function)
    function = find_function(settings.file or file, name, folder)
    parameters = inspect.signature(function).parameters
    if any(name in parameters for name in ALL):
        return _all_at_once(function, groups, settings)
    if any(name in parameters for name in ONE):
        return _one_by_one(function, groups, settings)
    raise UserError(f"reward 'python': {_NOBODY_CALLS.format(settings.function)}", _HOW)


def _one_by_one(function: Callable[..., Any], groups: list[PromptGroup], settings: PythonSettings) -> Judged:
    given = [
        _tried(function, settings, {
            "prompt": group.text, "answer": answer.text, "columns": dict(group.columns), "ids": list(answer.ids),
            "finish": answer.finish,
        })
        for group in groups
        for answer in group.answers
    ]  # fmt: skip
    return _shared_out(_awaited(given), groups)


def _tried(function: Callable[..., Any], settings: PythonSettings, available: Mapping[str, Any]) -> Any:
    """What it gives, or the exception that it raised; UserError for arguments that are not there."""
    try:
        return _call(function, settings, available)
    except UserError:
        raise
    except Exception as error:
        return error


def _all_at_once(function: Callable[..., Any], groups: list[PromptGroup], settings: PythonSettings) -> Judged:
    pairs = [(group, answer) for group in groups for answer in group.answers]
    if not pairs:
        return [[] for _ in groups]
    names = {name for group in groups for name in group.columns} - _TAKEN
    written = [_written(group, answer, settings.completions) for group, answer in pairs]
    available = {
        **{name: [group.columns.get(name) for group, _ in pairs] for name in sorted(names)},
        "prompts": [prompt for prompt, _ in written],
        "completions": [completion for _, completion in written],
        "completion_ids": [list(answer.ids) for _, answer in pairs],
        "trainer_state": None, "log_extra": _nothing, "log_metric": _nothing,
    }  # fmt: skip
    (given,) = _awaited([_tried(function, settings, available)])
    if isinstance(given, Exception):
        return _shared_out([given] * len(pairs), groups)
    if not isinstance(given, Iterable) or len(rewards := list(given)) != len(pairs):
        what = f"{len(rewards)} rewards" if isinstance(given, Iterable) else f"a {type(given).__name__}"
        raise ValueError(f"{settings.function} gave {what} for {len(pairs)} answers")
    return _shared_out(rewards, groups)


def _call(function: Callable[..., Any], settings: PythonSettings, available: Mapping[str, Any]) -> Any:
    """Call it with what it names; with all that there is where it takes **keywords."""
    parameters = inspect.signature(function).parameters.values()
    given = {**available, **settings.arguments}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        unknown = [name for name in settings.arguments if name not in {p.name for p in parameters}]
        missing = [
            p.name for p in parameters if p.name not in given and p.default is p.empty and p.kind != p.VAR_POSITIONAL
        ]
        if unknown or missing:
            what = f"does not take the argument '{unknown[0]}'" if unknown else f"needs the argument '{missing[0]}'"
            raise UserError(
                f"reward 'python': {settings.function} {what}",
                f"it may name: {', '.join(given)}; what else it needs stands in `arguments` or in a column of the data",
            )
        given = {p.name: given[p.name] for p in parameters if p.name in given}
    return function(**given)


def _written(group: PromptGroup, answer: Answer, how: str) -> tuple[Any, Any]:
    """A prompt and its completion, as text or as messages."""
    turns = _conversation(group) if how != "text" else None
    if turns is None and how != "messages":
        return group.text, answer.text
    said = [{"role": "assistant", "content": answer.text}]
    return turns if turns is not None else [{"role": "user", "content": group.text}], said


def _conversation(group: PromptGroup) -> list[dict[str, Any]] | None:
    """The prompt of a row as messages, without the answers behind it; None where it is text."""
    for name in ("prompt", "messages"):
        turns = group.columns.get(name)
        if isinstance(turns, (list, tuple)) and turns and all(isinstance(t, Mapping) and "role" in t for t in turns):
            kept = [dict(turn) for turn in turns]
            while kept and kept[-1]["role"] == "assistant":
                kept.pop()
            return kept
    return None


def _awaited(given: Sequence[Any]) -> list[Any]:
    """The results, those of async functions awaited together."""
    if not any(inspect.isawaitable(one) for one in given):
        return list(given)

    async def together() -> list[Any]:
        waiting = [asyncio.ensure_future(one if inspect.isawaitable(one) else _value(one)) for one in given]
        return list(await asyncio.gather(*waiting, return_exceptions=True))

    with ThreadPoolExecutor(1) as thread:  # a loop of its own, also where one runs already, as in a notebook
        return thread.submit(asyncio.run, together()).result()


async def _value(one: Any) -> Any:
    return one


def _shared_out(rewards: Sequence[Any], groups: list[PromptGroup]) -> Judged:
    """The rewards of all answers as a list for every group, as floats; None, with the reason, where one failed."""
    left = iter(rewards)
    return [[_kept(next(left), group) for _ in group.answers] for group in groups]


def _kept(value: Any, group: PromptGroup) -> Any:
    """A judgement; None for an exception, or a number that is none, which the group then tells."""
    if isinstance(value, Exception):
        at = traceback.extract_tb(value.__traceback__)
        where = f" ({Path(at[-1].filename).name}:{at[-1].lineno})" if at else ""
        group.reasons.append(f"{type(value).__name__}: {value}{where}")
        return None
    number = _number(value)
    if any(not math.isfinite(x) for x in (number if isinstance(number, list) else [number or 0.0])):
        group.reasons.append(f"the function gave {value}")
        return None
    return number


def _number(value: Any) -> Any:
    """A float, a list of floats or None. TypeError or ValueError for what is no number."""
    if value is None:
        return None
    return [float(x) for x in value] if isinstance(value, (list, tuple)) else float(value)


def _nothing(*_: Any, **__: Any) -> None:
    """In the place of what a trainer offers for its log."""


@hookimpl
def unified_rewards() -> list[Reward]:
    """Offer it as `reward: {name: python, function: rewards.py:right}`."""
    return [Reward("python", PythonSettings, judge=judge, check=check, files=files)]
