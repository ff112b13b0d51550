"""The `chat` command: a conversation with a model at the terminal, rendered as in training."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from unified.data import Sampling
from unified.errors import UserError
from unified.generate_tool import Speaker

HELP = "/reset forgets the conversation, /quit (or Ctrl-D) ends it, Ctrl-C stops an answer."
#: what a tokenizer writes for bytes that are no whole character yet
_HALF = "\ufffd"


def converse(
    speaker: Speaker, lines: Iterator[str], write: Callable[[str], None], sampling: Sampling, system: str | None = None,
    aside: Callable[[str], None] | None = None,
) -> int:  # fmt: skip
    """Answer line by line until /quit or the end of the input; how many turns were answered.

    lines: what the person says; write: shows a piece of text as it is, with no line break of its own. An answer is
    shown as it is drawn. Ctrl-C ends it: what is there of it stays in the conversation. A turn that cannot be answered,
    or was stopped before its first word, is taken back and said why. Ctrl-C between answers ends the conversation.
    aside: shows a line behind an answer that was cut off; without, `write`.
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
            write("(the conversation begins anew)\n")
        elif line.startswith("/"):
            write(f"({HELP})\n")
        elif line:
            turns.append({"role": "user", "content": line})
            text = _answered(speaker, turns, sampling, write, aside or write)
            if text is None:
                turns.pop()
            else:
                turns.append({"role": "assistant", "content": text})
                answered += 1


def _answered(
    speaker: Speaker, turns: list[Mapping[str, Any]], sampling: Sampling, write: Callable[[str], None],
    aside: Callable[[str], None],
) -> str | None:  # fmt: skip
    """The answer to the conversation so far, which is shown; None where there is none, which is said."""
    growing = Growing(speaker.tokenizer, write)
    try:
        (answers,) = speaker.answer([speaker.rendered(turns)], sampling, told=growing.take)
    except UserError as error:
        write(f"({error}\n    /reset forgets the conversation)\n")
        return None
    except KeyboardInterrupt:
        if growing.shown:
            write("\n(stopped; what there is of the answer stays)\n")
            return growing.shown
        write("(stopped; what you said last is taken back)\n")
        return None
    growing.end(answers[0].text)
    if answers[0].finish == "length":
        aside(f"({_cut_off(len(answers[0].ids), sampling.max_tokens)})\n")
    return answers[0].text


def _cut_off(tokens: int, most: int) -> str:
    """What ended an answer that did not end by itself: its length, or the room that the conversation left."""
    why = "--max-tokens" if tokens >= most else "the model holds no more; /reset forgets the conversation"
    return f"cut off after {tokens} token{'s' * (tokens != 1)}: {why}"


class Growing:
    """Shows an answer while it is drawn: each time the text by which the tokens have grown."""

    def __init__(self, tokenizer: Any, write: Callable[[str], None]) -> None:
        self.shown = ""
        self._tokenizer, self._write, self._ids = tokenizer, write, list[int]()

    def take(self, prompt: int, answer: int, token: int) -> None:
        """One more token. Bytes that are no whole character yet wait for the next one."""
        self._ids.append(token)
        text = str(self._tokenizer.decode(self._ids, skip_special_tokens=True))
        if not text.endswith(_HALF):
            self._grow(text)

    def end(self, text: str) -> None:
        """The whole answer: what has not been shown of it, and a line break. An engine may tell nothing on the way.

        Where the whole reads otherwise than its beginning did (a tokenizer that tidies up spaces), it is shown again.
        """
        if not text.startswith(self.shown):
            self._write("\n")
            self.shown = ""
        self._grow(text)
        self._write("\n")

    def _grow(self, text: str) -> None:
        if text.startswith(self.shown) and len(text) > len(self.shown):
            self._write(text[len(self.shown) :])
            self.shown = text


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
