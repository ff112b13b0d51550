"""A sandbox holds whatever runs in it: hostile programs end within their limits and touch nothing outside."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unified_plugins.rewards import _sandbox
from unified_plugins.rewards._guarded import guarded
from unified_plugins.rewards._sandbox import Limits, Program, Refused, Verdict

HOSTILE = sorted((Path(__file__).parent / "hostile").glob("*.txt"))
#: a number of open files that marks the processes of this file's sandboxes
MARK = 61
SHORT = Limits(timeout_s=1.5, cpu_s=1.0, memory_mb=128, processes=12, open_files=MARK, output_kb=64)
SQUARES = (guarded("assert f(2) == 4"),)


@pytest.fixture(scope="module")
def held() -> Limits:
    """Limits that are proven to hold here; the tests that run programs are skipped where no sandbox can be had."""
    try:
        _sandbox.prove(SHORT)
    except Refused as error:
        pytest.skip(f"no sandbox here: {' '.join(error.args)}")
    return SHORT


def run(text: str, *tests: str, limits: Limits = SHORT) -> Verdict:
    return _sandbox.run(Program(text, tuple(guarded(test) for test in tests)), limits)


# --- the outer limits, by bounded loops, before anything unbounded runs ---

FORKS = """
import os, time
started = 0
try:
    for _ in range(50):
        if os.fork() == 0:
            time.sleep(60)
        started += 1
except OSError:
    pass
"""


def test_a_loop_of_fifty_forks_is_stopped_at_the_limit_and_only_by_it(held: Limits) -> None:
    few = replace(held, timeout_s=20.0, processes=12)
    assert run(FORKS, "assert 5 <= started < 12", limits=few).why == "passed"
    assert run(FORKS, "assert started == 50", limits=replace(few, processes=80)).why == "passed"


def test_the_memory_of_a_process_and_of_all_is_stopped_at_the_limit_and_only_by_it(held: Limits) -> None:
    large = "try:\n    held = bytearray(200 << 20)\nexcept MemoryError:\n    held = b''"
    wide = replace(held, timeout_s=20.0, cpu_s=20.0)
    assert run(large, "assert len(held) == 0", limits=wide).why == "passed"
    assert run(large, "assert len(held) > 0", limits=replace(wide, memory_mb=512)).why == "passed"
    many = (
        "import os, time\nfor _ in range(4):\n    if os.fork() == 0:\n        b = bytearray(90 << 20)\n"
        "        time.sleep(60)\ntime.sleep(0.6)"
    )
    assert run(many, "assert True", limits=wide).why == "memory"  # 4 of 90 are more than 128
    assert run(many, "assert True", limits=replace(wide, memory_mb=1024)).why == "passed"


# --- hostile programs ---


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What lies outside of the sandbox, in reach of a program that gets out."""
    folder = tmp_path_factory.mktemp("outside")
    canary = folder / "canary"
    canary.write_text("untouched")
    os.chmod(canary, 0o666)
    bystander = subprocess.Popen(["sleep", "300"])
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as named:
        udp, abstract = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket(socket.AF_UNIX)
        port, address, name = tcp.getsockname()[1], f"/tmp/hostile-{os.getpid()}", f"hostile-{os.getpid()}"
        udp.bind(("127.0.0.1", port))
        named.bind(address)
        abstract.bind("\0" + name)
        for end in (tcp, named, abstract):
            end.listen()
        for end in (tcp, udp, named, abstract):
            end.setblocking(False)
        words = {"CANARY": canary, "FOLDER": folder, "PORT": port, "PID": os.getpid(), "GROUP": os.getpgid(0)}
        words |= {"SOCKET": address, "ABSTRACT": name, "PATHS": [p for p in sys.path if "site-packages" in p]}
        yield {"words": words, "canary": canary, "bystander": bystander, "ears": (tcp, named, abstract), "udp": udp}
        os.unlink(address)
        udp.close()
        abstract.close()
    bystander.kill()
    bystander.wait()


def filled(path: Path, words: dict[str, Any]) -> str:
    text = path.read_text(encoding="utf-8")
    for word, value in words.items():
        text = text.replace(f"@{word}@", str(value))
    return text


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


def sandboxed() -> list[int]:
    """Processes of this machine that run under the limits of this file."""
    found = []
    for path in Path("/proc").glob("[0-9]*/limits"):
        try:
            if any(line.split()[:5] == ["Max", "open", "files", str(MARK), str(MARK)] for line in path.open()):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def verdicts(held: Limits, outside: dict[str, Any]) -> dict[str, Any]:
    """Every hostile program, judged side by side with the others and with four that are right."""
    before = (environment(), os.getcwd())
    texts = [filled(path, outside["words"]) for path in HOSTILE]
    programs = [Program(text, SQUARES) for text in texts]
    right = [Program(f"def f(x): return x * x  # {n}", SQUARES) for n in range(4)]
    where = [n * len(programs) // 3 for n in range(4)]
    mixed = list(programs)
    for place, one in zip(reversed(where), reversed(right), strict=True):
        mixed.insert(place, one)
    found = _sandbox.run_all(mixed, held, workers=4)
    by_program = dict(zip(mixed, found, strict=True))
    return {
        "hostile": {p.stem: by_program[one] for p, one in zip(HOSTILE, programs, strict=True)},
        "right": [by_program[one] for one in right],
        "before": before,
    }


def test_there_are_more_than_forty_hostile_programs() -> None:
    assert len(HOSTILE) > 40


@pytest.mark.parametrize("name", [path.stem for path in HOSTILE])
def test_a_hostile_program_fails_its_test_within_its_limits(name: str, verdicts: dict[str, Any]) -> None:
    verdict: Verdict = verdicts["hostile"][name]
    assert verdict.known, verdict.error
    assert verdict.passed == (False,)
    assert verdict.why in {"failed", "exited", "time", "processor", "memory", "output", "forged"}
    assert verdict.seconds < SHORT.timeout_s + 3  # the watcher shares two cores with the bombs
    assert verdict.processor_s < SHORT.cpu_s + 1


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("endless_loop", {"processor", "time"}), ("endless_sleep", {"time"}), ("output_flood", {"output"}),
        ("memory_of_many_processes", {"memory"}), ("busy_processes", {"processor", "time"}),
        ("printing_success", {"forged"}),
        ("exit_before_the_tests", {"failed"}), ("hard_exit_before_the_tests", {"exited"}), ("no_program", {"failed"}),
        ("guessing_the_token", {"forged"}),
    ],
)  # fmt: skip
def test_the_verdict_tells_what_stopped_it(name: str, why: set[str], verdicts: dict[str, Any]) -> None:
    assert verdicts["hostile"][name].why in why


def test_right_programs_among_the_hostile_ones_pass(verdicts: dict[str, Any]) -> None:
    assert [v.passed for v in verdicts["right"]] == [(True,)] * 4


def test_the_run_is_untouched_by_all_of_them(verdicts: dict[str, Any], outside: dict[str, Any]) -> None:
    assert (environment(), os.getcwd()) == verdicts["before"]
    assert outside["canary"].read_text() == "untouched"
    assert [path.name for path in outside["canary"].parent.iterdir()] == ["canary"]
    assert outside["bystander"].poll() is None
    for ear in outside["ears"]:
        with pytest.raises(BlockingIOError):  # nobody called
            ear.accept()
    with pytest.raises(BlockingIOError):
        outside["udp"].recv(100)


def test_no_process_outlives_its_sandbox(held: Limits, verdicts: dict[str, Any]) -> None:
    assert sandboxed() == []
    watched: list[int] = []
    thread = threading.Thread(target=run, args=("import time\ntime.sleep(60)", "assert True"))
    thread.start()
    while thread.is_alive():  # the search does find one that is alive
        watched += sandboxed()
    assert watched
    assert sandboxed() == []


# --- other users, other isolation ---

#: loads the sandbox without the packages around it, so that any interpreter and user can
ALONE = """
import sys, types
for name, path in (("unified_plugins", {top!r}), ("unified_plugins.rewards", {top!r} + "/rewards")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
from unified_plugins.rewards import _kernel, _sandbox
from unified_plugins.rewards._sandbox import Limits, Program, Refused
limits = Limits(timeout_s=2.0, cpu_s=1.0, memory_mb=128, processes=12)
"""
TOP = str(Path(_sandbox.__file__).resolve().parents[1])


def test_without_namespaces_programs_are_refused_unless_the_recipe_asks_for_limits_alone() -> None:
    script = ALONE.format(top=TOP) + (
        "_kernel.give_up_privileges()\n_kernel.filter_calls(signals=True)\n"  # unshare is no longer allowed
        "try:\n    _sandbox.run_all([Program('', (('assert True', True),))], limits, workers=1)\n"
        "except Refused as error:\n    print('\\n'.join(error.args))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "no program is run here" in done.stdout, done.stderr
    assert "unshare" in done.stdout
    assert "`isolation: limits`" in done.stdout


def _everybodys_python() -> str:
    """An interpreter that a user without rights may run, new enough for the sandbox; skips where there is none."""
    for python in filter(None, (sys.executable, shutil.which("python3", path="/usr/bin:/usr/local/bin"))):
        ask = [python, "-I", "-c", "import sys; print(sys.version_info >= (3, 11))"]
        other = {"user": 2**31 - 7, "group": 2**31 - 7, "extra_groups": []} if os.geteuid() == 0 else {}
        try:
            done = subprocess.run(ask, capture_output=True, text=True, timeout=60, cwd="/", **other)  # type: ignore[call-overload]
        except OSError:
            continue
        if done.stdout.strip() == "True":
            return python
    pytest.skip("no Python 3.11 here that every user may run")


NAMES = ["fork_bomb", "memory_of_many_processes", "network_tcp", "killing_the_parent", "killing_all",
         "daemon_that_outlives", "busy_processes", "endless_sleep"]  # fmt: skip


@pytest.mark.parametrize("isolation", ["namespaces", "limits"])
def test_an_ordinary_user_is_as_safe(isolation: str, outside: dict[str, Any]) -> None:
    python = _everybodys_python()
    texts = [filled(Path(__file__).parent / "hostile" / f"{name}.txt", outside["words"]) for name in NAMES]
    script = ALONE.format(top=TOP) + (
        f"import dataclasses, json, os\nlimits = dataclasses.replace(limits, isolation={isolation!r})\n"
        f"programs = [Program(t, (('assert f(2) == 4', True),)) for t in json.loads({json.dumps(texts)!r})]\n"
        "programs.append(Program('def f(x): return x * x', (('assert f(2) == 4', True),)))\n"
        "try:\n    found = _sandbox.run_all(programs, limits, workers=4)\n"
        "    print(json.dumps([os.getuid(), [(v.known, v.passed) for v in found]]))\n"
        "except Refused as error:\n    print(json.dumps([os.getuid(), ' '.join(error.args)]))"
    )
    other = {"user": 2**31 - 7, "group": 2**31 - 7, "extra_groups": []} if os.geteuid() == 0 else {}
    done = subprocess.run([python, "-B", "-c", script], capture_output=True, text=True, timeout=120, cwd="/", **other)  # type: ignore[call-overload]
    user, found = json.loads(done.stdout or f"[0, {json.dumps(done.stderr[-500:])}]")
    assert user != 0, found
    if isinstance(found, str):
        pytest.skip(f"no sandbox for an ordinary user here: {found}")
    assert found == [[True, [False]]] * len(NAMES) + [[True, [True]]]


def test_limits_alone_hold_the_same_bombs(outside: dict[str, Any]) -> None:
    limits = replace(SHORT, isolation="limits", python=_everybodys_python())
    texts = [filled(Path(__file__).parent / "hostile" / f"{name}.txt", outside["words"]) for name in NAMES]
    found = _sandbox.run_all([Program(t, SQUARES) for t in [*texts, "def f(x): return x * x"]], limits, workers=4)
    assert [(v.known, v.passed) for v in found] == [(True, (False,))] * len(NAMES) + [(True, (True,))]
    assert sandboxed() == []
    assert outside["bystander"].poll() is None
