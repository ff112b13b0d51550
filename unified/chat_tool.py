"""The `chat` command: a conversation with a model at the terminal, rendered as in training."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from unified.data import Sampling
from unified.errors import UserError
from unified.generate_tool import Speaker

HELP = "/reset forgets the conversation, /quit (or Ctrl-D) ends it, Ctrl-C stops an answer."


def converse(
    speaker: Speaker, lines: Iterator[str], say: Callable[[str], None], sampling: Sampling, system: str | None = None
) -> int:
    """Answer line by line until /quit or the end of the input; how many turns were answered.

    lines: what the person says; say: prints one line. A turn that cannot be answered is taken back and said why; so is
    one whose answer was stopped by Ctrl-C. Ctrl-C between answers ends the conversation.
    """
    start: list[Mapping[str, Any]] = [{"role": "system", "content": system}] if system is not None else []
    turns, answered = list(start), 0
    while True:
        try:
            line = next(lines, "/quit").strip()
        except KeyboardInterrupt:
            return answered
        if line == "/quit":
            return answered
        if line == "/reset":
            turns = list(start)
            say("(the conversation begins anew)")
        elif line.startswith("/"):
            say(f"({HELP})")
        elif line:
            turns.append({"role": "user", "content": line})
            text = _answered(speaker, turns, sampling, say)
            if text is None:
                turns.pop()
            else:
                say(text)
                turns.append({"role": "assistant", "content": text})
                answered += 1


def _answered(
    speaker: Speaker, turns: list[Mapping[str, Any]], sampling: Sampling, say: Callable[[str], None]
) -> str | None:
    """The answer to the conversation so far; None where there is none, which is said."""
    try:
        (answers,) = speaker.answer([speaker.rendered(turns)], sampling)
    except UserError as error:
        say(f"({error}\n    /reset forgets the conversation)")
        return None
    except KeyboardInterrupt:
        say("(stopped; what you said last is taken back)")
        return None
    return answers[0].text


def lines_of_person() -> Iterator[str]:
    """What is typed, with a prompt where a person sits there; ends with the input."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    import readline  # noqa: F401 - `input` uses it for editing and history

    while True:
        try:
            yield input("> ")
        except EOFError:
            return
