"""The lock of a run folder: two runs never write to one, and a dead one never keeps it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workshop import Workshop, write_base
from unified import StageContext, UserError
from unified.lock import LOCK_FILE, RunLock, holder
from unified.recipe import load_recipe
from unified.registry import using
from unified.runner import run_recipe

HOLD = """
import sys, time
from pathlib import Path
from unified.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_folder_is_free_again_when_its_run_ends(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        about = holder(tmp_path)
        assert about is not None
        assert (about["pid"], about["host"]) == (os.getpid(), socket.gethostname())
    assert holder(tmp_path) is None
    assert not (tmp_path / LOCK_FILE).exists()
    with RunLock(tmp_path) as lock:
        assert lock.note is None


def test_a_folder_that_another_process_writes_to_is_refused_and_named(
    other: subprocess.Popen[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"in use by process {other.pid} on {socket.gethostname()}"), RunLock(tmp_path):
        pass
    assert holder(tmp_path) is not None  # the attempt has taken nothing away


def test_the_lock_of_a_killed_process_is_taken_over_with_a_note(other: subprocess.Popen[str], tmp_path: Path) -> None:
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (tmp_path / LOCK_FILE).exists()
    assert holder(tmp_path) is None
    with RunLock(tmp_path) as lock:
        assert lock.note is not None
        assert lock.note.startswith(f"the lock of process {other.pid} on {socket.gethostname()}")


def test_a_lock_of_another_host_is_refused_because_nobody_here_can_tell_whether_it_is_dead(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    with pytest.raises(UserError, match="may be in use by process 1 on elsewhere") as said, RunLock(tmp_path):
        pass
    assert f"delete {tmp_path / LOCK_FILE}" in str(said.value)
    about = holder(tmp_path)
    assert about is not None
    assert about["host"] == "elsewhere"


def test_a_second_run_in_the_same_folder_is_refused_and_leaves_the_first_alone(tmp_path: Path) -> None:
    write_base(tmp_path / "iron")
    (tmp_path / "r.yaml").write_text("name: demo\nmodel: ./iron\nstages: {one: {mark: a}}\n")
    shop = Workshop()
    refused: list[str] = []

    def again(stage: StageContext) -> None:
        before = (tmp_path / "out" / "run.json").read_text()
        with pytest.raises(UserError) as said:
            run_recipe(load_recipe(tmp_path / "r.yaml", ["stages.one.mark=b"]), tmp_path / "out")
        refused.append(str(said.value))
        assert (tmp_path / "out" / "run.json").read_text() == before

    shop.during = again
    with using(shop.catalogue()):
        run_recipe(load_recipe(tmp_path / "r.yaml"), tmp_path / "out")
    assert shop.ran == ["one"]
    assert refused[0].startswith(f"{tmp_path / 'out'} is in use by process {os.getpid()}")
