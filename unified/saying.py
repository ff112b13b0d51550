"""How a command ends that cannot go on: one message on the error stream, and an exit code. Imports no torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
    """End the command with this message, secrets hidden, and this exit code."""
    typer.echo(masked(message), err=True)
    raise typer.Exit(code)
