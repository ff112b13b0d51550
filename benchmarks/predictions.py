"""`python -m benchmarks.predictions`: what `unified plan` predicts for this machine, and what is measured on it.

Peaks and bandwidth of the machine are measured first, on one thread, in place of a data sheet. Then each case runs in
a process of its own, one after the other: seconds of a step (CPU time), and the peak of tensors of one step above what
was there before it. The result is predictions.json, from which `python -m tests.docs.scaling` makes a table.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES, Case, rows_of
from benchmarks.compare import Options, Side
from benchmarks.environment import CACHE, load, machine, versions
from benchmarks.material import write
from benchmarks.ours import settings_of
from unified.work import Rows

RESULT = Path(__file__).parent / "predictions.json"
TITLES = tuple(f"{name}-{model}" for name in ("sft", "dpo-128-128", "grpo-64") for model in ("5m", "30m"))
#: steps of one block, blocks, and steps before the first
STEPS, BLOCKS, WARM = 2, 3, 2
#: the engine's own budget on a CPU
MICRO = 4096


def probe() -> dict[str, float]:
    """FLOP/s of dense products in float32 and bfloat16, and bytes/s of reading memory; on the threads torch has."""
    import torch

    from unified.precision import use_fast_float32

    use_fast_float32(torch.device("cpu"))  # as a run does
    size = 2048

    def flops(dtype: Any) -> float:
        a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
        return 2 * size**3 / _best(lambda: a @ b)

    numbers = torch.ones(64 << 20)
    read = numbers.nbytes / _best(lambda: numbers.sum())
    return {"fp32": flops(torch.float32), "bf16": flops(torch.bfloat16), "bandwidth": read}


def _best(call: Callable[[], Any], tries: int = 7) -> float:
    """Seconds of the fastest of several calls."""
    found = []
    for _ in range(tries):
        begun = time.process_time()
        call()
        found.append(time.process_time() - begun)
    return min(found)


def predicted(case: Case, peaks: dict[str, float], *, bf16: bool) -> dict[str, float]:
    """Seconds of one step and its operations, by the mean of all rows; the bytes of tensors of the one that is watched.

    Lengths are spread, so that a single step may have a sixth more tokens than the mean.
    """
    from unified.cost import Cost, cost_of
    from unified.devices import Device, Hardware
    from unified.estimate import work_of_training
    from unified.settings import parse
    from unified.sizes import size_of
    from unified.stage import ModelSettings, TrainSettings

    nowhere = Path()
    written = {**settings_of(case, nowhere, bf16=bf16), "max_steps": 1, "tokens_per_micro_batch": MICRO}
    settings, problems = parse(TrainSettings, written, owner="the stage")
    assert not problems, problems
    vocabulary, hidden, layers, heads, inner = case.size
    shape = {
        "model_type": "llama", "vocab_size": vocabulary, "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": heads, "intermediate_size": inner,
        "tie_word_embeddings": True,
    }  # fmt: skip
    model = ModelSettings(path=None, new=shape, tokenizer=None)
    on = Hardware(1, Device("this machine", memory=1e12, **peaks))

    def cost(found: Rows) -> Cost:
        work = work_of_training(settings, lambda data, split: found if split == "train" else None)
        assert work is not None
        made = cost_of(replace(work, on_cpu=True), lambda reference, scalar: size_of(model, nowhere, scalar=scalar), on)
        assert made is not None
        return made

    rows = rows_of(case, rows_needed(case))
    mean, watched = cost(lengths(case, rows)), cost(lengths(case, rows[-case.rows :])).memory
    assert mean.seconds is not None
    own = watched.total - watched.weights - watched.optimiser
    return {"seconds": mean.seconds, "bytes": own, "flops": mean.flops}


def lengths(case: Case, rows: list[dict[str, Any]]) -> Rows:
    """Of rows that are measured: one word is one token, and an answer has an end."""

    def mean(*names: str) -> float:
        found = [len(row[name].split()) for row in rows for name in names if name in row]
        return statistics.fmean(found) if found else 0.0

    return Rows(len(rows), case.answers, mean("prompt"), mean("text", "chosen", "rejected") + 1)


def rows_needed(case: Case) -> int:
    """So many that no row is seen twice."""
    return case.rows * (WARM + STEPS * BLOCKS + 1)


def measured(case: Case, places: tuple[Path, Path], options: Options) -> dict[str, float]:
    """CPU seconds of a step, the median of blocks, and the peak of tensors of its own."""
    side = Side("ours", case, places, options)
    try:
        side.ready()
        side.ask(f"go {WARM}")
        blocks = [side.ask(f"go {STEPS}") for _ in range(BLOCKS)]
        return {"seconds": statistics.median(b["cpu"] / b["steps"] for b in blocks), "bytes": side.ask("peak")["peak"]}
    finally:
        side.end()


def main(arguments: list[str] | None = None) -> int:
    """Measure and keep; 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.predictions", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16", help="autocast, or none")
    asked = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(1)
    options = Options(BLOCKS, 1, asked.precision)
    about: dict[str, Any] = {
        "machine": machine(), "versions": versions(), "load": load(), "date": datetime.date.today().isoformat(),
        "options": asdict(options), "peaks": probe(), "cases": {},
    }  # fmt: skip
    print(about["peaks"], flush=True)
    for title in TITLES:
        case = CASES[title]
        places = write(case, CACHE / "predictions", rows_needed(case))
        about["cases"][title] = measured(case, places, options)
        expected = predicted(case, about["peaks"], bf16=asked.precision == "bf16")
        print(f"{title}: measured {about['cases'][title]}, predicted {expected}", flush=True)
    RESULT.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
