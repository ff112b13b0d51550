"""`--launch`: which processes a configuration asks for, what is wrong with one, and how the launcher ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import DistBackendError, TCPStore
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from typer.testing import CliRunner

from unified import UserError
from unified import launch as launching
from unified.cli import app
from unified.launch import config_file, launch, read_config, shipped, written
from unified.launched import refuse_asked, without_a_part
from unified.processes import lost_another
from unified.saying import first_to_say

Launched = Callable[..., dict[str, str]]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Launched:
    """Launches where nothing is started; gives the environment that accelerate would give to the processes."""
    from accelerate.commands import launch as accelerates
    from accelerate.utils import launch as preparing

    found: dict[str, str] = {}
    monkeypatch.setattr("os.environ", dict(os.environ, OMP_NUM_THREADS="3"))
    monkeypatch.setattr("accelerate.utils.is_deepspeed_available", lambda: True)

    def plain(args: Any) -> None:
        found.update(preparing.prepare_multi_gpu_env(args), NPROC=args.nproc_per_node)

    def deepspeed(args: Any) -> None:
        found.update(preparing.prepare_deepspeed_cmd_env(args)[1], NPROC=args.nproc_per_node)

    monkeypatch.setattr(accelerates, "multi_gpu_launcher", plain)
    monkeypatch.setattr(accelerates, "deepspeed_launcher", deepspeed)

    def go(config: str, *, devices: int = 4, **environment: str) -> dict[str, str]:
        monkeypatch.setattr(launching, "_devices", lambda: devices)
        os.environ.update(environment)
        assert launch(config, ["run", "r.yaml"]) == 0
        return found

    return go


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ("gpus", {"NPROC": "4"}),
        ("fsdp2", {"NPROC": "4", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}),
        ("zero2", {"NPROC": "4", "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}),
        ("zero3", {"NPROC": "4", "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}),
        ("cpu", {"NPROC": "2", "ACCELERATE_USE_CPU": "true"}),
    ],
)
def test_a_shipped_configuration_asks_for_every_device_and_keeps_the_threads_of_the_user(
    launched: Launched, config: str, wanted: dict[str, str]
) -> None:
    found = launched(config)
    assert {key: found.get(key) for key in wanted} == wanted
    assert found["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize("config", ["fsdp2", "nodes", "zero2", "zero3"])
def test_a_shipped_way_of_sharing_asks_for_nothing_that_is_refused_or_has_no_part(
    launched: Launched, config: str
) -> None:
    found = launched(config, NNODES="1")
    assert without_a_part(found) == []
    refuse_asked(found)
    if config in ("fsdp2", "nodes"):
        assert (found["FSDP_VERSION"], found["FSDP_CPU_RAM_EFFICIENT_LOADING"]) == ("2", "false")
    if config == "zero3":
        assert found["ACCELERATE_DEEPSPEED_ZERO3_INIT"] == "false"


def test_several_machines_are_told_apart_by_the_environment(launched: Launched) -> None:
    # 2 machines of 4 devices: 4 processes here, FSDP2
    found = launched("nodes", NNODES="2", NODE_RANK="1", MASTER_ADDR="10.0.0.7")
    assert (found["NPROC"], found["ACCELERATE_USE_FSDP"]) == ("4", "true")
    with pytest.raises(UserError, match="nothing tells which one this is") as raised:
        launching.Processes(config_file("nodes"), read_config(config_file("nodes")), {})
    assert "NODE_RANK" in str(raised.value)


def test_sharding_on_a_cpu_is_asked_for_as_the_engine_reads_it(launched: Launched, tmp_path: Path) -> None:
    sharded, zero = tmp_path / "fsdp.yaml", tmp_path / "zero.yaml"
    for file, name in ((sharded, "fsdp2"), (zero, "zero3")):
        file.write_text(config_file(name).read_text() + "use_cpu: true\nnum_processes: 2\n")
    found = dict(launched(str(sharded), devices=0))
    assert (found["NPROC"], found["ACCELERATE_USE_CPU"], found["ACCELERATE_USE_FSDP"]) == ("2", "true", "true")
    del os.environ["ACCELERATE_USE_CPU"]
    found = dict(launched(str(zero), devices=0))
    assert (found["DS_ACCELERATOR"], found["ACCELERATE_USE_DEEPSPEED"]) == ("cpu", "true")
    assert "ACCELERATE_USE_CPU" not in os.environ


def test_every_shipped_file_says_what_it_is_and_is_one_of_those_that_the_page_tells_of() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "processes.md").read_text(encoding="utf-8")
    assert len(shipped()) == 7
    for name in shipped():
        assert config_file(name).read_text().startswith("# ")
        assert f"`{name}`" in page


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("distributed_type: MULTI_GPU\nnum_proceses: 2\n", ["no key 'num_proceses'", "did you mean 'num_processes'?"]),
        ("distributed_type: MULTI_GPUS\n", ["no distributed_type 'MULTI_GPUS'", "did you mean 'MULTI_GPU'?"]),
        ("distributed_type: NO\n", ['write "NO" in quotes']),
        ("num_processes: 2\n", ["it has no `distributed_type`"]),
        ("- MULTI_GPU\n", ["is a mapping, this is list"]),
        ("distributed_type: [\n", ["not a configuration file that can be read"]),
        (
            "distributed_type: MULTI_CPU\nuse_cpu: true\nnum_processes: two\n",
            ["`num_processes` is 'two', not a number"],
        ),
        ("distributed_type: MULTI_CPU\nuse_cpu: true\nnum_processes: 0\n", ["0 processes on 1 machines"]),
        ("distributed_type: MEGATRON_LM\nuse_cpu: true\nnum_processes: 2\n", ["MEGATRON_LM is not supported"]),
    ],
)
def test_a_broken_file_gets_one_message_that_names_it(tmp_path: Path, text: str, said: list[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    result = CliRunner().invoke(app, ["run", "r.yaml", "--launch", str(file)])
    assert result.exit_code == 2
    assert result.stderr.startswith(str(file))
    assert all(each in result.stderr for each in said), result.stderr


def test_a_misspelt_name_is_answered_with_the_nearest_one_and_a_missing_file_with_all() -> None:
    result = CliRunner().invoke(app, ["run", "r.yaml", "--launch", "fsdp"])
    assert (result.exit_code, "did you mean 'fsdp2'?" in result.stderr) == (2, True)
    with pytest.raises(UserError, match="no such file") as raised:
        config_file("mine.yaml")
    assert "shipped: cpu, fsdp2, gpu" in str(raised.value)


def test_without_the_devices_it_says_how_many_there_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(launching, "_devices", lambda: 0)
    with pytest.raises(UserError, match="torch finds none on this machine"):
        launch("gpus", ["run"])
    monkeypatch.setattr(launching, "_devices", lambda: 2)
    (tmp_path / "eight.yaml").write_text("distributed_type: MULTI_GPU\nnum_processes: 8\n")
    with pytest.raises(UserError, match="8 processes need a device each, and torch finds 2"):
        launch(str(tmp_path / "eight.yaml"), ["run"])


def test_a_process_of_a_launcher_starts_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="inside of a process that a launcher has started"):
        launch("cpu", ["run"])


def test_options_are_passed_on_as_a_person_would_write_them() -> None:
    options = {"--output": Path("a b"), "--set": ["x=-1", "y=2"], "--profile": None, "--force": True, "--quiet": False}
    assert written(options) == ["--output=a b", "--set=x=-1", "--set=y=2", "--force"]


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (ChildFailedError("unified", {0: ProcessFailure(0, 7, 2, "none")}), 2, ""),
        (ChildFailedError("unified", {1: ProcessFailure(1, 7, -9, "none")}), 137, "process 1 was ended by SIGKILL"),
        (SignalException("asked", signal.SIGTERM), 143, ""),
        (SignalException("asked", signal.SIGINT), 130, ""),
    ],
)
def test_the_launcher_ends_with_the_code_of_the_first_to_end_badly_or_of_the_signal(
    launched: Launched,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raised: Exception,
    code: int,
    said: str,
) -> None:
    from accelerate.commands import launch as accelerates

    def fail(args: Any) -> None:
        raise raised

    monkeypatch.setattr(accelerates, "multi_gpu_launcher", fail)
    assert launch("cpu", ["run", "r.yaml"]) == code
    stderr = capsys.readouterr().err
    assert stderr.startswith(said)
    assert bool(stderr) == bool(said)


def test_a_second_signal_does_not_leave_the_processes_alone() -> None:
    waited = []

    def start() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGINT)  # while the launcher waits for them
            waited.append("to the end")

    with pytest.raises(SignalException) as raised, launching._signals_once(SignalException):
        start()
    assert raised.value.sigval == signal.SIGTERM
    assert waited == ["to the end"]


def test_of_several_processes_the_first_says_a_message_and_the_others_are_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert first_to_say("alone")
    assert first_to_say("alone")
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    assert [first_to_say(text) for text in ("a", "a", "b", "a")] == [True, False, True, False]


def test_an_error_that_tells_of_a_lost_companion_is_known_through_what_was_raised_from_it() -> None:
    error = ValueError("in a plugin")
    error.__cause__ = DistBackendError("NCCL error")
    assert lost_another(error)
    assert lost_another(RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer"))
    assert not lost_another(RuntimeError("shapes differ"))
