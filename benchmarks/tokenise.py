"""How long rows take to become prompt groups, against the tokenizer's own batched call on the same conversations.

    python benchmarks/tokenise.py TOKENIZER ROWS [--runs N] [--limit N]

TOKENIZER is a folder with a tokenizer, ROWS a file that `unified` reads (jsonl, also gzipped, ...). The two are
measured in turns, so that other work on the machine meets both alike; printed is the median of the ratios of all turns.
The tokenizer is given each conversation once, already written by its chat template, in batches of 1000 and without
anything but ids; `unified` writes the template, tokenises prompts and conversations, and checks the one by the other.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from unified import Chosen, call_named, catalogue
from unified.render import CHUNK, Renderer, render_rows


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


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


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--limit", type=int, default=None, help="rows of the file; all without")
    asked = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(asked.tokenizer)
    files = catalogue().get("dataset", "files")
    chosen = Chosen(files, files.settings(path=str(asked.rows.absolute()), held_out=0, limit=asked.limit))
    rows = call_named(files.open, settings=chosen.settings, split="train", seed=0, folder=Path.cwd())
    renderer = Renderer(tokenizer, 10**9)
    groups, _ = render_rows(renderer, rows, needs_answers=1)
    prompts = [group.text for group in groups]
    whole = [tokenizer.decode([*g.prompt, *a.ids]) for g in groups for a in g.answers]
    tokens = sum(len(g.prompt) + len(a.ids) for g in groups for a in g.answers)
    ratios, ratios_both, ours = [], [], []
    for _ in range(asked.runs):
        own = seconds(lambda: batched(tokenizer, whole))
        both = own + seconds(lambda: batched(tokenizer, prompts))
        ours.append(seconds(lambda: render_rows(renderer, rows, needs_answers=1)))
        ratios.append(own / ours[-1])
        ratios_both.append(both / ours[-1])
    print(f"{len(rows)} rows, {tokens} tokens, {tokens / statistics.median(ours):,.0f} tokens/s")
    print(f"speed, share of the tokenizer's own on the conversations:             {statistics.median(ratios):.0%}")
    print(f"speed, share of the tokenizer's own on prompts and the conversations: {statistics.median(ratios_both):.0%}")


if __name__ == "__main__":
    main()
