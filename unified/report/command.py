"""What `unified report` and `unified watch` do, and the report at the end of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from unified.errors import UserError
from unified.manifest import write_whole
from unified.report.collect import limits_for, page_data, run_of
from unified.report.page import MARK, page
from unified.runner import RUN_FILE

REPORT, COMPARISON = "report.html", "comparison.html"
Say = Callable[[str], None]


def write_report(runs: Sequence[Path], output: Path | None = None) -> Path:
    """Write the report of a run, or the comparison of several, and give its path.

    output: the file; without, report.html in the folder of the run, or comparison.html here for several.
    UserError where a folder holds no run, the file is something else than an earlier report, or it cannot be written.
    """
    different = list({run.resolve(): run for run in runs}.values())
    if not different:
        raise UserError("no run was named", "give the folder of a run, or several to compare them")
    limits = limits_for(different)
    html = page(page_data([run_of(run, limits) for run in different]))
    path = output or (different[0] / REPORT if len(different) == 1 else Path(COMPARISON))
    if path.is_dir():
        raise UserError(f"{path} is a folder", f"name a file in it: --output {path / REPORT}")
    if path.exists() and not _is_report(path):
        raise UserError(f"{path} is there already and is no report", "give another file with --output")
    try:
        write_whole(path, html)
    except OSError as error:
        with suppress(OSError):  # what was begun
            path.with_name(f".{path.name}.part").unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written: {error.strerror}", "give another file with --output") from error
    return path


def after_run(run: Path, say: Say) -> None:
    """The report at the end of a run, however it ended; none of one that never began.

    What goes wrong is said, and does not make the run fail.
    """
    if not (run / RUN_FILE).is_file():
        return
    try:
        say(f"Report: {write_report([run])}")
    except UserError as error:
        say(f"no report was written: {error}")
    except Exception as error:
        say(f"no report was written: {type(error).__name__}: {error}; `unified report {run}` tries it again")


def watch(run: Path, port: int, say: Say) -> None:
    """Serve the report of a run until Ctrl-C."""
    from unified.report.watch import Server

    with Server(run, port) as server:
        try:
            say(f"watching {run} at {server.address}  (Ctrl-C ends it)")
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            say("stopped")


def _is_report(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(len(MARK)) == MARK
    except OSError:
        return False
