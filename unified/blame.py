"""Who and where, for messages: the part with the plugin that offers it, the line that raised, and the sample."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unified.data import Answer, PromptGroup
from unified.errors import PluginError, UserError
from unified.parts import Part
from unified.registry import catalogue

#: characters of a prompt or an answer in a message
EXCERPT = 60
#: packages whose code is not the plugin's: where it raised there, whoever called it is named
_NOT_THEIRS = frozenset({"unified", "torch", "transformers", "numpy", *sys.stdlib_module_names}) - {"__main__"}


def named(part: Part) -> str:
    """Kind, name and plugin of a part: reward 'python' (plugin unified_plugins.rewards.python).

    Without the plugin where the catalogue in use does not hold the part.
    """
    kind = str(getattr(part, "of", part.kind))  # a rule's kind is `of`
    known = catalogue().find(kind, part.name) is part
    return f"{kind} '{part.name}'" + (f" ({catalogue().provider(kind, part.name)})" if known else "")


def raised(what: str, error: BaseException) -> str:
    """What a plugin's function raised, and the last line of a plugin on the way there."""
    frames = [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__) if _theirs(frame.f_globals)]
    where = f" ({Path(frames[-1][0].f_code.co_filename).name}:{frames[-1][1]})" if frames else ""
    return f"{what} raised {type(error).__name__}: {error}{where}"


def _theirs(module: dict[str, Any]) -> bool:
    return str(module.get("__name__", "")).partition(".")[0] not in _NOT_THEIRS


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the machine itself (where torch has no error class of its own), had no memory left."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


@contextmanager
def named_stage(stage: str) -> Iterator[None]:
    """Put the stage in front of what plugins raise, once."""
    try:
        yield
    except PluginError as error:
        if str(error).startswith(f"stage '{stage}'"):
            raise
        raise PluginError(f"stage '{stage}': {error}") from error


def excerpt(text: str) -> str:
    """The beginning of a text, in quotes, line ends written out."""
    return repr(text if len(text) <= EXCERPT else text[:EXCERPT] + "…")


def sample(group: PromptGroup, answer: int, token: int | None = None, *, tokenizer: Any = None) -> str:
    """Which answer, and which token of it: prompt 17 ('2+2='), answer 3 ('5'), token 0 ('5').

    The number of a prompt is its row in the dataset; answers and tokens are counted from 0.
    """
    said: Answer = group.answers[answer]
    text = said.text or (_decoded(tokenizer, said.ids) if tokenizer is not None else "")
    prompt = group.text or (_decoded(tokenizer, group.prompt) if tokenizer is not None else "")
    out = f"prompt {group.key} ({excerpt(prompt)}), answer {answer} ({excerpt(text)})"
    if token is None:
        return out
    word = f" ({_decoded(tokenizer, said.ids[token : token + 1])!r})" if tokenizer is not None else ""
    return f"{out}, token {token}{word}"


def sample_at(groups: Sequence[PromptGroup], row: int, token: int | None = None, *, tokenizer: Any = None) -> str:
    """The same of the answer in that row of the groups' answers, one after the other."""
    for group in groups:
        if row < len(group.answers):
            return sample(group, row, token, tokenizer=tokenizer)
        row -= len(group.answers)
    raise IndexError(f"the groups have no answer in row {row}")


@contextmanager
def blaming(part: Part, function: str) -> Iterator[None]:
    """Attribute to a part what is raised, but for mistakes of the user and what is attributed already."""
    try:
        yield
    except (UserError, PluginError):
        raise
    except Exception as error:
        if is_out_of_memory(error):  # no part's mistake; the engine says which budget to lower
            raise
        raise PluginError(raised(f"{function} of {named(part)}", error)) from error


@contextmanager
def named_step(stage: str, step: int) -> Iterator[None]:
    """Put stage and step, which counts from 1, in front of what plugins raise; once."""
    where = f"stage '{stage}'"
    try:
        yield
    except PluginError as error:
        if str(error).startswith(f"{where}, step "):
            raise
        raise PluginError(f"{where}, step {step}: {str(error).removeprefix(f'{where}: ')}") from error


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    try:
        return str(tokenizer.decode(list(ids)))
    except Exception:  # ids that stand for nothing: the message says where they are all the same
        return "?"
