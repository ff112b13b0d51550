"""How much a stage computes, told by its kind before anything is loaded: in tokens, by model. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from unified.stage import AdapterSettings

#: operations per parameter and token: forward 2, backward 4 (Kaplan et al. 2020, arXiv:2001.08361, section 2.1)
OPERATIONS = {"train": 6, "score": 2, "generate": 2}


@dataclass(frozen=True)
class Rows:
    """A dataset as measured: number of rows, answers per row, mean tokens of a prompt and of an answer."""

    rows: int
    answers: float
    prompt_tokens: float
    answer_tokens: float


@dataclass(frozen=True)
class Job:
    """Tokens that one model reads or writes.

    role: what the model is in the stage (policy, reference, critic, ...). model: its reference ("base", "stage:NAME", a
    path). does: "train", "score" (a forward) or "generate". tokens: all that pass through it, prompts too.
    new_tokens: of these, sampled ones. scalar: whether it is a scalar model.
    """

    role: str
    model: str
    does: Literal["train", "score", "generate"]
    tokens: float
    new_tokens: float = 0.0
    scalar: bool = False


@dataclass(frozen=True)
class Work:
    """What a stage computes.

    steps: optimiser steps. prompts: drawn from the data, again in every epoch. micro_tokens: tokens of one forward with
    gradients. at_once: answers sampled at the same time; longest: tokens of prompt and answer of one of them.
    optimiser_bytes: state per trained parameter. bf16: matrix products in bfloat16.
    checkpointing: activations are recomputed, which costs another forward.
    adapter: what learns in place of all weights.
    """

    steps: int = 0
    prompts: int = 0
    jobs: list[Job] = field(default_factory=list)
    micro_tokens: float = 0.0
    at_once: int = 0
    longest: float = 0.0
    optimiser_bytes: int = 8
    bf16: bool = False
    checkpointing: bool = False
    adapter: AdapterSettings | None = None

    def tokens(self, does: str) -> float:
        """Tokens that are trained on, scored, or pass through sampling."""
        return sum(job.tokens for job in self.jobs if job.does == does)


#: measure(data, split) -> Rows, or None where the dataset is not there yet or cannot be counted
Measure = Callable[[Any, str], Rows | None]
