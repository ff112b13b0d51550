"""The first process of a sandbox: goes where a program can do no harm, starts it there, and watches it.

Run by itself, never imported by a run: one job comes in through the standard input, one verdict goes out through the
standard output, both by `marshal`. The input stays open as long as the verdict is wanted; when it closes, all ends.

With namespaces: this process -> builder (the new namespaces, a root of its own) -> watcher (their first process, so
that its end is the end of all) -> program. With limits alone: this process is the watcher. Only the standard library.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import resource
import signal
import struct

from unified_plugins.rewards import _kernel
from unified_plugins.rewards._watch import Watch

TYPE_CHECKING = False  # `typing` takes as long to load as all else
if TYPE_CHECKING:
    from typing import Any, NoReturn

#: of the program, where it is not the user's own, as the sandbox sees it
INSIDE_ID = 1000
#: the program's two ends of its talk with the watcher
READ_FD, WRITE_FD = 3, 4
MEGABYTE = 1 << 20
#: `_program` with built-in names of its own
_START = (
    "own = {{'__builtins__': dict(vars(__import__('builtins'))), '__name__': 'runner'}}\n"
    "exec({text!r}, own)\nown['run']({read}, {write})"
)
_SPARE_FROM = 2_000_000_000


def main() -> None:
    """Judge the job on the standard input; writes a verdict, or {"error": why there is none}."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)
    (length,) = struct.unpack(">I", _exactly(4))
    job = marshal.loads(_exactly(length))
    try:
        spare = spare_id()
        processes = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
        if job["isolation"] == "namespaces":
            _apart(job, spare, processes)
        else:
            _kernel.hide_memory()
            _kernel.adopt_orphans()
            job["processes"] += 0 if spare is not None else _tasks_of_user()
            if spare is not None:
                os.chown(job["root"], spare, spare)
            Watch(job, processes, start=lambda ends: start_program(job, ends, spare)).run()
    except BaseException as error:  # whatever it is, the parent has to hear of it
        report({"error": f"{type(error).__name__}: {error}"})


def report(verdict: dict[str, Any]) -> None:
    """The answer to the process that asked."""
    with contextlib.suppress(OSError):
        os.write(1, marshal.dumps(verdict))


def _exactly(n: int) -> bytes:
    out = b""
    while len(out) < n:
        more = os.read(0, n - len(out))
        if not more:
            raise SystemExit("the job was cut off")
        out += more
    return out


def spare_id() -> int | None:
    """A user id that nobody has, for a process that may become anybody; None for an ordinary user."""
    if os.geteuid() != 0:
        return None
    with open("/proc/self/uid_map") as known:
        ranges = [[int(part) for part in line.split()] for line in known]
    top = max(first + count for first, _, count in ranges)
    if top <= 1000:
        return None  # root of a namespace that knows this one user
    return _SPARE_FROM + os.getpid() if top > 2 * _SPARE_FROM else top - 2 - os.getpid() % 500


def _tasks_of_user() -> int:
    """Processes and threads that the user has now; the limit on processes counts them too."""
    own, count = os.getuid(), 0
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == own:
                count += len(os.listdir(f"/proc/{name}/task"))
    return count


def _apart(job: dict[str, Any], spare: int | None, processes: int) -> None:
    """Have the builder made; give it its users, which only a process outside can; wait for its end."""
    ready, go = os.pipe(), os.pipe()
    builder = os.fork()
    if builder == 0:
        _build(job, spare, processes, ready[1], go[0])
    os.close(ready[1])
    if os.read(ready[0], 1):
        _map_users(builder, spare)
        os.write(go[1], b"1")
    os.waitpid(builder, 0)


def _map_users(pid: int, spare: int | None) -> None:
    """Say which users the new namespace knows: root and the spare one, or the user alone."""
    if spare is None:
        with open(f"/proc/{pid}/setgroups", "w") as file:
            file.write("deny")
    for name, own in (("gid_map", os.getegid()), ("uid_map", os.geteuid())):
        with open(f"/proc/{pid}/{name}", "w") as file:
            file.write(f"{INSIDE_ID} {own} 1\n" if spare is None else f"0 0 1\n{INSIDE_ID} {spare} 1\n")


def _build(job: dict[str, Any], spare: int | None, processes: int, ready: int, go: int) -> NoReturn:
    """The builder: new namespaces, a new root, and the watcher as their first process."""
    try:
        _kernel.die_with_parent()
        _kernel.unshare()
        os.write(ready, b"1")
        os.close(ready)
        if not os.read(go, 1):
            os._exit(1)
        _kernel.hide_memory()  # not before: only then may its users be written
        _new_root(job)
        watcher = os.fork()
        if watcher == 0:
            _kernel.die_with_parent()
            inside = INSIDE_ID if spare is not None else None
            with contextlib.suppress(OSError):  # where it may not be mounted, the old one serves
                processes = _own_processes()
            _kernel.make_read_only("/", below=False)
            Watch(job, processes, start=lambda ends: start_program(job, ends, inside)).run()
            os._exit(0)
        _, status = os.waitpid(watcher, 0)
        if status:
            report({"error": f"the sandbox's first process ended with status {status}"})
    except BaseException as error:
        report({"error": f"{type(error).__name__}: {error}"})
    os._exit(0)


def _new_root(job: dict[str, Any]) -> None:
    """A root in memory that holds Python, its libraries, three devices and a place to work in; all else is gone."""
    root = job["root"]
    _kernel.keep_mounts_private()
    _kernel.mount_memory(root, megabytes=4, files=4096)
    for source in job["shown"]:
        target = root + source
        if os.path.islink(source):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.symlink(os.readlink(source), target)
            continue
        _place(source, target)
        _kernel.bind(source, target)
        _kernel.make_read_only(target, devices=source.startswith("/dev/"))
    for hidden in job["hidden"]:
        _kernel.mount_memory(root + hidden, megabytes=1, files=8)
        _kernel.make_read_only(root + hidden)
    for folder in ("/tmp", "/proc"):
        os.makedirs(root + folder, exist_ok=True)
    _kernel.mount_memory(f"{root}/tmp", megabytes=job["disk_mb"], files=1024)
    os.chmod(f"{root}/tmp", 0o1777)
    _kernel.change_root(root)


def _place(source: str, target: str) -> None:
    """An empty file or folder for a mount to stand on."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(target, "w"):
        pass


def _own_processes() -> int:
    """The files of this namespace's processes, for the watcher alone: nothing is mounted afterwards."""
    _kernel.mount_processes("/proc")
    try:
        return os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    finally:
        _kernel.detach("/proc")


def start_program(job: dict[str, Any], ends: tuple[int, int, int], user: int | None) -> int:
    """Fork and become the interpreter that runs the program; the id of the process.

    ends: where it reads from the watcher, writes to it, and writes its output. user: whom to become, if anybody.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        os.chdir("/tmp" if job["isolation"] == "namespaces" else job["root"])
        os.umask(0o077)
        os.nice(5)
        _take_ends(ends)
        for name, value in limits_of(job).items():
            resource.setrlimit(getattr(resource, name), (value, value))
        if user is not None:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        if job["isolation"] == "limits":
            _kernel.die_with_parent()
        _kernel.give_up_privileges()
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
        _kernel.filter_calls(signals=job["isolation"] == "namespaces")
        arguments = [
            job["python"],
            "-s",
            "-S",
            "-B",
            "-P",
            "-c",
            _START.format(text=job["runner"], read=READ_FD, write=WRITE_FD),
        ]
        os.execve(job["python"], arguments, {"PYTHONHASHSEED": "0"})
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(2, f"{type(error).__name__}: {error}".encode())
    os._exit(127)


def _take_ends(ends: tuple[int, int, int]) -> None:
    """The descriptors of the program: nothing to read, its output, and the two ends; no other."""
    high = [os.dup2(end, 100 + place, inheritable=False) for place, end in enumerate(ends)]
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    for place, end in ((READ_FD, high[0]), (WRITE_FD, high[1]), (1, high[2]), (2, high[2])):
        os.dup2(end, place)
    os.closerange(5, max(1024, resource.getrlimit(resource.RLIMIT_NOFILE)[0]))


def limits_of(job: dict[str, Any]) -> dict[str, int]:
    """Limits of each process by their names; those on all processes together are the watcher's."""
    return {
        "RLIMIT_AS": job["memory_mb"] * MEGABYTE,
        "RLIMIT_CPU": int(job["cpu_s"]) + 2,
        "RLIMIT_FSIZE": job["disk_mb"] * MEGABYTE,
        "RLIMIT_NOFILE": job["open_files"],
        "RLIMIT_NPROC": job["processes"],
        "RLIMIT_STACK": 8 * MEGABYTE,
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_MSGQUEUE": 0,
        "RLIMIT_RTPRIO": 0,
        "RLIMIT_SIGPENDING": 256,
    }
