"""The watcher of a sandbox: talks with the process under test, and ends it where it goes over a limit.

It is the first process of the namespaces, or the adopter of all orphans, so nothing that the program started outlives
it. It runs no code of the program. The talk is in frames of four bytes of length and a body:

    program: H (I am here)            watcher: the program's text
    program: R (ran to its end)       watcher: the text of the set-up
    program: R                        watcher: a test, then in a frame of its own that test's token
    program: T + the token, or F + what went wrong; then the next test

A token is drawn for each test, and waits unread in the pipe while the test runs. Only the standard library.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import resource
import select
import signal
import struct
import time

TYPE_CHECKING = False  # `typing` takes as long to load as all else
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

#: seconds between two looks at memory and processor time
TICK_S = 0.02
_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_LONGEST_FRAME = 1 << 16


class Watch:
    """One program and its tests.

    Args:
        job: what `_sandbox.Sandbox` sends; see there.
        processes: a descriptor of a /proc in which descendants of this process can be found.
        start: forks and becomes the program, given (its end to read, its end to write, where its output goes).
    """

    def __init__(self, job: dict[str, Any], processes: int, start: Callable[[tuple[int, int, int]], int]) -> None:
        self.job, self.processes, self.start = job, processes, start
        self.tests: list[list[Any]] = job["tests"]
        self.passed = [False] * len(self.tests)
        self.failures: list[str] = []
        self.tokens: list[bytes] = []
        self.phase = -3  # -3: not here yet, -2: the program runs, -1: the set-up runs, k: test k runs
        self.why = ""
        self.shown = b""  # the beginning of the output
        self.output = 0  # bytes of it
        self._in, self._out = b"", b""

    def run(self) -> None:
        """Watch until all is said or a limit is reached; end all processes; write the verdict."""
        began = time.monotonic()
        to_program, from_program, output = os.pipe(), os.pipe(), os.pipe()
        self.pid = self.start((to_program[0], from_program[1], output[1]))
        for end in (to_program[0], from_program[1], output[1]):
            os.close(end)
        self.write_fd, self.read_fd, self.output_fd = to_program[1], from_program[0], output[0]
        for end in (self.write_fd, self.read_fd, self.output_fd):
            os.set_blocking(end, False)
        while not self.why:
            self._turn(began + self.job["timeout_s"])
        used = self._processor_time(self._descendants())
        self._end_all()
        verdict: dict[str, Any] = {"passed": self.passed, "why": self.why, "failures": self.failures[:8]}
        verdict |= {"seconds": time.monotonic() - began, "processor_s": used}
        verdict["shown"] = self.shown.decode(errors="replace")
        if self.phase == -3 and self.why != "abandoned":
            verdict = {"error": f"the interpreter did not start ({self.why}): {verdict['shown'].strip()[-400:]}"}
        with contextlib.suppress(OSError):
            os.write(1, marshal.dumps(verdict))

    # --- one turn of the loop ---

    def _turn(self, deadline: float) -> None:
        """Wait a moment for something to happen, then look at everything."""
        watched = select.poll()
        watched.register(0, 0)  # its other end closed: the verdict is no longer wanted
        for end in (self.read_fd, self.output_fd):
            if end >= 0:
                watched.register(end, select.POLLIN)
        if self._out:
            watched.register(self.write_fd, select.POLLOUT)
        for end, event in watched.poll(TICK_S * 1000):
            if end == 0 and event & (select.POLLHUP | select.POLLERR):
                self.why = "abandoned"
            elif end == self.output_fd:
                self._take_output()
            elif end == self.read_fd:
                self._listen()
            elif end == self.write_fd:
                self._speak()
        ended = self._reap()
        if not self.why:
            self._look_at_limits(deadline)
        if ended and not self.why:
            self._listen()
            self._take_output()
            self.why = self.why or "exited"

    def _take_output(self) -> None:
        with contextlib.suppress(BlockingIOError):
            some = os.read(self.output_fd, 1 << 16) if self.output_fd >= 0 else b""
            self.output += len(some)
            self.shown = (self.shown + some)[:2000]
            if not some:
                self.output_fd = -1
            if self.output > self.job["output_kb"] * 1024:
                self.why = self.why or "output"

    def _speak(self) -> None:
        with contextlib.suppress(BlockingIOError):
            try:
                self._out = self._out[os.write(self.write_fd, self._out) :]
            except BrokenPipeError:
                self._out = b""

    def _say(self, *bodies: bytes) -> None:
        self._out += b"".join(struct.pack(">I", len(body)) + body for body in bodies)
        self._speak()

    def _listen(self) -> None:
        """Read what the program says, and answer each frame."""
        if self.read_fd < 0:
            return
        try:
            some = os.read(self.read_fd, _LONGEST_FRAME)
        except BlockingIOError:
            return
        if not some:
            self.read_fd = -1
        self._in += some
        while len(self._in) >= 4 and not self.why:
            (length,) = struct.unpack(">I", self._in[:4])
            if length > _LONGEST_FRAME:
                self.why = "forged"
            if len(self._in) < 4 + length:
                return
            body, self._in = self._in[4 : 4 + length], self._in[4 + length :]
            self._answer(body[:1], body[1:])

    def _answer(self, kind: bytes, rest: bytes) -> None:
        """Go on to the next phase, where what was said is what must be said now; else the talk is forged."""
        if kind == b"F" and self.phase > -3:
            self.failures.append(rest.decode(errors="replace")[:300])
            if self.phase < 0 or self.job["stop_at_first"]:
                self.why = "failed"
                return
        elif self.phase >= 0 and kind == b"T" and rest == self.tokens[self.phase]:
            self.passed[self.phase] = True
        elif not (kind == b"H" and self.phase == -3) and not (kind == b"R" and self.phase in (-2, -1)):
            self.why = "forged"
            return
        self.phase += 1
        if self.phase == -2:
            self._say(self.job["program"].encode("utf-8", "replace"))
        elif self.phase == -1:
            self._say(self.job["set_up"].encode("utf-8", "replace"))
        elif self.phase < len(self.tests):
            text, own_builtins = self.tests[self.phase]
            self.tokens.append(os.urandom(16).hex().encode())
            self._say((b"1" if own_builtins else b"0") + text.encode("utf-8", "replace"), self.tokens[-1])
        else:
            self.why = "passed" if all(self.passed) else "failed"

    # --- limits on all processes together ---

    def _look_at_limits(self, deadline: float) -> None:
        if time.monotonic() > deadline:
            self.why = "time"
            return
        alive = self._descendants()
        if self._processor_time(alive) > self.job["cpu_s"]:
            self.why = "processor"
        elif self._memory(alive) > self.job["memory_mb"] << 20:
            self.why = "memory"

    def _descendants(self) -> list[int]:
        """Ids, as /proc counts them, of all that descend from this process."""
        parents: dict[int, list[int]] = {}
        for name in os.listdir(self.processes):
            if name.isdigit():
                fields = self._fields(int(name))
                if fields:
                    parents.setdefault(int(fields[1]), []).append(int(name))
        found = list(parents.get(int(os.readlink("self", dir_fd=self.processes)), []))
        for pid in found:
            found += parents.get(pid, [])
        return found

    def _read(self, path: str) -> str:
        try:
            end = os.open(path, os.O_RDONLY, dir_fd=self.processes)
        except OSError:
            return ""  # it has ended
        try:
            return os.read(end, 1 << 16).decode(errors="replace")
        except OSError:
            return ""
        finally:
            os.close(end)

    def _fields(self, pid: int) -> list[str]:
        """Of a process: its state, its parent and the numbers that follow; [] where it has ended."""
        return self._read(f"{pid}/stat").rpartition(")")[2].split()

    def _processor_time(self, alive: list[int]) -> float:
        """Seconds that the program and all it started have used, the ended ones included."""
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = ended.ru_utime + ended.ru_stime
        for pid in alive:
            fields = self._fields(pid)
            seconds += sum(int(x) for x in fields[11:15]) / _CLOCK_TICKS if len(fields) > 14 else 0.0
        return seconds

    def _memory(self, alive: list[int]) -> int:
        """Bytes in memory; where that is too much, counted again with each page once."""
        limit = self.job["memory_mb"] << 20
        resident = sum(int((self._read(f"{pid}/statm") or "0 0").split()[1]) * _PAGE for pid in alive)
        if resident <= limit:
            return resident
        exact = 0
        for pid in alive:
            rolled = [line.split() for line in self._read(f"{pid}/smaps_rollup").splitlines()]
            share = [int(words[1]) << 10 for words in rolled if words[:1] == ["Pss:"]]
            exact += share[0] if share else int((self._read(f"{pid}/statm") or "0 0").split()[1]) * _PAGE
        return exact

    # --- the end ---

    def _reap(self) -> bool:
        """Take leave of ended processes; whether the program itself was one."""
        ended = False
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, _ = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                ended = ended or pid == self.pid
        return ended

    def _end_all(self) -> None:
        """Kill everything. The first process of a namespace need not: its own end does it, at once and for all."""
        if self.job["isolation"] == "namespaces":
            return
        mine = os.readlink("self", dir_fd=self.processes)
        assert int(mine) == os.getpid()
        while True:
            for pid in self._descendants():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._reap()
            try:
                os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            time.sleep(0.001)
