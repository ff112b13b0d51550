"""Clocks, memory, and time by name, the same for every side. Imports torch where it is used."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Block:
    """What one block of steps took.

    wall, cpu: seconds, the latter of all threads of the process. tokens: processed, padding not counted. steps: in it.
    """

    wall: float
    cpu: float
    tokens: int
    steps: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Timer:
    """Exclusive CPU seconds by name: what is called inside counts for itself alone."""

    def __init__(self, clock: Callable[[], float] = time.process_time) -> None:
        self.clock = clock
        self.seconds: dict[str, float] = {}
        self._inside: list[float] = []  # per open call, seconds of the calls inside it

    def wrap(self, owner: Any, name: str, label: str) -> None:
        """Time a function of a module, class or object. Raises AttributeError, with both names, if it is not there."""
        function = getattr(owner, name, None)
        if function is None:
            raise AttributeError(f"{getattr(owner, '__name__', owner)} has no '{name}' to time as '{label}'")

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inside.append(0.0)
            begun = self.clock()
            try:
                return function(*args, **kwargs)
            finally:
                whole = self.clock() - begun
                self.seconds[label] = self.seconds.get(label, 0.0) + whole - self._inside.pop()
                if self._inside:
                    self._inside[-1] += whole

        setattr(owner, name, timed)

    def take(self) -> dict[str, float]:
        """What was gathered, which is then forgotten."""
        seconds, self.seconds = self.seconds, {}
        return seconds


def peak_rss() -> int:
    """The most memory that this process ever held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Live:
    """Peak of the bytes of tensors allocated since `start`, as the allocator reports them to torch's profiler.

    What was there before (weights, moments of the optimiser, kept copies) does not count, nor does its release.
    """

    def __init__(self) -> None:
        self._profile: Any = None

    def start(self) -> None:
        """Begin to listen."""
        from torch.profiler import ProfilerActivity, profile

        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False)
        self._profile.__enter__()

    def stop(self) -> int:
        """The peak in bytes."""
        self._profile.__exit__(None, None, None)
        events = [e for e in self._profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        self._profile = None
        return highest([(e.start_ns(), e.nbytes()) for e in events])


def highest(changes: Sequence[tuple[int, int]]) -> int:
    """The largest running sum of (time, bytes), in order of time; 0 without a change."""
    held = most = 0
    for _, number in sorted(changes, key=lambda c: c[0]):
        held += number
        most = max(most, held)
    return most
