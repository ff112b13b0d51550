"""Two runs never write to one folder: a lock file in it names the process that does.

The kernel holds the lock (flock) and drops it when the process ends, however it ends; the text in the file, host and
process, is for messages, and for other machines that see the same folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from unified.errors import UserError

LOCK_FILE = ".lock"
TRIES, WAIT_S = 5, 0.05


@dataclass
class RunLock:
    """The right to write to a run folder, while entered.

    note: after entering, what a person should know: that the lock of a run that ended without cleaning up was taken
    over; None otherwise. UserError on entering where another run has the folder, or one on another host may have it.
    """

    folder: Path
    note: str | None = None
    _file: int | None = None

    def __enter__(self) -> RunLock:
        path = self.folder / LOCK_FILE
        while True:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            if not _taken(file):
                os.close(file)
                raise UserError(
                    f"{self.folder} is in use by {_who(_read(path))}",
                    "wait until that run has ended, or give another folder with --output",
                )
            if _is_still(path, file):
                break
            os.close(file)  # its owner has just ended and taken the file away
        before = _read(path)
        if before and before.get("host") != socket.gethostname():
            os.close(file)
            raise UserError(
                f"{self.folder} may be in use by {_who(before)}",
                f"if no run is alive there, delete {path}",
            )
        if before:
            self.note = f"the lock of {_who(before)}, which is dead, was taken over"
        about = {"pid": os.getpid(), "host": socket.gethostname()}
        text = json.dumps({**about, "since": datetime.now(UTC).isoformat(timespec="seconds")})
        os.ftruncate(file, 0)
        os.pwrite(file, text.encode(), 0)
        self._file = file
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._file is not None:
            (self.folder / LOCK_FILE).unlink(missing_ok=True)  # before it is released: nobody else can have it yet
            os.close(self._file)
            self._file = None


def holder(folder: Path) -> dict[str, Any] | None:
    """Who has the lock of a run folder, {"pid", "host", "since"}; None where nobody has, or only a dead process."""
    path = folder / LOCK_FILE
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _read(path) or {}
    finally:
        os.close(file)
    about = _read(path)
    return about if about and about.get("host") != socket.gethostname() else None


def _taken(file: int) -> bool:
    """Whether the lock could be had. `holder` holds it for a moment when it looks, so it is asked for a few times."""
    for _ in range(TRIES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            time.sleep(WAIT_S)
    return False


def _who(about: dict[str, Any] | None) -> str:
    about = about or {}
    pid, host = about.get("pid", "?"), about.get("host", "an unknown host")
    return f"process {pid} on {host}" + (f" since {about['since']}" if "since" in about else "")


def _is_still(path: Path, file: int) -> bool:
    try:
        return os.fstat(file).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
