"""An answer while it is drawn: its tokens so far, and what ends it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from unified import Sampling, UserError
from unified_plugins.engines._draw import draw
from unified_plugins.engines._noise import uniform

#: what a tokenizer writes for bytes that are no whole character yet
_HALF = "\ufffd"


class Watch:
    """Reads an answer as it grows and tells when it holds one of the stop strings.

    Special tokens are read as they are written. Each token is read together with those of the step before, because a
    tokenizer may write a token otherwise at the beginning of a text.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.longest = max(map(len, stop))
        self.tail = ""  # the end of what has been read, long enough for a stop string less its last character
        self.begin = self.known = 0  # tokens before `begin` are read for good, those before `known` are in the tail

    def met(self, ids: list[int]) -> bool:
        """Whether a stop string ends in what the tokens since the last call say; ids: all tokens so far."""
        before, now = self._read(ids[self.begin : self.known]), self._read(ids[self.begin :])
        if len(now) <= len(before) or now.endswith(_HALF):
            return any(text in self.tail + now[len(before) :] for text in self.stop)
        seen = self.tail + now[len(before) :]
        self.begin, self.known = self.known, len(ids)
        self.tail = seen[max(len(seen) - self.longest + 1, 0) :]
        return any(text in seen for text in self.stop)

    def _read(self, ids: list[int]) -> str:
        if not ids:
            return ""
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


@dataclass
class Row:
    """One answer to be drawn: of which prompt, from which seed, of how many tokens at most, and what there is of it.

    told: called with each token when it is drawn.
    """

    prompt: int
    seed: int
    limit: int
    watch: Watch | None = None
    ids: list[int] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)
    finish: Literal["stop", "length"] | None = None
    told: Callable[[int], None] | None = None

    def take(self, token: int, logp: float, ends: Collection[int]) -> bool:
        """Go on by a token; whether the answer ends with it."""
        self.ids.append(token)
        self.logp.append(logp)
        if self.told is not None:
            self.told(token)
        if token in ends or (self.watch is not None and self.watch.met(self.ids)):
            self.finish = "stop"
        elif len(self.ids) >= self.limit:
            self.finish = "length"
        return self.finish is not None


def extend(rows: Sequence[Row], logits: Tensor, sampling: Sampling, ends: Collection[int]) -> Tensor:
    """Draw the next token of every row from its own noise and write it down; those that have ended stay as they are.

    logits: [rows, vocab]. Returns the tokens [rows], on the device of the logits.

    Raises:
        UserError: logits that are no numbers.
    """
    seeds = np.fromiter((row.seed for row in rows), np.uint64, len(rows))
    numbers = np.fromiter((len(row.ids) for row in rows), np.uint64, len(rows))
    noise = torch.from_numpy(uniform(seeds, numbers)).to(logits.device)
    tokens, logp = draw(logits, sampling, noise)
    for row, token, nats in zip(rows, tokens.tolist(), logp.tolist(), strict=True):
        if row.finish is None:
            if nats != nats:
                raise UserError(
                    "the model's logits are no numbers (nan), so nothing can be sampled from it",
                    "look at the weights: a stage before may have diverged; lower its `learning_rate`",
                )
            row.take(token, nats, ends)
    return tokens


def longest_first(rows: Iterable[Row], prompts: Sequence[Sequence[int]]) -> list[Row]:
    """Rows by the length of their prompts, the longest first; answers of one prompt in their order."""
    return sorted(rows, key=lambda row: (-len(prompts[row.prompt]), row.prompt))
