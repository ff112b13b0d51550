"""The commands that show a run in a browser: report, watch. Imports nothing heavy before one runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unified.saying import said_plainly


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="The folder of a run; several are compared.")],
    output: Annotated[
        Path | None, typer.Option("--output", help="The file. Without: RUN/report.html, or comparison.html here.")
    ] = None,
) -> None:
    """Write one HTML page about a run: curves, samples, lineage, settings, speed. Of several runs a comparison.

    Example: unified report runs/quickstart
    """
    with said_plainly():
        from unified.report.command import write_report

        typer.echo(write_report(runs, output))


def watch(
    run: Annotated[Path, typer.Argument(help="The folder of a run.")],
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: one that is free.")] = 0,
) -> None:
    """Serve the report of a run to this machine, growing while the run goes on; Ctrl-C ends it.

    Example: unified watch runs/quickstart --port 8080
    """
    with said_plainly():
        from unified.report.command import watch as serve

        serve(run, port, typer.echo)


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    for command in (report, watch):
        app.command()(command)
