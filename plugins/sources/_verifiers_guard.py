"""Functions of a rubric that fail are noticed: the package takes what such a function gives for 0.0.

Pure: nothing of the package is imported here. A rubric is anything with `funcs` and `weights`, `rubrics` (a group of
such), or `env_map` (one in each of several environments).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

#: what marks a function of several rollouts, as the package tells them
_OF_GROUP = frozenset({"states", "prompts", "completions", "answers", "tasks", "infos"})
#: keys of a rollout's state: why it has no reward, and which measures (functions of weight 0) it lacks
UNJUDGED, UNMEASURED = "unified_unjudged", "unified_unmeasured"


def guard(rubric: Any) -> None:
    """Replace every function of the rubric, in place, by one that notes its failures in the state of the rollout.

    Functions that are guarded already stay. A failure is an exception, None, or a number that is not finite; the
    package sees 0.0 then, and goes on.
    """
    for one in _all(rubric):
        weights = list(getattr(one, "weights", []))
        for i, function in enumerate(one.funcs):
            if not hasattr(function, "unified_guarded"):
                one.funcs[i] = guarded(function, counts=i >= len(weights) or weights[i] != 0)


def _all(rubric: Any) -> Iterator[Any]:
    if isinstance(getattr(rubric, "funcs", None), list):
        yield rubric
    for inner in getattr(rubric, "rubrics", None) or ():
        yield from _all(inner)
    for environment in (getattr(rubric, "env_map", None) or {}).values():
        yield from _all(environment.rubric)


def guarded(function: Callable[..., Any], *, counts: bool) -> Callable[..., Any]:
    """The function under the same name and arguments, and one argument more, the state (or states) to note failures in.

    counts: whether it has a weight, so that without it there is no reward.
    """
    signature = inspect.signature(function)
    known = signature.parameters
    in_group = bool(_OF_GROUP & set(known)) or _gives_list(signature)
    needed = "states" if in_group else "state"
    takes_it = needed in known or any(p.kind is p.VAR_KEYWORD for p in known.values())
    name = getattr(function, "__name__", type(function).__name__)

    async def judged(**given: Any) -> Any:
        states = given[needed] if in_group else [given[needed]]
        try:
            found = function(**(given if takes_it else {k: v for k, v in given.items() if k != needed}))
            found = await found if inspect.isawaitable(found) else found
            values = list(found) if in_group else [found]
            if len(values) != len(states):
                raise ValueError(f"gave {len(values)} numbers for {len(states)} rollouts")
            why = [_why(value) for value in values]
        except Exception as error:
            values, why = [0.0] * len(states), [f"raised {type(error).__name__}: {error}"] * len(states)
        for state, reason in zip(states, why, strict=True):
            if reason is not None:
                _note(state, name, reason, counts=counts)
        good = [0.0 if reason is not None else float(value) for value, reason in zip(values, why, strict=True)]
        return good if in_group else good[0]

    more = [*known.values()]
    if not takes_it:
        place = next((i for i, p in enumerate(more) if p.kind is p.VAR_KEYWORD), len(more))
        more.insert(place, inspect.Parameter(needed, inspect.Parameter.KEYWORD_ONLY))
    judged.__name__ = name
    judged.__doc__ = function.__doc__
    judged.__signature__ = signature.replace(parameters=more)  # type: ignore[attr-defined]
    judged.unified_guarded = True  # type: ignore[attr-defined]
    return judged


def _gives_list(signature: inspect.Signature) -> bool:
    given = signature.return_annotation
    return given is list or getattr(given, "__origin__", None) is list


def _why(value: Any) -> str | None:
    """What is wrong with a number; None where nothing is."""
    if value is None:
        return "gave None"
    try:
        return None if math.isfinite(float(value)) else f"gave {value}"
    except (TypeError, ValueError):
        return f"gave {value!r}, which is no number"


def _note(state: Any, name: str, reason: str, *, counts: bool) -> None:
    if counts:
        state[UNJUDGED] = state.get(UNJUDGED) or f"{name} {reason}"
    else:
        state[UNMEASURED] = [*(state.get(UNMEASURED) or []), name]
