"""Answers sampled in process, against `generate` of transformers as TRL runs it; printed as JSON.

    python benchmarks/rollout.py [--size 5m] [--bf16] [--pairs 7] [--threads 1]

Eight prompts with eight answers each. `generate` is given what TRL 1.16 gives it: each prompt once per answer, padded
on the left, all rows to the end of the longest; in bfloat16 its forwards run each under autocast by itself, as those of
a model prepared by accelerate do. Lengths are spread as they are in practice (lognormal, median 28, cut at 64) and
forced: ours end each row at its length, `generate` cannot and runs to the longest, and useful tokens are counted. The
two are measured in turns, so that other work on the machine meets both alike; given is the median of all ratios.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.utils import logging

from unified import Sampling, catalogue
from unified_plugins.engines._rows import Row
from unified_plugins.engines.transformers import fill

#: name: (vocabulary, hidden size, layers, heads, heads of the keys, width of the middle)
SIZES = {
    "5m": (512, 256, 6, 4, 4, 688),
    "30m": (32000, 384, 10, 6, 6, 1024),
    "30m-wide": (32000, 512, 4, 8, 8, 1376),
}
END, PAD = 2, 0


class Ends:
    """As much of a tokenizer as sampling asks for."""

    eos_token_id, pad_token_id = None, PAD


def model_of(size: str, *, seed: int = 0) -> Any:
    """A fresh Llama of a size."""
    vocab, hidden, layers, heads, groups, middle = SIZES[size]
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=groups, intermediate_size=middle, max_position_embeddings=4096, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=END, pad_token_id=PAD,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    model.generation_config.eos_token_id = None  # lengths are forced
    return model


def spread(count: int, *, median: float, sigma: float, least: int, most: int, seed: int) -> list[int]:
    """Lognormal lengths."""
    r = random.Random(seed)
    return [max(least, min(most, int(r.lognormvariate(math.log(median), sigma)))) for _ in range(count)]


def by_generate(model: Any, prompts: Sequence[list[int]], n: int, new: int, *, bf16: bool, once: bool = False) -> None:
    """All answers to the longest length. once: autocast around the whole call, so that weights are rounded once."""
    longest = max(map(len, prompts))
    rows = [p for p in prompts for _ in range(n)]
    ids = torch.tensor([[PAD] * (longest - len(p)) + p for p in rows])
    seen = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in rows])
    try:
        if bf16 and not once:
            model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16) if bf16 and once else nullcontext():
            model.generate(
                input_ids=ids, attention_mask=seen, max_new_tokens=new, min_new_tokens=new, do_sample=True,
                temperature=1.0, top_k=0, top_p=1.0, pad_token_id=PAD, eos_token_id=END, use_cache=True,
            )  # fmt: skip
    finally:
        vars(model).pop("forward", None)


def by_rows(model: Any, prompts: list[list[int]], lengths: Sequence[int], *, bf16: bool, max_batch: int) -> None:
    """All answers, each to its own length."""
    part = catalogue().get("engine", "transformers")
    settings = part.settings(max_batch=max_batch, decode="fast", precision="bfloat16" if bf16 else "float32")
    each = len(lengths) // len(prompts)
    rows = [Row(i // each, 1000 + i, length) for i, length in enumerate(lengths)]
    fill(model, Ends(), prompts, rows, Sampling(), settings)
    assert [len(row.ids) for row in rows] == list(lengths)


def timed(function: Callable[[], None]) -> tuple[float, float]:
    """(seconds of the process's CPU time, seconds) of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    return time.process_time() - cpu, time.perf_counter() - wall


def measure(
    size: str = "5m", *, bf16: bool = False, pairs: int = 7, prompts: int = 8, n: int = 8, most: int = 64,
    equal: bool = False, max_batch: int = 128,
) -> dict[str, Any]:  # fmt: skip
    """Useful tokens per second of both, and the median of the ratios; on as many threads as torch is set to.

    equal: all answers of the full length, where nothing is won by rows that end. In bfloat16 `ratio_once_rounded` holds
    `generate` under one autocast, which rounds the weights once, as TRL does not.
    """
    model = model_of(size)
    r = random.Random(0)
    own = spread(prompts, median=40, sigma=0.6, least=8, most=128, seed=1)
    given = [[r.randrange(3, SIZES[size][0]) for _ in range(length)] for length in own]
    lengths = [most] * (prompts * n) if equal else spread(prompts * n, median=28, sigma=0.6, least=4, most=most, seed=2)
    runs: dict[str, Callable[[], None]] = {
        "generate": lambda: by_generate(model, given, n, max(lengths), bf16=bf16),
        "rows": lambda: by_rows(model, given, lengths, bf16=bf16, max_batch=max_batch),
    }
    if bf16:
        runs["generate_once_rounded"] = lambda: by_generate(model, given, n, max(lengths), bf16=True, once=True)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for run in runs.values():
        run()  # shapes, caches and the trial of the model are not measured
    for turn in range(pairs):
        for name in list(runs) if turn % 2 else list(runs)[::-1]:
            times[name].append(timed(runs[name]))
    useful = sum(lengths)
    out: dict[str, Any] = {
        "size": size, "bf16": bf16, "equal": equal, "pairs": pairs, "threads": torch.get_num_threads(),
        "useful_tokens": useful, "longest": max(lengths),
    }  # fmt: skip
    for kind, clock in enumerate(("cpu", "wall")):
        for name, spent in times.items():
            out[f"{name}_tokens_per_{clock}_s"] = round(useful / statistics.median(t[kind] for t in spent), 1)
        for name in sorted(times.keys() - {"rows"}):
            ratios = [a[kind] / b[kind] for a, b in zip(times[name], times["rows"], strict=True)]
            out[f"ratio_{clock}" + name.removeprefix("generate")] = round(statistics.median(ratios), 2)
    return out


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="5m")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--equal", action="store_true", help="all answers of the full length")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    logging.set_verbosity_error()
    print(json.dumps(measure(given.size, bf16=given.bf16, pairs=given.pairs, equal=given.equal), indent=1))


if __name__ == "__main__":
    main()
