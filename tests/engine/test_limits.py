"""A limit ends what hangs, and touches nothing that does not."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from unified.limits import TookTooLongError, within

#: seconds; what hangs in these tests would take minutes
LIMIT = 0.05


def busy() -> None:
    while True:
        pass


def swallows() -> None:
    """Takes every exception that is one for an ordinary failure."""
    while True:
        try:
            threading.Event().wait(60)
        except Exception:
            continue


def backtracks() -> None:
    """A regular expression with 2^40 ways to fail."""
    re.fullmatch(r"(a|a)*b", "a" * 40)


def waits_for_a_thread() -> None:
    threading.Event().wait(60)


@pytest.mark.parametrize("hang", [busy, swallows, backtracks, waits_for_a_thread])
def test_what_hangs_is_ended_in_the_main_thread(hang: Callable[[], None]) -> None:
    began = time.monotonic()
    with pytest.raises(TookTooLongError, match=r"took longer than 0\.05 s"):
        within(LIMIT, hang)
    assert time.monotonic() - began < 10


def test_code_that_catches_the_first_alarm_gets_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unified.limits.AGAIN_S", 0.05)
    caught = []

    def stubborn() -> None:
        try:
            busy()
        except BaseException as error:
            caught.append(error)
        busy()

    with pytest.raises(TookTooLongError):
        within(LIMIT, stubborn)
    assert len(caught) == 1


def test_in_another_thread_it_is_left_behind() -> None:
    found: list[Any] = []
    release = threading.Event()

    def inside() -> None:
        try:
            within(LIMIT, lambda: release.wait(60))
        except TookTooLongError as error:
            found.append(error.seconds)
        found.append(within(60, lambda: "in time"))
        with pytest.raises(KeyError, match="its own"):
            within(60, lambda: {}["its own"])

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join(20)
    release.set()
    assert found == [LIMIT, "in time"]


def test_what_ends_in_time_gives_its_value_or_its_error_and_no_alarm_follows() -> None:
    before = signal.getsignal(signal.SIGALRM)
    assert within(60, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        within(60, lambda: 1 / 0)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is before


def test_an_alarm_of_the_caller_still_comes() -> None:
    heard = threading.Event()
    before = signal.signal(signal.SIGALRM, lambda *_: heard.set())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        within(60, lambda: None)
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 0.1
        assert heard.wait(10)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_without_a_limit_nothing_is_set_up() -> None:
    assert within(None, lambda: signal.getitimer(signal.ITIMER_REAL)) == (0.0, 0.0)
