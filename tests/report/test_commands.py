"""`unified report`, `unified watch`, and the report at the end of `unified run`: exit codes and what is printed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.report.runs import chain
from tests.report.test_page import data_of
from tests.workshop import Workshop, write_base
from unified.cli import app
from unified.machine import machine
from unified.registry import using


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    write_base(tmp_path / "iron")
    (tmp_path / "r.yaml").write_text("name: demo\nmodel: ./iron\nstages:\n  one: {mark: a}\n")
    monkeypatch.chdir(tmp_path)
    made = Workshop()
    with using(made.catalogue()):
        yield made


def unified(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def test_a_run_ends_with_its_report_which_tells_what_it_ran_on(workshop: Workshop) -> None:
    result = unified("run", "r.yaml")
    assert "Report: runs/demo/report.html" in result.stdout
    (stage,) = data_of(Path("runs/demo/report.html").read_text(encoding="utf-8"))["runs"][0]["stages"]
    assert (stage["name"], stage["state"], ["eval/reward", 0.75] in stage["summary"]) == ("one", "done", True)
    assert ["processor", machine()["processor"]] in stage["facts"]


def test_a_report_that_cannot_be_written_does_not_fail_the_run(workshop: Workshop) -> None:
    Path("runs/demo/report.html").mkdir(parents=True)
    result = unified("run", "r.yaml")
    assert result.exit_code == 0
    assert "no report was written: runs/demo/report.html is a folder" in result.stdout


def test_a_run_that_is_stopped_leaves_a_report_of_how_far_it_came(workshop: Workshop) -> None:
    def stop(_: object) -> None:
        raise KeyboardInterrupt

    workshop.during = stop
    assert unified("run", "r.yaml").exit_code == 130
    (stage,) = data_of(Path("runs/demo/report.html").read_text(encoding="utf-8"))["runs"][0]["stages"]
    assert stage["state"] == "cut off"


def test_a_run_that_fails_leaves_a_report_with_its_error(workshop: Workshop) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError("the forge is cold")

    workshop.during = fail
    assert unified("run", "r.yaml").exit_code == 1
    (stage,) = data_of(Path("runs/demo/report.html").read_text(encoding="utf-8"))["runs"][0]["stages"]
    assert stage["error"].endswith("ZeroDivisionError: the forge is cold")


def test_a_report_in_the_run_folder_changes_nothing_for_the_next_run(workshop: Workshop) -> None:
    unified("run", "r.yaml")
    assert "one: done already" in unified("run", "r.yaml").stdout
    assert workshop.ran == ["one"]


def test_report_prints_the_path_of_the_file(tmp_path: Path) -> None:
    run = chain(tmp_path / "run")
    result = unified("report", str(run), "--output", str(tmp_path / "page.html"))
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'page.html'}\n")


@pytest.mark.parametrize("command", ["report", "watch"])
def test_a_folder_that_holds_no_run_is_a_mistake_of_the_user(command: str, tmp_path: Path) -> None:
    chain(tmp_path / "inner")
    result = unified(command, str(tmp_path))
    assert result.exit_code == 2
    assert result.stderr == f"{tmp_path} holds no run\n    runs in it: inner\n"


def test_neither_command_imports_torch(tmp_path: Path) -> None:
    code = "import sys, unified.report.command, unified.report.watch\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_watch_prints_its_address_at_once_and_ends_with_0_on_ctrl_c(tmp_path: Path) -> None:
    run = chain(tmp_path / "run")
    command = [sys.executable, "-m", "unified", "watch", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert process.stdout is not None
    try:
        assert re.match(rf"watching {run} at http://127\.0\.0\.1:\d+/", process.stdout.readline())
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
