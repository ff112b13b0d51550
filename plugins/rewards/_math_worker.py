"""A process that compares mathematics: reads one job per line on its input and answers with one word per line.

Run as a script, so that it loads math-verify and nothing else of this project. A job is a JSON object: `golds`
(texts), `text` (the answer), `digits`, `seconds`. A job that needs more processor time ends the process by a signal of
the system (SIGPROF), which no computation can hold up; the one who asked sees that the process is gone.
"""

import json
import logging
import os
import re
import resource
import signal
import sys
from contextlib import suppress
from functools import lru_cache
from typing import Any

from math_verify import parse, verify

#: what may stand between boxes that are one answer: "\\boxed{1} and \\boxed{2}"
_LINK = re.compile(r"[\s$]*(?:,|;|,?\s*(?:and|or))[\s$]*")
#: bytes of address space, so that one huge number cannot fill the machine
MEMORY = 4 << 30


@lru_cache(maxsize=4096)
def gold_of(text: str) -> tuple[Any, ...]:
    r"""The right answer as expressions, () where it cannot be read.

    A bare one is read as the contents of \boxed{}; one that marks its answer (\boxed, a formula, ####) by its mark.
    """
    marked = "\\boxed" in text or "####" in text or text.count("$") > 1 or "\\(" in text or "\\[" in text
    return tuple(read(text if marked else f"\\boxed{{{text}}}")) if text.strip() else ()


def read(text: str) -> list[Any]:
    """The expressions that a text ends on, [] where there are none."""
    text = from_last_box(text)
    if "####" in text and "\\boxed" not in text:
        text = f"\\boxed{{{text.rpartition('####')[2].strip().partition(chr(10))[0]}}}"
    return list(parse(text, fallback_mode="no_fallback", parsing_timeout=None))


def from_last_box(text: str) -> str:
    r"""The last \boxed{} of a text, with those that a comma, "and" or "or" joins to it; the text where there is none.

    The library would take every box of a text, an answer and its correction, for the elements of one set. "" where the
    last box is not closed.
    """
    starts = [match.start() for match in re.finditer(r"\\boxed\s*\{", text)]
    if not starts:
        return text
    first = starts[-1]
    for before in reversed(starts[:-1]):
        if not _LINK.fullmatch(text[_end_of_braces(text, before) : first]):
            break
        first = before
    return re.sub(r"(?<!\\)\$", "", text[first : _end_of_braces(text, starts[-1])])


def _end_of_braces(text: str, start: int) -> int:
    """Where the braces that open behind `start` are closed again; 0 where they never are."""
    depth = 0
    for brace in re.finditer(r"\\.|[{}]", text[start:], re.DOTALL):  # \{ is a sign and no brace
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if brace[0] == "}" and depth == 0:
            return start + brace.end()
    return 0


def verdict(job: dict[str, Any]) -> str:
    """right, wrong, or "no gold" where none of the right answers can be read."""
    golds = [found for gold in job["golds"] if (found := gold_of(gold))]
    if not golds:
        return "no gold"
    said = read(job["text"])
    same = (verify(list(g), said, float_rounding=job["digits"], timeout_seconds=None) for g in golds)
    return "right" if said and any(same) else "wrong"


def main() -> None:
    """Answer until the input ends."""
    logging.disable(logging.CRITICAL)
    with suppress(ValueError, OSError):  # not every system keeps such a limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    print("ready", file=answers, flush=True)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):  # what a library prints is no answer
        os.dup2(nowhere, stream.fileno())
    for line in sys.stdin:
        job = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, job["seconds"])
        try:
            said = verdict(job)
        except Exception as error:  # whatever the library raises is an answer that was not judged
            said = f"failed {type(error).__name__}"
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(said, file=answers, flush=True)


if __name__ == "__main__":
    main()
