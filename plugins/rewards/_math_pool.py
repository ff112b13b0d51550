"""Processes that compare mathematics side by side, started when first needed and kept until the program ends."""

import atexit
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock, Timer
from typing import Any

from unified import PluginError

#: answers for one more process to be worth starting: it takes as long to load as so many to judge
SHARE = 16
#: a process that rests is ended after so many times the processor time that its job may take, in seconds
PATIENCE = 20.0


class Worker:
    """One process. Not to be asked from two threads at once."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("_math_worker.py")
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(script)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
        )  # fmt: skip
        if self._line() != "ready":
            _, said = self.process.communicate()
            raise PluginError(f"the process that compares mathematics did not start: {said.strip()[-500:]}")

    def ask(self, job: dict[str, Any]) -> str:
        """What the process says of a job; "late" where it took too long, "gone" where it ended otherwise."""
        assert self.process.stdin is not None
        watch = Timer(PATIENCE * job["seconds"], self.process.kill)
        watch.start()
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            said = self._line()
        except BrokenPipeError:
            said = ""
        finally:
            watch.cancel()
        return said or ("late" if self.process.wait() in (-signal.SIGPROF, -signal.SIGKILL) else "gone")

    @property
    def alive(self) -> bool:
        """Whether it can be asked again."""
        return self.process.poll() is None

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


class Pool:
    """Workers that rest between calls. May be asked from several threads."""

    def __init__(self) -> None:
        self._idle: SimpleQueue[Worker] = SimpleQueue()
        self._lock = Lock()
        self._owner = os.getpid()

    def ask(self, jobs: Sequence[dict[str, Any]], *, workers: int) -> list[str]:
        """What is said of each job, in order: right, wrong, no gold, late, gone, or failed with the error's name.

        workers: processes at most; no more than the machine has cores, and one for every 16 jobs.
        """
        if not jobs:
            return []
        most = min(workers, _cores(), -(-len(jobs) // SHARE))
        with self._lock, ThreadPoolExecutor(most) as threads:  # one batch at a time, so that no more processes run
            return list(threads.map(self._one, jobs))

    def _one(self, job: dict[str, Any]) -> str:
        worker = self._worker()
        said = worker.ask(job)
        if worker.alive:
            self._idle.put(worker)
        else:
            worker.end()
        return said

    def _worker(self) -> Worker:
        if self._owner != os.getpid():  # a fork: the processes are the parent's
            self._idle, self._owner = SimpleQueue(), os.getpid()
        try:
            return self._idle.get_nowait()
        except Empty:
            return Worker()

    def end(self) -> None:
        """End all processes of this program."""
        while self._owner == os.getpid():
            try:
                self._idle.get_nowait().end()
            except Empty:
                return


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


POOL = Pool()
atexit.register(POOL.end)
