"""How long rows take to become packed micro-batches, against the tokenizer's own batched call on the same texts.

    python benchmarks/tokenise.py TOKENIZER ROWS [--runs N] [--limit N] [--budget N]

TOKENIZER is a folder with a tokenizer, ROWS a file that `unified` reads (jsonl, also gzipped, ...). Measured is
processor time of one thread, of each in turns, so that other work on the machine meets both alike; printed are the
medians of the ratios of all turns. The tokenizer is given texts that its chat template has written already, in batches
of 1000 and without anything but ids: each conversation once, and each prompt beside its conversation. `unified` writes
the template, tokenises prompts and conversations, checks the one by the other, makes rows with masks, and cuts these
into packed micro-batches by best-fit.
"""

from __future__ import annotations

import os

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # read when the library is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from unified import Chosen, call_named, catalogue
from unified.data import PromptGroup
from unified.layout import Row, cut
from unified.render import CHUNK, Renderer, render_rows


def seconds(function: Callable[[], object]) -> float:
    """Processor time of one call, in all threads of this process."""
    begun = time.process_time()
    function()
    return time.process_time() - begun


def batched(tokenizer: Any, texts: list[str]) -> None:
    """The ids of all texts by the tokenizer's own call, in batches."""
    for start in range(0, len(texts), CHUNK):
        tokenizer(
            texts[start : start + CHUNK],
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )


def packed(groups: list[PromptGroup], budget: int) -> list[list[list[int]]]:
    """The rows of all groups as one step, cut into micro-batches of at most `budget` tokens."""
    rows = [Row.of(group, answer) for group in groups for answer in group.answers]
    return cut(rows, [[i] for i in range(len(rows))], budget, "packed")


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--limit", type=int, default=None, help="rows of the file; all without")
    parser.add_argument("--budget", type=int, default=8192, help="tokens of a micro-batch")
    asked = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(asked.tokenizer)
    files = catalogue().get("dataset", "files")
    chosen = Chosen(files, files.settings(path=str(asked.rows.absolute()), held_out=0, limit=asked.limit))
    rows = call_named(files.open, settings=chosen.settings, split="train", seed=0, folder=Path.cwd())
    renderer = Renderer(tokenizer, 10**9)
    groups, _ = render_rows(renderer, rows, needs_answers=1)
    prompts = [group.text for group in groups if group.text]
    whole = [tokenizer.decode([*g.prompt, *a.ids]) for g in groups for a in g.answers]
    tokens = sum(len(g.prompt) + len(a.ids) for g in groups for a in g.answers)
    shares: dict[str, list[float]] = {"conversations": [], "prompts and conversations": []}
    rendering, packing = [], []
    for _ in range(asked.runs):
        own = seconds(lambda: batched(tokenizer, whole))
        both = own + seconds(lambda: batched(tokenizer, prompts))
        rendering.append(seconds(lambda: render_rows(renderer, rows, needs_answers=1)))
        packing.append(seconds(lambda: packed(groups, asked.budget)))
        shares["conversations"].append(own / (rendering[-1] + packing[-1]))
        shares["prompts and conversations"].append(both / (rendering[-1] + packing[-1]))
    filled = tokens / (asked.budget * len(packed(groups, asked.budget)))
    speed = tokens / statistics.median(a + b for a, b in zip(rendering, packing, strict=True))
    print(f"{len(rows)} rows, {tokens} tokens, {speed:,.0f} tokens/s; micro-batches are {filled:.1%} full")
    print(f"rendering {statistics.median(rendering):.3f} s, packing {statistics.median(packing):.3f} s")
    for name, found in shares.items():
        spread = f"{min(found):.0%} to {max(found):.0%}"
        print(f"speed, share of the tokenizer's own on the {name}: {statistics.median(found):.0%} ({spread})")


if __name__ == "__main__":
    main()
