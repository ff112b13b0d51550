"""Outcomes of hostile inputs, counted. A defect is an exception that is no clear error, a hang, or a file written."""

from __future__ import annotations

import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

#: seconds after which an input counts as one that hangs
LIMIT_S = 30.0


class HangError(BaseException):
    """An input took longer than LIMIT_S; no `except Exception` on the way may keep it."""


@dataclass
class Outcomes:
    """How many inputs had which outcome, and a text for every defect."""

    counts: Counter[str] = field(default_factory=Counter)
    defects: list[str] = field(default_factory=list)

    @property
    def tried(self) -> int:
        """Inputs in all."""
        return sum(self.counts.values())

    def note(self, outcome: str, what: str = "") -> None:
        """One input more."""
        self.counts[outcome] += 1
        if outcome.startswith("defect"):
            self.defects.append(f"{outcome}: {what}")


class Unclear(AssertionError):  # noqa: N818 - a finding of the suite
    """An input was refused, or taken, in a way that is not allowed."""


@contextmanager
def limited(seconds: float = LIMIT_S) -> Iterator[None]:
    """HangError once the time is up. For the main thread."""

    def late(_: int, frame: FrameType | None) -> None:
        raise HangError("".join(traceback.format_stack(frame)[-6:]))

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def judged(outcomes: Outcomes, work: Callable[[], str], about: str) -> None:
    """Run `work`, which names the outcome; whatever it raises is a defect."""
    try:
        with limited():
            outcomes.note(work())
    except HangError as hang:
        outcomes.note("defect: hang", f"{about}\n{hang}")
    except Unclear as found:
        outcomes.note("defect: unclear", f"{about}: {found}")
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        where = "".join(traceback.format_exception(error)[-4:])
        outcomes.note(f"defect: {type(error).__name__}", f"{about}\n{where}")


def each(strategy: st.SearchStrategy[Any], number: int, work: Callable[[Any], None], *, start: int = 0) -> None:
    """Call `work` with so many values of a strategy, the same ones for the same start."""
    done = [0]
    if not number:
        return

    @seed(start)
    @settings(
        max_examples=number, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def one(value: Any) -> None:
        if done[0] < number:
            done[0] += 1
            work(value)

    one()


def tree_of(folder: Path) -> dict[str, int]:
    """Every path under a folder with its size."""
    return {str(p.relative_to(folder)): p.lstat().st_size for p in sorted(folder.rglob("*"))}
