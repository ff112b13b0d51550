"""How much a stage computes, told by its kind before anything is loaded: in tokens, by model. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from unified.stage import AdapterSettings


@dataclass(frozen=True)
class Rows:
    """A dataset as measured: number of rows, answers per row, mean tokens of a prompt and of an answer.

    longest: tokens of the longest prompt with one answer; longest_prompt: of the longest prompt. 0: not measured.
    """

    rows: int
    answers: float
    prompt_tokens: float
    answer_tokens: float
    longest: float = 0.0
    longest_prompt: float = 0.0


@dataclass(frozen=True)
class Job:
    """Tokens that one model reads or writes.

    role: what the model is in the stage (policy, reference, critic, ...). model: its reference ("base", "stage:NAME", a
    path). does: "train", "score" (a forward) or "generate". tokens: all that pass through it, prompts too.
    new_tokens: of these, sampled ones. scalar: whether it is a scalar model. saved: of the tokens, those of prompts
    that are computed once for several answers, and so need not be again. read_out: of the tokens, those whose
    distribution over words is computed; None: all. length: of one row, prompt and answer; 0: not known.
    again: whether the backward pass computes that distribution a second time.
    """

    role: str
    model: str
    does: Literal["train", "score", "generate"]
    tokens: float
    new_tokens: float = 0.0
    scalar: bool = False
    saved: float = 0.0
    read_out: float | None = None
    length: float = 0.0
    again: bool = False

    @property
    def computed(self) -> float:
        """Tokens that pass through the layers."""
        return self.tokens - self.saved


@dataclass(frozen=True)
class Work:
    """What a stage computes.

    steps: optimiser steps. prompts: drawn from the data, again in every epoch. micro_tokens: tokens of one forward with
    gradients. at_once: answers sampled at the same time; longest: tokens of prompt and answer of one of them.
    optimiser_bytes: state per trained parameter. bf16: matrix products in bfloat16.
    checkpointing: activations are recomputed, which costs another forward.
    adapter: what learns in place of all weights. step_tokens: computed with gradients in one optimiser step, by all
    processes; 0: not known. collected: answers of one collected batch; collects: such batches. longest_row: tokens of
    the longest row that was seen. remote: answers are sampled elsewhere, by servers that are sent new weights.
    max_staleness: collected batches that may be sampled ahead of what is learned from. on_cpu: it runs on a CPU, where
    chunks of logits are smaller.
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
    step_tokens: float = 0.0
    collected: float = 0.0
    collects: int = 0
    longest_row: float = 0.0
    remote: bool = False
    max_staleness: int = 0
    on_cpu: bool = False

    def tokens(self, does: str) -> float:
        """Tokens that are trained on, scored, or pass through sampling."""
        return sum(job.tokens for job in self.jobs if job.does == does)


#: measure(data, split) -> Rows, or None where the dataset is not there yet or cannot be counted
Measure = Callable[[Any, str], Rows | None]
