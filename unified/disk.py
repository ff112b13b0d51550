"""Files that are there whole or not at all, also when the machine stops; and a full disk, said plainly. No torch."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unified.errors import UserError

#: no space left, quota used up, file over the limit of the system
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: how libraries that write by themselves (safetensors, tokenizers) pass these on
_AS_TEXT = re.compile(rf"\(os error ({'|'.join(map(str, FULL))})\)")


def sync(path: Path) -> None:
    """What was written to a file, or which entries a folder has, reaches the disk before this returns."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def sync_tree(folder: Path) -> None:
    """The same for a folder with all that lies in it."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            sync_tree(entry)
        elif entry.is_file():
            sync(entry)
    sync(folder)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A draft to write into; when the block ends without an error it is on the disk and in the place of `folder`.

    Files that lie in the folder already and are not written anew stay.
    """
    draft = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        sync_tree(draft)
        if folder.exists():
            for entry in sorted(draft.iterdir()):
                if (folder / entry.name).is_dir():
                    shutil.rmtree(folder / entry.name)
                entry.replace(folder / entry.name)
            sync(folder)
        else:
            draft.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def is_full(error: BaseException) -> OSError | None:
    """The error of a full disk behind an error, whoever passed it on; None for any other."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in FULL:
            return seen
        if (found := _AS_TEXT.search(str(seen))) is not None and not isinstance(seen, UserError):
            return OSError(int(found[1]), os.strerror(int(found[1])))
        seen = seen.__cause__ or seen.__context__
    return None


def full_disk(what: str, error: OSError, folder: Path, *, needed: int | None = None) -> UserError:
    """The one message of a full disk. what: could not be written; folder: where; needed: bytes, where known."""
    try:
        free = f"{size(shutil.disk_usage(folder).free)} are free there"
    except OSError:
        free = ""
    wanted = f"it needs {size(needed)}" if needed is not None else ""
    sizes = "; ".join(text for text in (wanted, free) if text)
    where = (
        f"{what} could not be written to {folder}" if not error.filename else f"{error.filename} could not be written"
    )
    return UserError(
        f"{where}: {error.strerror or error}" + (f" ({sizes})" if sizes else ""),
        "free some space there, or run in another folder with --output; then run the same command again:",
        "what is done stays as it is, and a stage that was cut off goes on from its last checkpoint",
    )


@contextmanager
def space_for(what: str, folder: Path, *, needed: int | None = None) -> Iterator[None]:
    """UserError with path and sizes where the block meets a full disk."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        full = is_full(error)
        if full is None:
            raise
        raise full_disk(what, full, folder, needed=needed) from error


def size(number: int) -> str:
    """Bytes as a person writes them: 512 B, 3.2 MB, 1.4 GB."""
    value = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
