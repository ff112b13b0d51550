"""Runs a program against tests where it can do no harm, and says which tests passed. Linux only, no dependency.

What holds it, with `isolation: namespaces`:
- Namespaces for users, processes, mounts, network, IPC and host name. Its root is a small file system in memory that
  holds the Python installation and the system's libraries (read-only), /dev/null, /dev/zero, /dev/urandom, and an empty
  /tmp of limited size; there is no /proc. When its watcher, the first process there, ends, the kernel ends the rest.
- A user that nobody else is (started by root), no capabilities, none to be had, no set-user-id programs.
- Limits of each process (address space, processor time, file size, open files, stack) and, about fifty times a
  second, of all together (memory, processor time); of processes and threads; of output; of wall time.
- A filter of system calls: no sockets, no tracing, no new namespaces, no memory that no process is charged for.
- An empty environment, nothing to read, no descriptor of the run but two pipes to the watcher.
With `isolation: limits` there are no namespaces: it may read and write the files that this user may (started by root:
that anybody may), its files together have no limit, and nothing but the filter keeps it from the network.

What a verdict is worth: each test has a random token that waits in a pipe, unread, while the test runs, and must come
back afterwards. Ending early, printing what success looks like, patched built-in names, values that equal everything,
a second process that goes on by itself, signals, trace functions and frames do not pass a test. A program in one
interpreter with its tests can still cheat: by reading the pipes by their numbers, by a signal handler's frame, by
patching a module that the tests import, or by answers learned by heart. None of these reaches out of the sandbox.
"""

from __future__ import annotations

import contextlib
import json
import marshal
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
#: seconds that a sandbox may take beyond its limit, to be made and unmade, before it is taken for broken
GRACE_S = 20.0
#: the launcher's modules are found without what the packages around them import
_BOOT = (
    "import sys, types\n"
    "for name, path in (('unified_plugins', {top!r}), ('unified_plugins.rewards', {here!r})):\n"
    "    sys.modules[name] = types.ModuleType(name)\n"
    "    sys.modules[name].__path__ = [path]\n"
    "from unified_plugins.rewards._launch import main\n"
    "main()\n"
)
_ASK = (
    "import json, os, sys, sysconfig; print(json.dumps([os.path.realpath(getattr(sys, '_base_executable', '') or"
    " sys.executable), os.path.realpath(sys.base_prefix), os.path.realpath(sysconfig.get_path('stdlib'))]))"
)
_LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")


class Refused(Exception):  # noqa: N818
    """No sandbox can be had here, or it does not hold. The first argument says why, the rest what to do."""


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    timeout_s: wall time. cpu_s: processor time of all processes. memory_mb: address space of each process, and memory
    of all. disk_mb: of one file, and with namespaces of all. processes: with threads. output_kb: written to both
    streams. python: the interpreter, None for this one.
    """

    isolation: str = "namespaces"
    timeout_s: float = 8.0
    cpu_s: float = 4.0
    memory_mb: int = 512
    disk_mb: int = 16
    processes: int = 16
    open_files: int = 64
    output_kb: int = 256
    python: str | None = None


@dataclass(frozen=True)
class Program:
    """What is run: the program, a set-up after it, and tests as `_guarded.guarded` gives them."""

    text: str
    tests: tuple[tuple[str, bool], ...]
    set_up: str = ""
    stop_at_first: bool = False


@dataclass(frozen=True)
class Verdict:
    """What came of it.

    passed: by test. why: "passed", "failed", "exited", "time", "processor", "memory", "output", "forged"; "broken"
    where the sandbox failed, and nothing is known of the program. failures: what tests said. shown: the output's
    beginning.
    """

    passed: tuple[bool, ...]
    why: str
    failures: tuple[str, ...] = ()
    shown: str = ""
    seconds: float = 0.0
    processor_s: float = 0.0
    error: str = field(default="", compare=False)

    @property
    def known(self) -> bool:
        """Whether the program was judged."""
        return self.why != "broken"


def run_all(programs: Sequence[Program], limits: Limits, *, workers: int) -> list[Verdict]:
    """Run programs, so many at a time; verdicts in their order. Equal programs run once.

    Raises Refused where this system cannot hold programs within `limits`.
    """
    prove(limits)
    different = list(dict.fromkeys(programs))
    with ThreadPoolExecutor(max(1, min(workers, len(different)))) as pool:
        found = dict(zip(different, pool.map(lambda one: run(one, limits), different), strict=True))
    return [found[one] for one in programs]


def run(program: Program, limits: Limits) -> Verdict:
    """Run one program. A sandbox that cannot be made, or ends without a verdict, gives why "broken"."""
    none = tuple(False for _ in program.tests)
    try:
        root = tempfile.mkdtemp(prefix="sandbox-")
    except OSError as error:
        return Verdict(none, "broken", error=str(error))
    try:
        answer = _launched(_job(program, limits, root), limits.timeout_s + GRACE_S)
    except (OSError, subprocess.SubprocessError, Refused) as error:
        answer = {"error": str(error.args[0] if isinstance(error, Refused) else error)}
    finally:
        shutil.rmtree(root, ignore_errors=True)
    if "error" in answer or answer["why"] == "abandoned":
        return Verdict(none, "broken", error=answer.get("error", "the sandbox took too long"))
    return Verdict(
        tuple(answer["passed"]), answer["why"], tuple(answer["failures"]), answer["shown"],
        answer["seconds"], answer["processor_s"],
    )  # fmt: skip


def _job(program: Program, limits: Limits, root: str) -> bytes:
    executable, shown, hidden = _installation(limits.python or sys.executable)
    job: dict[str, Any] = asdict(limits) | {
        "program": program.text, "set_up": program.set_up, "tests": program.tests, "root": root, "python": executable,
        "shown": shown, "hidden": hidden, "stop_at_first": program.stop_at_first,
        "runner": (_HERE / "_program.py").read_text(encoding="utf-8"),
    }  # fmt: skip
    body = marshal.dumps(job)
    return struct.pack(">I", len(body)) + body


def _launched(job: bytes, patience_s: float) -> dict[str, Any]:
    """Start a launcher, hand it the job, wait for the verdict; whatever happens, it has ended afterwards."""
    launcher = getattr(sys, "_base_executable", "") or sys.executable
    boot = _BOOT.format(top=str(_HERE.parent), here=str(_HERE))
    process = subprocess.Popen(
        [launcher, "-I", "-S", "-B", "-c", boot], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, env={}, cwd="/", start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, said = process.stdin, [b""]
    reader = threading.Thread(target=lambda: said.__setitem__(0, process.stdout.read()), daemon=True)  # type: ignore[union-attr]
    reader.start()
    try:
        with contextlib.suppress(BrokenPipeError):
            stdin.write(job)
            stdin.flush()
        reader.join(patience_s)
    finally:
        with contextlib.suppress(OSError):
            stdin.close()  # the watcher sees it, and ends all
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
        reader.join(5)
        process.stdout.close()
    if not said[0]:
        return {"error": f"the sandbox ended without a verdict, status {process.returncode}"}
    answer: dict[str, Any] = marshal.loads(said[0])  # of the same interpreter
    return answer


@lru_cache
def _installation(python: str) -> tuple[str, list[str], list[str]]:
    """The interpreter's file; files and folders that the sandbox shows; folders that it hides within them."""
    try:
        done = subprocess.run([python, "-I", "-S", "-c", _ASK], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise Refused(f"the interpreter {python} cannot be run: {error}", "set `python` to one that can") from error
    executable, prefix, stdlib = json.loads(done.stdout)
    folders = [path for path in _LIBRARIES if os.path.lexists(path)]
    wanted = [f"{prefix}/lib", f"{prefix}/lib64", stdlib, executable, *_DEVICES]
    folders += [p for p in wanted if os.path.exists(p) and not any(_within(p, f) for f in folders)]
    folders = [p for p in folders if not any(p != f and _within(p, f) for f in folders)]
    hidden = [f"{stdlib}/site-packages", f"{stdlib}/dist-packages", "/usr/lib/python3/dist-packages"]
    return executable, folders, [path for path in hidden if os.path.isdir(path)]


def _within(path: str, folder: str) -> bool:
    return path == folder or (not os.path.islink(folder) and path.startswith(folder + "/"))


# --- the outer limits are proven before anything else is run ---

_PROCESSES = """
import os, time
started, stopped = 0, False
for _ in range({more}):
    try:
        pid = os.fork()
    except OSError:
        stopped = True
        break
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    started += 1
"""
_MEMORY = """
refused = False
try:
    held = bytearray({more} << 20)
except MemoryError:
    refused = True
"""
_MEMORY_OF_ALL = """
import os, time
for _ in range(4):
    if os.fork() == 0:
        held = bytearray({part} << 20)
        time.sleep(60)
        os._exit(0)
time.sleep(60)
"""
_REACH = """
import os, socket
def refused(action, *given):
    try:
        action(*given)
    except (OSError, ValueError):
        return True
    return False
"""
_proven: dict[Limits, None] = {}
_proving = threading.Lock()


def prove(limits: Limits) -> None:
    """See by harmless programs that the limits hold here; once for each set of limits. Raises Refused if one does not.

    The bounded loops would, unhindered, start 20 processes more than allowed, and take twice the memory.
    """
    with _proving:
        if limits in _proven:
            return
        _possible()
        for what, program, expected in _proofs(limits):
            verdict = run(program, replace(limits, timeout_s=20.0, cpu_s=20.0))
            if verdict.why != expected:
                said = verdict.error or "; ".join(verdict.failures) or verdict.why
                raise Refused(f"no program is run here, because a proof failed: {what}: {said}", *_advice(limits))
        _proven[limits] = None


def _proofs(limits: Limits) -> list[tuple[str, Program, str]]:
    """What is proven, by which program, and how its run has to end."""
    memory, count, own = limits.memory_mb, limits.processes, os.path.realpath(__file__)
    reach = ["assert refused(socket.socket)", "assert dict(os.environ) == {}"]
    if limits.isolation == "namespaces":
        reach += [
            "assert os.getppid() == 1",
            "assert refused(os.mkdir, '/made')",
            f"assert not os.path.exists({own!r})",
        ]
        reach += ["assert not os.path.exists('/proc/1')"]

    def checked(text: str, *tests: str) -> Program:
        return Program(text, tuple((test, True) for test in tests))

    return [
        ("starting the interpreter", checked("", "assert True"), "passed"),
        ("processes", checked(_PROCESSES.format(more=count + 20), f"assert stopped and started < {count}"), "passed"),
        ("memory of one process", checked(_MEMORY.format(more=2 * memory), "assert refused"), "passed"),
        ("memory of all processes", checked(_MEMORY_OF_ALL.format(part=memory // 2)), "memory"),
        ("being apart", checked(_REACH, *reach), "passed"),
    ]


def _possible() -> None:
    """Raises Refused on systems that were never thought of."""
    if sys.platform != "linux":
        raise Refused(
            f"programs are run in a sandbox of Linux, and this system is {sys.platform}", "use a Linux machine"
        )
    from unified_plugins.rewards import _kernel, _launch  # noqa: F401  (both are compiled once, for the launchers)

    if not _kernel.machine_known():
        raise Refused("this machine's system calls are not known, so they cannot be filtered", "use x86_64 or aarch64")


def _advice(limits: Limits) -> list[str]:
    if limits.isolation == "limits":
        return ["`isolation: limits` needs an interpreter that every user may run; `python: PATH` names one"]
    return [
        "let this user make namespaces: sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "
        "kernel.apparmor_restrict_unprivileged_userns; in a container also its seccomp profile",
        "or, in a container of its own that holds nothing of worth, set `isolation: limits`",
    ]
