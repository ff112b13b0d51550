"""What is measured: cases, model sizes, and the rows of a case. Imports neither torch nor `unified`.

Every side of a comparison reads these: this project, the hand-written loop, and the peer, which runs in an environment
of its own.
"""

from __future__ import annotations

import math
import random
from dataclasses import asdict, dataclass, replace
from typing import Any

#: vocabulary, hidden, layers, heads, feed-forward; Llama with a tied head, 5 and 30 million weights
SIZES = {
    "5m": (512, 256, 6, 4, 688),
    "30m": (32000, 384, 10, 6, 1024),
    "tiny": (64, 32, 2, 2, 64),
}
#: ids of padding, beginning and end; words follow
SPECIAL = ("<pad>", "<s>", "</s>")
#: spread of lengths, as deviation of their logarithm: all lie between a half and the double of the median. Twice as
#: wide for `sft`, whose rows come from anywhere
SPREAD = 0.3
LEARNING_RATE = 1e-4
#: the case of log-probs whose coefficients are known before the forward
KNOWN = "logprob-known"
#: the case whose prompts are computed once for each answer, not once for all of them
APART = "apart"
#: tokens of one of the peer's packs of rows
PACK = 512


@dataclass(frozen=True)
class Case:
    """One comparison.

    kind: sft, rm, dpo, grpo, ppo, rollout or logprob. model: a name of SIZES. prompt, answer: median tokens; sampled
    answers have at most that many. answers: to each prompt. rows: prompts of one optimiser step (tokens of `logprob`).
    steps: timed together. vocabulary, hidden: in place of the model's. seed: of rows and weights.
    """

    name: str
    kind: str
    model: str
    prompt: int
    answer: int
    answers: int
    rows: int
    steps: int
    vocabulary: int = 0
    hidden: int = 0
    seed: int = 0

    @property
    def size(self) -> tuple[int, int, int, int, int]:
        """Of the model, as in SIZES."""
        vocabulary, hidden, layers, heads, inner = SIZES[self.model]
        return self.vocabulary or vocabulary, self.hidden or hidden, layers, heads, inner

    @property
    def title(self) -> str:
        """The name of its results."""
        return f"{self.name}-{self.model}"

    def as_dict(self) -> dict[str, Any]:
        """For another process."""
        return asdict(self)

    def with_(self, **changes: Any) -> Case:
        """The same but for the changes."""
        return replace(self, **changes)


def _cases() -> list[Case]:
    def both(name: str, kind: str, lengths: tuple[int, int, int], small: tuple[int, int], big: tuple[int, int]) -> None:
        made.extend(Case(name, kind, model, *lengths, *at) for model, at in (("5m", small), ("30m", big)))

    made: list[Case] = []
    both("sft", "sft", (0, 100, 1), (24, 1), (8, 1))
    both("rm", "rm", (64, 64, 2), (8, 2), (8, 1))
    both("dpo-128-128", "dpo", (128, 128, 2), (8, 1), (8, 1))
    both("dpo-256-64", "dpo", (256, 64, 2), (8, 1), (8, 1))
    both("grpo-64", "grpo", (64, 64, 8), (4, 1), (2, 1))
    both("grpo-256", "grpo", (256, 64, 8), (4, 1), (1, 1))
    both("ppo", "ppo", (64, 64, 1), (16, 1), (4, 1))
    both("rollout", "rollout", (64, 64, 8), (8, 1), (8, 1))
    made += [Case(name, "logprob", "30m", 0, 0, 1, 4096, 1, hidden=512) for name in ("logprob", KNOWN)]
    return made


#: name-model -> case
CASES = {case.title: case for case in _cases()}

#: memory of one step: the cases of 30m at 32 prompts, and the log-probs of a vocabulary of today
MEMORY = {
    **{f"{n}-30m, 32 prompts": CASES[f"{n}-30m"].with_(rows=32) for n in ("sft", "rm", "dpo-128-128")},
    "log-probs, 16384 x 152k": Case("logprob", "logprob", "30m", 0, 0, 1, 16384, 1, vocabulary=152_000, hidden=512),
}

_SCALING = Case("scaling", "sft", "5m", 0, 128, 1, 16, 1)
_FAMILY = _SCALING.with_(kind="dpo", prompt=256, answer=64, answers=8, rows=4)
#: what is varied -> (value, case): this project alone
SCALING: dict[str, list[tuple[int, Case]]] = {
    "tokens of a step, in rows of 128": [(n, _SCALING.with_(rows=n // 128)) for n in (2048, 8192, 32768)],
    "tokens of a row, 4096 in a step": [(n, _SCALING.with_(answer=n, rows=4096 // n)) for n in (128, 512, 2048)],
    "answers to a prompt of 256 tokens, 32 each, offline": [
        (n, _SCALING.with_(kind="dpo", prompt=256, answer=32, answers=n, rows=4)) for n in (2, 4, 8, 16)
    ],
    "times that a prompt of 256 tokens is computed for its 8 answers of 64, offline": [
        (8, _FAMILY.with_(name=APART)),
        (1, _FAMILY),
    ],
    "vocabulary": [(n, _SCALING.with_(vocabulary=n)) for n in (512, 8192, 32768)],
}


def rows_of(case: Case, number: int) -> list[dict[str, Any]]:
    """So many rows as text: one word is one token, so that lengths are exact (an answer's includes its end)."""
    r = random.Random(case.seed)
    first, last = len(SPECIAL), case.size[0] - 1

    def words(length: int) -> str:
        return " ".join(f"w{r.randint(first, last)}" for _ in range(length))

    exact = case.name in (_SCALING.name, APART)
    rows = []
    for _ in range(number):
        sizes = [case.prompt, *([case.answer] * case.answers)]
        if not exact:
            spread = 2 * SPREAD if case.kind == "sft" else SPREAD
            sizes = [spread_out(r, size, spread) for size in sizes]
        prompt, *answers = [words(max(1, size - 1) if i else size) for i, size in enumerate(sizes)]
        rows.append(_row(case, prompt, answers))
    return rows


def _row(case: Case, prompt: str, answers: list[str]) -> dict[str, Any]:
    if case.kind == "sft":
        return {"text": answers[0]}
    if case.kind in ("rm", "dpo") and len(answers) == 2:
        return {"prompt": prompt, "chosen": f" {answers[0]}", "rejected": f" {answers[1]}"}
    if case.kind in ("rm", "dpo"):
        return {"prompt": prompt, "responses": [f" {a}" for a in answers], "ranks": list(range(len(answers)))}
    return {"prompt": prompt}


def spread_out(r: random.Random, median: int, spread: float) -> int:
    """A length drawn around the median: lognormal, cut at 2.31 deviations (of SPREAD: a half and the double)."""
    far = math.exp(2.31 * spread)
    drawn = r.lognormvariate(math.log(median), spread) if median else 0.0
    return round(max(median / far, min(median * far, drawn)))


def reward(completions: list[Any], **_: Any) -> list[float]:
    """A cheap reward of sampled answers, the same for all sides: characters modulo 7."""
    return [float(len(c if isinstance(c, str) else c[-1]["content"]) % 7) for c in completions]
