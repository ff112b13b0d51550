"""Pull the plug: SIGKILL at many points of a run of two stages, run again, compare with the run that was left alone.

    python -m tests.reliability.kills --points 50

prints the points and, of these, those whose run ended the same, by place; the last line is JSON. Equal means: the same
files, and these bit for bit, but for TIMES in metrics.jsonl and manifests.

One parent imports everything and forks a child for each run. Places are functions of the engine: a point is the n-th
call of one of them, where the child kills itself (of a function that writes, in the middle of the file). Others are
killed from outside at random moments, some of these as a process of its own (`python -m unified run`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

RECIPE = """
name: kills
seed: 3
threads: 1
model:
  new: {model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
        max_position_embeddings: 32}
  tokenizer: random_walks
defaults:
  lr_scheduler_type: linear
  learning_rate: 1e-2
  evaluation: {reward: &length {name: length, target: 3, width: 4}, num_prompts: 6, samples: 2, max_tokens: 6}
  metric_for_best_model: eval/reward
  sample_rows: 2
stages:
  imitate:
    algorithm: sft
    data: {name: random_walks, rows: 60}
    batch_size: 8
    max_steps: 7
    eval_steps: 3
    save_steps: 2
  online:
    algorithm: {name: grpo, kl_weight: 0.05, kl_target: 0.02}
    model: stage:imitate
    data: {name: random_walks, view: prompts}
    reward: *length
    source: {group_size: 4, max_tokens: 6}
    batch_size: 3
    collect_size: 6
    inner_epochs: 2
    max_steps: 12
    tokens_per_micro_batch: 48
    ref_sync_steps: 8
    eval_steps: 4
    save_steps: 1
"""
#: where files are written without waiting for a disk
MEMORY = Path("/dev/shm")
#: what a clock says: the only differences that are allowed
TIMES = {
    "metrics.jsonl": ("seconds", "tokens_per_second"),
    "manifest.json": ("started", "finished", "seconds", "last/tokens_per_second"),
}
#: place -> functions whose calls are points of it: (module, name in it)
PLACES: dict[str, tuple[tuple[str, str], ...]] = {
    "in generation": (("unified_plugins.engines._decode", "Decoder._step"),),
    "in the reward": (("unified.step", "judge"),),
    "in scoring": (("unified.running", "forward"),),
    "between micro-batches": (("unified.step", "learn"),),
    "between optimiser steps": (("unified.step", "update"), ("unified.loop", "split")),
    "between collected batches": (("unified.loop", "prepare"),),
    "in evaluation": (("unified.evaluate", "measure_answers"),),
    "writing metrics or samples": (("unified.loop", "write_metrics"), ("unified.loop", "write_samples")),
    "writing a checkpoint": (("unified.packing", "write_bytes"), ("unified.checkpoint", "write_bytes")),
    "putting a checkpoint in its place": (
        ("unified.checkpoint", "_put_in_place"),
        ("unified.checkpoint", "prune"),
        ("unified.checkpoint", "_drop"),
        ("unified.checkpoint", "sync"),
    ),
    "writing a model": (("unified.loop", "save_model"), ("unified.disk", "sync_tree")),
    "between stages": (
        ("unified.runner", "_finish"),
        ("unified.runner", "outputs_of"),
        ("unified.runner", "draft_of"),
        ("unified.runner", "write_whole"),
        ("unified.manifest", "Manifest.write"),
    ),
}
OUTSIDE, ALONE, RESUMING = "from outside", "from outside, a process of its own", "while it goes on after another kill"
#: of all points: killed from outside in a fork, and as a process of its own; killed twice
SHARES = {OUTSIDE: 0.1, ALONE: 0.1, RESUMING: 0.1}
RESUMED = (("unified.checkpoint", "_load"), ("unified.checkpoint", "_cut_off"), ("unified.checkpoint", "prune"))


@dataclass
class Plug:
    """Counts calls by function; kills this process at the n-th call of one, `half` way through what it writes."""

    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    at: tuple[tuple[str, str], int] | None = None

    def called(self, function: tuple[str, str]) -> bool:
        """Count one call; True where it is the last one."""
        self.calls[function] += 1
        return self.at == (function, self.calls[function])


PLUG = Plug()


def die() -> None:
    """As the kernel, a scheduler or a power cut would do it: nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


def wire(module: str, name: str) -> None:
    """Have the calls of a function counted, and its process killed where that is asked for."""
    from importlib import import_module

    owner: Any = import_module(module)
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    real: Callable[..., Any] = getattr(owner, last)
    function = (module, name)

    def counted(*arguments: Any, **named: Any) -> Any:
        if PLUG.called(function):
            half_way(real, last, arguments)
            die()
        return real(*arguments, **named)

    setattr(owner, last, counted)


def half_way(real: Callable[..., Any], name: str, arguments: tuple[Any, ...]) -> None:
    """What a function that writes leaves when it is killed in the middle: half of the file, or half of the line."""
    if name == "write_bytes":
        path, *parts = arguments
        data = b"".join(bytes(part) for part in parts)
        path.write_bytes(data[: len(data) // 2])
    elif name in ("write_metrics", "write_samples"):
        log = arguments[0].stage.folder / ("metrics.jsonl" if name == "write_metrics" else "samples.jsonl")
        before = log.stat().st_size if log.exists() else 0
        real(*arguments)
        os.truncate(log, (before + log.stat().st_size) // 2)
    elif name == "save_model":
        real(*arguments)
        weights = arguments[2] / "model.safetensors"
        os.truncate(weights, weights.stat().st_size // 2)


def run_here(folder: Path) -> None:
    """The recipe from its first stage, or from where an earlier process was killed."""
    from unified.console import RunConsole
    from unified.recipe import load_recipe
    from unified.runner import run_recipe

    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    run_recipe(load_recipe(folder.parent / "kills.yaml"), Path("run"), console=RunConsole(silent=True))


def fork(folder: Path, at: tuple[tuple[str, str], int] | None = None, *, kill_after_s: float | None = None) -> int:
    """One run in a child; the signal that ended it, 0 for one that came to its end. RuntimeError where it failed."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            folder.mkdir(parents=True, exist_ok=True)
            log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            PLUG.calls, PLUG.at = Counter(), at
            run_here(folder)
            counted = [[*function, number] for function, number in PLUG.calls.items()]
            (folder / "calls.json").write_text(json.dumps(counted))
            (folder / "modules.json").write_text(json.dumps(list(sys.modules)))
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    if os.WEXITSTATUS(status):
        raise RuntimeError((folder / "log.txt").read_text()[-3000:])
    return 0


def process(folder: Path, kill_after_s: float) -> int:
    """The same as a process of its own, killed from outside; the signal that ended it, 0 if it was done before."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "unified", "run", str(folder.parent / "kills.yaml"), "--output", "run", "--quiet"]
    with (folder / "log.txt").open("a") as log:
        child = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        try:
            child.wait(kill_after_s)
        except subprocess.TimeoutExpired:
            child.kill()
        code = child.wait()
    if code > 0:
        raise RuntimeError((folder / "log.txt").read_text()[-3000:])
    return -code


#: written by the command line alone, from the files beside it and with their times
PAGES = {"report.html"}


def differences(whole: Path, cut: Path) -> Iterator[str]:
    """What of two run folders is not equal: files that only one has, and those with other content."""
    files = [{str(p.relative_to(f)) for p in f.rglob("*") if p.is_file()} - PAGES for f in (whole, cut)]
    yield from (f"{name}: only in one" for name in sorted(files[0] ^ files[1]))
    for name in sorted(files[0] & files[1]):
        if timeless(whole / name) != timeless(cut / name):
            yield f"{name}: other content"


def timeless(path: Path) -> Any:
    """The content of a file, without what a clock says."""
    times = TIMES.get(path.name)
    if times is None:
        return path.read_bytes()
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.suffix == ".jsonl" else []
    if not found:
        manifest = json.loads(path.read_text())
        found = [{**manifest, "summary": {k: v for k, v in manifest["summary"].items() if k not in times}}]
    return [{k: v for k, v in row.items() if k not in times} for row in found]


@dataclass(frozen=True)
class Point:
    """Where a run is killed: the place, and the call, the call of the run after it, or the seconds that it may work."""

    place: str
    at: tuple[tuple[str, str], int] | None = None
    then: tuple[tuple[str, str], int] | None = None
    after_s: float = 0.0


def choose(points: int, calls: Counter[tuple[str, str]], seconds: dict[str, float], draw: random.Random) -> list[Point]:
    """So many points, at random: as many of every place as its calls allow, none of them twice."""
    inside = {
        place: draw.sample(every, len(every))
        for place, functions in PLACES.items()
        if (every := [(f, n + 1) for f in functions for n in range(calls[f])])
    }
    missing = [".".join(f) for functions in PLACES.values() for f in functions if not calls[f]]
    if missing:
        raise SystemExit(f"never called, so that nobody is killed there: {', '.join(missing)}")
    chosen: list[Point] = []
    for place, share in SHARES.items():
        if place == ALONE and ALONE not in seconds:
            continue
        for _ in range(max(1, round(points * share))):
            if place == RESUMING:
                first = (("unified.step", "update"), draw.randrange(5, calls["unified.step", "update"]))
                chosen.append(Point(place, first, (draw.choice(RESUMED), 1)))
            else:
                chosen.append(Point(place, after_s=draw.uniform(0.05, 1.0) * seconds[place]))
    while len(chosen) < points and any(inside.values()):
        for place, left in inside.items():
            if left and len(chosen) < points:
                chosen.append(Point(place, left.pop()))
    return chosen


def main(arguments: list[str] | None = None) -> int:
    """Kill, run again, compare, and count; exit code 1 where a run ended otherwise."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability.kills", description=__doc__)
    parser.add_argument("--points", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="draws the points")
    parser.add_argument("--forks-only", action="store_true", help="no process of its own: faster, for the tests")
    parser.add_argument("--folder", type=Path, help="where to work and leave everything; without, a temporary one")
    asked = parser.parse_args(arguments)
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="kills-", dir=MEMORY if MEMORY.is_dir() else None))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kills.yaml").write_text(RECIPE)
    try:
        return pull(folder.resolve(), asked.points, random.Random(asked.seed), forks_only=asked.forks_only)
    finally:
        if asked.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


def pull(folder: Path, points: int, draw: random.Random, *, forks_only: bool) -> int:
    """The run that is left alone, then every point."""
    calls, seconds = left_alone(folder, forks_only=forks_only)
    done: Counter[str] = Counter()
    equal: Counter[str] = Counter()
    for number, point in enumerate(choose(points, calls, seconds, draw)):
        cut = folder / f"point-{number}"
        killed = kill(cut, point)
        while not killed and point.after_s > 0.1:  # it was faster than the one that was left alone
            shutil.rmtree(cut)
            point = replace(point, after_s=point.after_s * 0.7)
            killed = kill(cut, point)
        if point.then is not None:
            fork(cut, point.then)
        fork(cut)
        found = list(differences(folder / "whole" / "run", cut / "run"))
        if not killed:
            found.append("it came to its end before it was killed")
        done[point.place] += 1
        equal[point.place] += not found
        if found:
            print(f"NOT EQUAL: {point}: {'; '.join(found)}", flush=True)
        else:
            shutil.rmtree(cut)
    for place in done:
        print(f"{place:45} {equal[place]:3} of {done[place]:3} equal")
    by_place = {place: {"points": done[place], "equal": equal[place]} for place in done}
    print(json.dumps({"points": done.total(), "equal": equal.total(), "by_place": by_place}))
    return 0 if equal == done else 1


def kill(folder: Path, point: Point) -> int:
    """One run that is killed; the signal that ended it."""
    if point.place == ALONE:
        return process(folder, point.after_s)
    return fork(folder, point.at, kill_after_s=point.after_s if point.place == OUTSIDE else None)


def left_alone(folder: Path, *, forks_only: bool) -> tuple[Counter[tuple[str, str]], dict[str, float]]:
    """The run without a kill: calls of every function, and how long it takes. Imports what it needs, for the forks."""
    import torch

    import unified.loop  # noqa: F401
    from unified.registry import catalogue

    torch.set_num_threads(1)
    catalogue()
    for function in sorted({f for functions in (*PLACES.values(), RESUMED) for f in functions}):
        wire(*function)
    fork(folder / "first")
    for name in json.loads((folder / "first" / "modules.json").read_text()):
        if name not in sys.modules and not name.startswith("__") and "." not in name[:1]:
            try:
                __import__(name)
            except Exception:  # modules that exist only for a moment
                continue
    begin = time.monotonic()
    fork(folder / "whole")
    in_fork = time.monotonic() - begin
    learns(folder / "whole" / "run" / "online")
    seconds = {OUTSIDE: in_fork}
    if not forks_only:
        begin = time.monotonic()
        process(folder / "alone", 600.0)
        seconds[ALONE] = time.monotonic() - begin
    for other in ("first",) if forks_only else ("first", "alone"):  # of runs that nobody kills all are equal
        found = list(differences(folder / "whole" / "run", folder / other / "run"))
        if found:
            raise SystemExit(f"two runs that nobody killed differ: {found}")
    read = json.loads((folder / "whole" / "calls.json").read_text())
    print(", ".join(f"one run {place}: {value:.1f} s" for place, value in seconds.items()), flush=True)
    return Counter({(module, name): number for module, name, number in read}), seconds


def learns(stage: Path) -> None:
    """Runs in which nothing moves would be equal whatever happens to them."""
    rows = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "grad_norm" in row]
    if not all(row["grad_norm"] > 0 and row["reward_std"] > 0 for row in steps) or len(steps) < 3:
        raise SystemExit(f"the online stage learns nothing: {steps}")


if __name__ == "__main__":
    sys.exit(main())
