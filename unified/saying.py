"""How a command ends that cannot go on: one message on the error stream, and an exit code. Imports no torch."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NoReturn

import typer

from unified.errors import PluginError, UserError
from unified.secret import masked


@contextmanager
def said_plainly() -> Iterator[None]:
    """Mistakes of the user end with exit code 2, those of plugins with 1, Ctrl-C with 130, SIGTERM with 143."""
    try:
        yield
    except UserError as error:
        leave(str(error), 2)
    except PluginError as error:
        leave(str(error), 1)
    except KeyboardInterrupt as error:
        from unified.interrupt import exit_code

        leave("stopped; run the same command again to go on", exit_code(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the exit does not try again
        raise typer.Exit(1) from None


def leave(message: str, code: int) -> NoReturn:
    """End the command with this message, secrets hidden, and this exit code. Of several processes one says it."""
    text = masked(message)
    if first_to_say(text):
        typer.echo(text, err=True)
    raise typer.Exit(code)


def first_to_say(text: str) -> bool:
    """Whether no other process of this launch has said the same; True where they cannot be asked.

    They are asked through the store of torch's elastic launcher, which is there before the processes know each other,
    and after one of them has failed.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    place, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    about = (os.environ.get("TORCHELASTIC_RUN_ID"), os.environ.get("TORCHELASTIC_RESTART_COUNT"), text)
    try:
        store = TCPStore(place, port, is_master=False, timeout=timedelta(seconds=10))
        return bool(store.add(f"unified/said/{hashlib.sha256(repr(about).encode()).hexdigest()}", 1) == 1)
    except RuntimeError:  # the launcher has gone
        return True
