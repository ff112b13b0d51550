"""A time limit on a call that somebody else wrote."""

from __future__ import annotations

import contextvars
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")
#: seconds between further alarms, for code that catches the first or waits for a thread of its own that hangs
AGAIN_S = 1.0


class TookTooLongError(BaseException):
    """A call did not end within its limit. No Exception, so that the code it ends does not take it for one of its own.

    seconds: the limit.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(f"took longer than {seconds:g} s")
        self.seconds = seconds


def within(seconds: float | None, call: Callable[[], T]) -> T:
    """What the call gives. Raises TookTooLongError where it takes longer than so many seconds; None: it may.

    In the main thread an alarm ends Python code where it stands, also regular expressions, sleeps and reads; not what
    waits inside a library without coming back to the interpreter. In another thread, or on systems without alarms, the
    call runs in a thread of its own, which is left behind: Python cannot end it.
    """
    if seconds is None:
        return call()
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer"):
        return _interrupted(seconds, call)
    return _left_behind(seconds, call)


def _interrupted(seconds: float, call: Callable[[], T]) -> T:
    """An alarm that was set before (by whoever called us) is set again for what is left of it."""
    over = False

    def ring(number: int, frame: FrameType | None) -> None:
        if not over:
            raise TookTooLongError(seconds)

    began = time.monotonic()
    before = signal.signal(signal.SIGALRM, ring)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN_S)
    try:
        try:
            return call()
        finally:
            over = True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 1e-3), interval)


def _left_behind(seconds: float, call: Callable[[], T]) -> T:
    import torch

    box: dict[str, Any] = {}
    context, gradients = contextvars.copy_context(), torch.is_grad_enabled()

    def work() -> None:
        try:
            with torch.set_grad_enabled(gradients):
                box["given"] = context.run(call)
        except BaseException as error:  # of any kind: it is raised again where the call was made
            box["error"] = error

    thread = threading.Thread(target=work, daemon=True, name="within")
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TookTooLongError(seconds)
    if "error" in box:
        raise box["error"]
    given: T = box["given"]
    return given
