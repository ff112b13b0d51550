"""Ctrl-C and SIGTERM: noted while a stage trains, so that it stops where a checkpoint is exact; elsewhere at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal(KeyboardInterrupt):
    """Somebody asked to stop. number: of the signal."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.number = int(number)


def exit_code(error: KeyboardInterrupt) -> int:
    """128 + the signal, as shells have it: 130 for SIGINT, 143 for SIGTERM."""
    return 128 + (error.number if isinstance(error, StopSignal) else int(signal.SIGINT))


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """While entered, SIGTERM raises as Ctrl-C does. Outside the main thread nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _raise(number: int, frame: FrameType | None) -> None:
    raise StopSignal(number)


class StopRequest:
    """While entered, the first SIGINT or SIGTERM is only noted in `asked` (its number, 0 before).

    alone: there are no other processes that would wait for this one. Then the second signal stops at once, and within
    `at_once` the first one does. Several processes leave together; their launcher repeats signals, so there a second
    one changes nothing.
    Outside the main thread signals cannot be caught, and nothing changes.
    """

    def __init__(self, *, alone: bool = True) -> None:
        self.asked = 0
        self._alone = alone
        self._at_once = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise StopSignal where the work is, because what it has done until then can be put back."""
        self._at_once = self._alone
        try:
            if self._at_once and self.asked:
                raise StopSignal(self.asked)
            yield
        finally:
            self._at_once = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        second = self.asked and self._alone
        self.asked = self.asked or number
        if second or self._at_once:
            self._at_once = False
            raise StopSignal(self.asked)
