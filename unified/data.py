"""The data of the engine: rows as text, and prompt groups as tokens. Nothing here imports torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Message = Mapping[str, Any]  # {"role": "user", "content": "..."}; a turn may also have `tool_calls`, `name`, ...
Text = str | Sequence[Message]


@dataclass(frozen=True)
class TokenRow:
    """The tokens of a row that was sampled; they stand for its text while that is what `digest` says.

    vocabulary: hash of the vocabulary that the ids belong to. digest: of the Example. prompt: token ids.
    answers: with ids, loss mask, finish, trajectory and steps; the rest is the row's.
    """

    vocabulary: str
    digest: str
    prompt: list[int]
    answers: list[Answer]


@dataclass
class Example:
    """One row as text: a prompt and its answers, best reward first or last as the rewards say.

    prompt: text, or messages for the chat template.
    answers: [] for a prompt alone, 1 for imitation, 2 for a pair, K for a ranked list. Each is text, or (after a prompt
        of messages) the messages that continue the conversation: a turn of the assistant first, then perhaps tool
        results, turns of the user and further turns of the assistant. What the assistant says is learned.
    rewards: one per answer; preference data has chosen 1 and rejected 0, a ranking K-1 ... 0. None: not judged.
    columns: everything else of the row, for reward functions and `on: COLUMN`; beside a prompt of messages `tools` are
        JSON schemas (or their JSON text) for the chat template.
    tokens: of an answer that a model wrote, so that it is never tokenised again.
    """

    prompt: Text
    answers: Sequence[str | Sequence[Message]] = field(default_factory=list)
    rewards: list[float] | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    tokens: TokenRow | None = None

    def digest(self) -> str:
        """Of prompt and answers as they read: sha256 in hexadecimal."""
        said = json.dumps([self.prompt, self.answers], ensure_ascii=True, sort_keys=True, default=str)
        return hashlib.sha256(said.encode()).hexdigest()


@dataclass
class Answer:
    """One answer to a prompt, as tokens.

    ids: token ids, the end-of-sequence token included where the answer ended by itself.
    loss_mask: one bool per token, False on text that a tool or environment wrote; None means all True.
    reward: of the whole answer, or one number per token; None while not judged, and when judging failed.
    sampling_logp: nats per token, of the distribution it was sampled from; None for answers from data.
    finish: "stop", or "length" when cut off; probe: seen by statistics and credit, but neither pushed nor counted.
    trajectory: rows of one conversation that share it count as one answer.
    version: of the weights that sampled it, in optimiser steps.
    steps: (tokens of the answer so far, value) at the end of each step, where a search or a label judged them.
    failed: what made it broke down, so that there is nothing to judge: it is missing, whatever the reward.
    """

    ids: list[int]
    text: str = ""
    loss_mask: list[bool] | None = None
    reward: float | list[float] | None = None
    sampling_logp: list[float] | None = None
    finish: Literal["stop", "length"] = "stop"
    probe: bool = False
    trajectory: str | None = None
    version: int | None = None
    steps: list[tuple[int, float]] | None = None
    failed: bool = False
    columns: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("loss_mask", "sampling_logp"):
            value = getattr(self, name)
            if value is not None and len(value) != len(self.ids):
                raise ValueError(f"{name} has {len(value)} entries but the answer has {len(self.ids)} tokens")
        if isinstance(self.reward, list) and len(self.reward) != len(self.ids):
            raise ValueError(f"reward has {len(self.reward)} entries but the answer has {len(self.ids)} tokens")

    @property
    def total_reward(self) -> float | None:
        """The reward of the whole answer (the sum, where there is one per token)."""
        return sum(self.reward) if isinstance(self.reward, list) else self.reward


@dataclass
class PromptGroup:
    """One prompt and its K answers, with the columns that the reward needs.

    prompt: token ids, ready to be continued. text: the prompt as it reads. key: its row in the dataset.
    messages: the prompt as a conversation; None for a prompt of text. draw: its running number among all prompts drawn
    by a stage, -1 where it was not drawn; what is sampled for it depends on that. reasons: why answers could not be
    judged, in words; the first is shown where a stage stops for it.
    """

    prompt: list[int]
    answers: list[Answer] = field(default_factory=list)
    text: str = ""
    columns: dict[str, Any] = field(default_factory=dict)
    key: int = -1
    messages: Sequence[Message] | None = None
    draw: int = -1
    reasons: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    temperature: divides the logits; 0 means greedy. top_p: 1 keeps all. top_k: 0 keeps all. max_tokens: of an answer.
    min_p: keeps tokens of at least so many times the probability of the likeliest; 0 keeps all.
    stop: texts, each of which ends an answer with the token that completes it; the answer keeps it.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 256
    min_p: float = 0.0
    stop: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether every token could have been drawn, so that log-probs need no correction."""
        return self.top_p >= 1.0 and self.top_k == 0 and self.min_p <= 0.0


@dataclass(frozen=True)
class NewWeights:
    """Weights that an engine is to sample with.

    folder: a whole Hugging Face folder, or with `adapter` one of peft, absolute. version: optimiser steps behind them.
    digest: sha256 in hexadecimal of what they are: the same for the same files. probe: token ids; logp: nats of each
    but the first given those before it, at temperature 1, by the trainer.
    """

    folder: Path
    version: int
    digest: str
    adapter: bool
    probe: tuple[int, ...]
    logp: tuple[float, ...]
