"""One side of a comparison, in a process of its own: loads once, then runs blocks of steps whenever it is told to.

Lines in: `go STEPS [OPTION]`, `peak [OPTION]` (one step, memory watched), `end`. A line of JSON out for each. What
libraries print goes to the error stream.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

from benchmarks.cases import Case
from benchmarks.measure import Block, Live, Timer, peak_rss


@dataclass
class Serve:
    """The other end of the line. A loop of its own asks `more` before every step and says `done` after it.

    choose: told the option of a block before it begins. timer: seconds by name that go with a block.
    """

    commands: IO[str]
    answers: IO[str]
    choose: Callable[[str], None] = lambda option: None
    timer: Timer | None = None
    left: int = 0
    tokens: int = 0
    loss: float | None = None
    _begun: tuple[float, float] = (0.0, 0.0)
    _steps: int = 0
    _live: Live | None = None

    def more(self) -> bool:
        """Whether to run another step; between blocks this waits for the next command."""
        if self.left:
            return True
        if self._steps:
            self._report()
        words = self.commands.readline().split()
        if not words or words[0] == "end":
            return False
        options = words[2:] if words[0] == "go" else words[1:]
        self.choose(options[0] if options else "")
        self.left = self._steps = int(words[1]) if words[0] == "go" else 1
        self.tokens = 0
        if self.timer is not None:
            self.timer.take()
        if words[0] == "peak":
            self._live = Live()
            self._live.start()
        self._begun = (time.perf_counter(), time.process_time())
        return True

    def done(self, tokens: int) -> None:
        """A step is over; so many tokens were processed."""
        self.left -= 1
        self.tokens += tokens

    def say(self, **what: Any) -> None:
        """A line to the other side."""
        self.answers.write(json.dumps(what) + "\n")
        self.answers.flush()

    def _report(self) -> None:
        wall, cpu = time.perf_counter() - self._begun[0], time.process_time() - self._begun[1]
        if self._live is not None:
            self.say(peak=self._live.stop())
            self._live = None
        else:
            block = Block(wall, cpu, self.tokens, self._steps)
            verbs = self.timer.take() if self.timer is not None else {}
            self.say(**block.as_dict(), rss=peak_rss(), loss=self.loss, verbs=verbs)
        self._steps = 0


def loop(serve: Serve, step: Callable[[], int]) -> None:
    """Run steps, each of which gives its tokens, until told to end."""
    serve.say(ready=True)
    while serve.more():
        serve.done(step())


def main() -> None:
    """`python -m benchmarks.worker JSON`: {side, case, folder, models, precision, threads, variant}."""
    asked = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import torch

    torch.set_num_threads(asked["threads"])
    serve = Serve(sys.stdin, answers)
    case = Case(**asked.pop("case"))
    side = asked.pop("side")
    if side == "trl":
        from benchmarks.peer import run
    elif side == "limit":
        from benchmarks.limit import run
    else:
        from benchmarks.ours import run
    run(serve, case, asked)


if __name__ == "__main__":
    main()
