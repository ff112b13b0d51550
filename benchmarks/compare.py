"""A case from start to result: a process for each side, blocks in turns, ratios of neighbours."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cases import Case
from benchmarks.environment import CACHE, ROOT, peer_python
from benchmarks.ours import MODEL
from benchmarks.peer import CHECKPOINTING, VARIANTS

#: steps that are run but not kept
WARM = 2
#: the peer once more, with activations made again in the backward pass
BESIDE = "trl, checkpointing"
CLOCKS = ("cpu", "wall")


class SideError(RuntimeError):
    """A side ended before its time; the message has the end of its log."""


@dataclass(frozen=True)
class Options:
    """How a run measures: rounds, threads of each process, bf16 or fp32 on all sides.

    beside: further rounds in which the peer runs with checkpointing.
    """

    pairs: int = 7
    threads: int = 1
    precision: str = "bf16"
    beside: int = 2

    def as_dict(self) -> dict[str, Any]:
        """What a result must agree with to be kept."""
        return {"pairs": self.pairs, "threads": self.threads, "precision": self.precision}


class Side:
    """A process that runs blocks when it is told to."""

    def __init__(self, side: str, case: Case, places: tuple[Path, Path], options: Options, **more: Any) -> None:
        asked = {
            "side": side, "case": case.as_dict(), "folder": str(places[0]), "models": str(places[1]),
            "precision": options.precision, "threads": options.threads, **more,
        }  # fmt: skip
        python = str(peer_python()) if side == "trl" else sys.executable
        self.name = side
        self.log = CACHE / "logs" / f"{case.title}-{side}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HOME": str(CACHE / "huggingface"), "HF_HUB_OFFLINE": "1"}
        threads = {"OMP_NUM_THREADS": str(options.threads), "MKL_NUM_THREADS": str(options.threads)}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [python, "-m", "benchmarks.worker", json.dumps(asked)], cwd=ROOT, text=True, stderr=log,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **quiet, **threads},
            )  # fmt: skip

    def ready(self) -> Side:
        """Wait until it has loaded."""
        self._answer()
        return self

    def ask(self, command: str) -> dict[str, Any]:
        """Send a command and wait for what comes of it. SideError where the process ended instead."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # then there is no answer either
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            tail = self.log.read_text(errors="replace").splitlines()[-12:]
            raise SideError(f"'{self.name}' ended with {self.process.returncode}:\n" + "\n".join(tail))
        return dict(json.loads(line))

    def end(self) -> None:
        """Let it finish; a process that does not is ended."""
        try:
            self.process.communicate("end\n", timeout=30)
        except (subprocess.TimeoutExpired, BrokenPipeError, ValueError):
            self.process.kill()
            self.process.wait()


def order(sides: Sequence[str], number: int) -> list[str]:
    """The sides of a round: forwards and backwards in turns, so that none always follows the same one."""
    return list(sides) if number % 2 == 0 else list(reversed(sides))


def rate(block: Mapping[str, Any], clock: str) -> float:
    """Tokens per second of a clock, "cpu" or "wall"."""
    return float(block["tokens"]) / max(float(block[clock]), 1e-9)


def ratios(rounds: Sequence[Mapping[str, Mapping[str, Any]]], mine: str, other: str, clock: str) -> list[float]:
    """How many times as fast one side is as another, round by round, where both ran."""
    return [rate(r[mine], clock) / rate(r[other], clock) for r in rounds if mine in r and other in r]


def spread(numbers: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and extremes; empty without a number."""
    if not numbers:
        return {}
    low, _, high = statistics.quantiles(numbers, n=4, method="inclusive") if len(numbers) > 1 else [numbers[0]] * 3
    return {
        "median": statistics.median(numbers), "low": low, "high": high,
        "min": min(numbers), "max": max(numbers), "number": len(numbers),
    }  # fmt: skip


def summary(rounds: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Median rates of every side, and ratios of `ours` to every other one."""
    sides = list(dict.fromkeys(name for r in rounds for name in r))
    rates = {
        name: {clock: statistics.median([rate(r[name], clock) for r in rounds if name in r]) for clock in CLOCKS}
        for name in sides
    }
    others = [name for name in sides if name != "ours"]
    against = {name: {clock: spread(ratios(rounds, "ours", name, clock)) for clock in CLOCKS} for name in others}
    return {"rates": rates, "ratios": against}


def shares(blocks: Sequence[Mapping[str, Any]], model: Sequence[str]) -> tuple[dict[str, float], float]:
    """(share of the CPU time of all blocks by verb, the largest first; share of what is neither model nor optimiser).

    What no verb claims is `other`.
    """
    total = sum(b["cpu"] for b in blocks)
    seconds: dict[str, float] = {}
    for block in blocks:
        for name, value in block["verbs"].items():
            seconds[name] = seconds.get(name, 0.0) + value
    seconds["other"] = max(0.0, total - sum(seconds.values()))
    found = {name: value / total for name, value in sorted(seconds.items(), key=lambda x: -x[1])}
    return found, 1.0 - sum(found.get(name, 0.0) for name in model)


def sides_of(case: Case, *, peer: bool = True) -> list[str]:
    """Who takes part: the peer has no PPO."""
    return ["ours", "limit", *(["trl"] if peer and case.kind != "ppo" else [])]


def measure(
    case: Case, places: tuple[Path, Path], options: Options, *, peer: bool = True, tell: Callable[[str], None] = print
) -> dict[str, Any]:
    """Everything about a case, for JSON; SideError where a side fails."""
    variants = try_variants(case, places, options) if peer else {}
    variant = max(variants, key=lambda name: variants[name]) if variants else ""
    running: dict[str, Side] = {}
    try:
        for name in sides_of(case, peer=peer):
            running[name] = Side(name, case, places, options, variant=variant)
        for side in running.values():
            side.ready()
        first = {name: side.ask(f"go {WARM}") for name, side in running.items()}
        rounds = measure_rounds(case, running, options, tell)
        peaks = {name: side.ask("peak")["peak"] for name, side in running.items()}
    finally:
        for side in running.values():
            side.end()
    verbs, overhead = shares([r["ours"] for r in rounds], MODEL)
    return {
        "case": case.as_dict(), "options": options.as_dict(), "variants": variants, "variant": variant,
        **summary(rounds), "tokens": {name: block["tokens"] for name, block in rounds[0].items()},
        "loss": {name: block["loss"] for name, block in first.items()},
        "rss": {name: max(r[name]["rss"] for r in rounds[: options.pairs]) for name in running},
        "peak": peaks, "verbs": verbs, "overhead": overhead,
        "rounds": [{n: {k: b[k] for k in ("wall", "cpu", "tokens")} for n, b in r.items()} for r in rounds],
    }  # fmt: skip


def measure_rounds(
    case: Case, running: Mapping[str, Side], options: Options, tell: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Blocks in turns, then some rounds of this project and the peer with checkpointing: all see the same rows."""
    rounds: list[dict[str, Any]] = []
    checkpointed = "trl" in running and case.kind in ("sft", "rm", "dpo", "grpo")
    for number in range(options.pairs + (options.beside if checkpointed else 0)):
        names = list(running) if number < options.pairs else ["ours", BESIDE]
        blocks: dict[str, Any] = {}
        for name in order(names, number):
            option = CHECKPOINTING if name == BESIDE else ""
            blocks[name] = running["trl" if name == BESIDE else name].ask(f"go {case.steps} {option}".strip())
        rounds.append({name: blocks[name] for name in names})
        speeds = ", ".join(f"{name} {rate(block, 'cpu'):,.0f}" for name, block in rounds[-1].items())
        tell(f"  {case.title} {number + 1}/{options.pairs}: {speeds} tokens per CPU second")
    return rounds


def try_variants(case: Case, places: tuple[Path, Path], options: Options) -> dict[str, float]:
    """One block of each way of the peer, so that the fastest takes part: variant -> tokens per CPU second."""
    found: dict[str, float] = {}
    for name in VARIANTS.get(case.kind, {}):
        side = Side("trl", case, places, options, variant=name)
        try:
            side.ready().ask(f"go {WARM}")
            found[name] = rate(side.ask(f"go {case.steps}"), "cpu")
        finally:
            side.end()
    return found
