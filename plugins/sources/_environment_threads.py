"""Functions of a user run side by side, each with a time limit; what goes wrong is a value, not an exception."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Thread
from typing import Any

from unified import PluginError, UserError


@dataclass(frozen=True)
class Failure:
    """What went wrong, as text; late: its thread may still be running."""

    what: str
    late: bool = False


def side_by_side(jobs: Sequence[Callable[[], Any]], *, threads: int, timeout_s: float) -> list[Any]:
    """What each job gives, or a Failure for one that raises or is late; coroutines are awaited.

    threads: jobs that run at the same time; timeout_s: seconds that each may take. Python cannot end a thread: one that
    is late goes on, and what it gives is not looked at.
    Raises UserError or PluginError: a job raised it.
    """
    results: list[Any] = []
    for start in range(0, len(jobs), threads):
        results += _together(jobs[start : start + threads], timeout_s)
    mistake = next((one for one in results if isinstance(one, (UserError, PluginError))), None)
    if mistake is not None:
        raise mistake
    return results


def _together(jobs: Sequence[Callable[[], Any]], timeout_s: float) -> list[Any]:
    made: list[list[Any]] = [[] for _ in jobs]
    running = [
        Thread(target=_run, args=(job, where), daemon=True, name="environment")
        for job, where in zip(jobs, made, strict=True)
    ]
    for thread in running:
        thread.start()
    end = time.monotonic() + timeout_s
    for thread in running:
        thread.join(max(0.0, end - time.monotonic()))
    return [where[0] if where else Failure(f"took longer than {timeout_s:g} s", late=True) for where in made]


def _run(job: Callable[[], Any], where: list[Any]) -> None:
    try:
        given = job()
        where.append(asyncio.run(_awaited(given)) if inspect.isawaitable(given) else given)
    except (UserError, PluginError) as error:
        where.append(error)
    except BaseException as error:  # also SystemExit: nothing of a user's thread may be lost
        where.append(Failure(f"raised {type(error).__name__}: {error}"))


async def _awaited(given: Any) -> Any:
    return await given
