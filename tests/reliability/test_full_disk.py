"""A full disk stops a run with exit code 2 and one message; the last checkpoint is whole, and the run can go on."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.reliability.test_checkpoint import LONG, cut, go_on, told, weights
from tests.strangers import Plugin
from tests.tools import stage, tiny_policy, train_settings
from unified import UserError
from unified.checkpoint import damage, steps_in
from unified.disk import is_full, size, space_for
from unified.loop import train, train_stage
from unified.registry import Catalogue, using

WRITTEN = {**LONG, "max_steps": 12, "save_steps": 2}


@pytest.fixture(autouse=True)
def only_strangers() -> Iterator[None]:
    """A catalogue without any built-in part."""
    with using(Catalogue({"stranger": Plugin()}, installed=False)):
        yield


def test_a_checkpoint_that_the_disk_has_no_room_for_is_not_begun_and_its_size_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, _ = go_on(tmp_path / "a", WRITTEN)
    names = cut(tmp_path / "b", WRITTEN, after=2)
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=1000))
    with pytest.raises(UserError) as said:
        train(stage(tmp_path / "b", {"base": tiny_policy()}), train_settings(**WRITTEN))
    first, *advice = str(said.value).splitlines()
    assert first.startswith(f"checkpoint step-6 could not be written to {tmp_path / 'b' / 'checkpoint'}: No space left")
    assert first.endswith("1.0 kB are free there)")
    assert "(it needs " in first
    assert "run the same command again" in advice[0]
    assert steps_in(tmp_path / "b" / "checkpoint") == names
    assert not (tmp_path / "b" / "checkpoint" / "draft").exists()
    monkeypatch.undo()
    again, _ = go_on(tmp_path / "b", WRITTEN)
    assert torch.equal(weights(again), weights(straight))
    assert told(tmp_path / "a") == told(tmp_path / "b")


@pytest.mark.parametrize("room", [3_000, 20_000])
def test_a_disk_that_becomes_full_while_a_checkpoint_is_written_leaves_the_one_before(
    tmp_path: Path, room: int
) -> None:
    straight, _ = go_on(tmp_path / "a", WRITTEN)
    names = cut(tmp_path / "b", WRITTEN, after=2)
    child = os.fork()
    if child == 0:  # the limit on the size of a file cannot be lifted again
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
            train(stage(tmp_path / "b", {"base": tiny_policy()}), train_settings(**WRITTEN))
        except UserError as error:
            (tmp_path / "said").write_text(str(error))
            code = 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    assert f"{tmp_path / 'b' / 'checkpoint'}" in (tmp_path / "said").read_text()
    assert "File too large" in (tmp_path / "said").read_text()
    assert steps_in(tmp_path / "b" / "checkpoint") == names
    assert damage(tmp_path / "b" / "checkpoint", names[0], tmp_path / "b") is None
    again, _ = go_on(tmp_path / "b", WRITTEN)
    assert torch.equal(weights(again), weights(straight))
    assert told(tmp_path / "a") == told(tmp_path / "b")


def test_a_disk_that_is_full_when_the_model_is_written_leaves_no_half_of_it(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            settings = train_settings(algorithm="imitate", data="letters", max_steps=1)
            context = stage(tmp_path, {"base": tiny_policy()})
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            train_stage(context, settings)
        except UserError as error:
            (tmp_path / "said").write_text(str(error))
            code = 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    assert (tmp_path / "said").read_text().startswith(f"the model could not be written to {tmp_path}: File too large")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "coefficients.jsonl",
        "metrics.jsonl",
        "said",
        "samples.jsonl",
    ]


LIMITED = """
import resource, sys
from unified.__main__ import main
import unified.checkpoint
real = unified.checkpoint.save_checkpoint
def save(run):
    if run.step == 4:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    return real(run)
unified.checkpoint.save_checkpoint = save
import unified.loop
unified.loop.save_checkpoint = save
main()
"""
RECIPE = """
name: small
model: {new: {model_type: llama, hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2,
              max_position_embeddings: 32}, tokenizer: random_walks}
stages: {imitate: {algorithm: sft, data: {name: random_walks, rows: 40}, batch_size: 4, max_steps: 6, save_steps: 2}}
"""


@pytest.mark.slow
def test_the_command_ends_with_code_2_one_message_and_no_traceback_and_can_be_run_again(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    arguments = ["run", "r.yaml", "--output", "out", "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    about = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", LIMITED, *arguments], **about)  # type: ignore[call-overload]
    assert done.returncode == 2, done.stderr
    assert "out/imitate/checkpoint" in done.stderr
    assert "File too large" in done.stderr
    assert "run the same command again" in done.stderr
    assert "Traceback" not in done.stderr
    assert steps_in(tmp_path / "out" / "imitate" / "checkpoint") == ["step-2"]
    again = subprocess.run([sys.executable, "-m", "unified", *arguments], **about)  # type: ignore[call-overload]
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "out" / "imitate" / "manifest.json").read_text())["summary"]["steps"] == 6


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_known_whoever_passes_it_on(tmp_path: Path, number: int) -> None:
    plain = OSError(number, os.strerror(number))
    told_by_a_library = RuntimeError(f"Error while serializing: I/O error: it is full (os error {number})")
    passed_on = RuntimeError("a plugin raised")
    passed_on.__cause__ = plain
    for error in (plain, told_by_a_library, passed_on):
        found = is_full(error)
        assert found is not None
        assert found.errno == number
        with pytest.raises(UserError, match="could not be written"), space_for("it", tmp_path):
            raise error
    assert is_full(OSError(errno.EACCES, "no")) is None
    assert is_full(ValueError("os error 281")) is None


def test_bytes_are_said_as_a_person_writes_them() -> None:
    assert [size(n) for n in (0, 999, 1000, 1_449_999, 2 * 10**12)] == ["0 B", "999 B", "1.0 kB", "1.4 MB", "2.0 TB"]


assert signal.SIGXFSZ  # Python ignores it, so that a file over the limit is an error and not the end
