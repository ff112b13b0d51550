"""What the sandbox needs of Linux and Python does not wrap: namespaces, mounts, capabilities, a filter of system calls.

Only the standard library; nothing here is imported where no code is run. Sources: man pages unshare(2), mount(2),
mount_setattr(2), pivot_root(2), capabilities(7), seccomp(2); numbers from the kernel's tables of system calls.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

#: numbers of system calls, (x86_64, aarch64); None where the machine has none
_CALLS: dict[str, tuple[int | None, int | None]] = {
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "unshare": (272, 97), "capset": (126, 91),
    "mount_setattr": (442, 442), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "setns": (308, 268), "chroot": (161, 51), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "memfd_create": (319, 279),
    "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196), "msgget": (68, 186), "semget": (64, 190),
    "mq_open": (240, 180), "socket": (41, 198), "clone": (56, 220), "clone3": (435, 435), "prlimit64": (302, 261),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "kexec_load": (246, 104),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "reboot": (169, 142),
    "swapon": (167, 224), "swapoff": (168, 225), "quotactl": (179, 60), "acct": (163, 89), "syslog": (103, 116),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266),
    "personality": (135, 92), "sethostname": (170, 161), "setdomainname": (171, 162), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "move_mount": (429, 429),
    "open_tree": (428, 428), "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "kcmp": (312, 272),
    "fanotify_init": (300, 262), "mbind": (237, 235), "set_mempolicy": (238, 237), "migrate_pages": (256, 238),
    "move_pages": (279, 239), "vmsplice": (278, 75), "setpriority": (141, 140), "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119), "sched_setattr": (314, 274), "sched_setaffinity": (203, 122),
    "ioprio_set": (251, 30), "modify_ldt": (154, None), "ioperm": (173, None), "iopl": (172, None),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "pidfd_send_signal": (424, 424),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
}  # fmt: skip
#: architecture as the filter sees it (AUDIT_ARCH_*), and the place in the table above
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
#: used to set the sandbox up, or judged by their arguments
_NOT_REFUSED = ("clone", "clone3", "prlimit64")
_SIGNALS = ("kill", "tkill", "tgkill", "pidfd_send_signal", "rt_sigqueueinfo", "rt_tgsigqueueinfo")

NEW_NAMESPACES = 0x00020000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
#: mount, uts, ipc, user, pid, net as above, and cgroup
_ALL_NEW = NEW_NAMESPACES | 0x02000000
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
_ATTR_READ_ONLY, _ATTR_NOSUID, _ATTR_NODEV, _AT_RECURSIVE, _AT_FDCWD = 1, 2, 4, 0x8000, -100
_MNT_DETACH = 2
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP = 1, 4, 22, 24
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS, _FILTER = 36, 38, 2
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # instructions of classic BPF
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_ARCH, _NUMBER, _FIRST_ARGUMENT = 4, 0, 16  # offsets in struct seccomp_data

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def machine_known() -> bool:
    """Whether the numbers of this machine's system calls are in the table."""
    return os.uname().machine in _MACHINES


def _number(name: str) -> int | None:
    return _CALLS[name][_MACHINES[os.uname().machine][1]]


def _call(name: str, *arguments: object) -> int:
    given = [a if isinstance(a, (bytes, ctypes.Array)) or a is None else ctypes.c_long(a) for a in arguments]  # type: ignore[arg-type]
    result = int(_libc.syscall(ctypes.c_long(_number(name) or -1), *given))
    if result == -1:
        code = ctypes.get_errno()
        shown = next((os.fsdecode(a) for a in reversed(arguments) if isinstance(a, bytes) and a[:1] == b"/"), "")
        raise OSError(code, f"{name} {shown}: {os.strerror(code)} ({errno.errorcode.get(code, code)})")
    return result


def _control(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)):
        code = ctypes.get_errno()
        raise OSError(code, f"prctl {option}: {os.strerror(code)}")


def unshare() -> None:
    """Leave the user, mount, network, IPC and host name namespaces, and the process namespace for children."""
    _call("unshare", NEW_NAMESPACES)


def keep_mounts_private() -> None:
    """What is mounted from here on is seen nowhere else."""
    _call("mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)


def mount_memory(target: str, *, megabytes: int, files: int) -> None:
    """A file system in memory, with limits on what it holds."""
    options = f"size={megabytes}m,nr_inodes={files},mode=755".encode()
    _call("mount", b"tmpfs", os.fsencode(target), b"tmpfs", _MS_NOSUID | _MS_NODEV, options)


def mount_processes(target: str) -> None:
    """The processes of this namespace as files."""
    _call("mount", b"proc", os.fsencode(target), b"proc", _MS_NOSUID | _MS_NODEV, None)


def bind(source: str, target: str) -> None:
    """Show a file or folder at a second place."""
    _call("mount", os.fsencode(source), os.fsencode(target), None, _MS_BIND | _MS_REC, None)


def make_read_only(target: str, *, devices: bool = False, below: bool = True) -> None:
    """A mount can no longer be written, and has no set-user-id programs.

    `devices`: its device files still work. `below`: what is mounted below it is meant too.
    """
    flags = _ATTR_READ_ONLY | _ATTR_NOSUID | (0 if devices else _ATTR_NODEV)
    attributes = ctypes.create_string_buffer(struct.pack("=QQQQ", flags, 0, 0, 0), 32)
    _call("mount_setattr", _AT_FDCWD, os.fsencode(target), _AT_RECURSIVE if below else 0, attributes, 32)


def detach(target: str) -> None:
    """Take a mount away, also while somebody uses it."""
    _call("umount2", os.fsencode(target), _MNT_DETACH)


def change_root(target: str) -> None:
    """Make a mount the root; the old one is gone."""
    os.chdir(target)
    _call("pivot_root", b".", b".")
    detach(".")
    os.chdir("/")


def die_with_parent() -> None:
    """Be killed when the parent ends. To be said again after a change of user."""
    _control(_PR_SET_PDEATHSIG, 9)


def hide_memory() -> None:
    """Nobody of the same user may look into this process."""
    _control(_PR_SET_DUMPABLE, 0)


def adopt_orphans() -> None:
    """Descendants whose parent ends become children of this process."""
    _control(_PR_SET_CHILD_SUBREAPER, 1)


def give_up_privileges() -> None:
    """No capability now, and none by any program that is started later."""
    for capability in range(64):
        try:
            _control(_PR_CAPBSET_DROP, capability)
        except OSError:
            break  # not so many are known, or there is none to drop
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0), 8)
    _call("capset", header, ctypes.create_string_buffer(24))
    _control(_PR_SET_NO_NEW_PRIVS, 1)


def filter_calls(*, signals: bool) -> None:
    """Refuse what no program under test needs: sockets, tracing, new namespaces, memory outside of its count.

    For this process and all it starts, for good. `signals`: whether it may send any.
    """
    arch, _ = _MACHINES[os.uname().machine]
    end = (_RETURN, 0, 0, _ALLOW)
    denied = (_RETURN, 0, 0, _ERROR | errno.EPERM)
    program = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    if os.uname().machine == "x86_64":  # the numbers of the x32 interface name the same calls
        program += [(_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _KILL)]
    for name in _CALLS:
        number = _number(name)
        if number is not None and name not in _NOT_REFUSED and not (signals and name in _SIGNALS):
            program += [(_EQUAL, 0, 1, number), denied]
    clone, clone3, limits = (_number(name) or -1 for name in _NOT_REFUSED)
    program += [(_EQUAL, 0, 4, clone), (_LOAD, 0, 0, _FIRST_ARGUMENT), (_ANY_BIT, 0, 1, _ALL_NEW), denied, end]
    program += [(_EQUAL, 0, 1, clone3), (_RETURN, 0, 0, _ERROR | errno.ENOSYS)]  # the library then takes clone
    program += [(_EQUAL, 0, 4, limits), (_LOAD, 0, 0, _FIRST_ARGUMENT), (_EQUAL, 1, 0, 0), denied, end, end]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    whole = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
    if _libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_FILTER), whole, ctypes.c_ulong(0), ctypes.c_ulong(0)):
        code_ = ctypes.get_errno()
        raise OSError(code_, f"the filter of system calls was refused: {os.strerror(code_)}")
