"""The distillation family: a divergence rule between the teacher's and the policy's next-token distributions.

The head `logits` is −divergence of each token, pushed with GC 1; its gradient by the policy's logits is the rule's
derivative, taken chunk by chunk. Which answers it is taken on is the data source's choice: rows (off-policy), samples
of the policy (on-policy), or a sum of terms with a source each. There is no factor temperature² (Hinton's); a term's
weight gives it. Sequence-level distillation is another thing: sft on answers that the teacher sampled.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from unified import Algorithm, Batch, Chosen, Field, Settings, choice
from unified_plugins.rules import apply, support


class DistillationSettings(Settings):
    """What a recipe may set for every member of the family."""

    divergence: Chosen = choice("divergence", "forward_kl", description="what is made small")
    temperature: float = Field(1.0, gt=0, description="divides the logits of both, beside the temperature of sampling")
    support: Literal["all", "teacher", "student"] = Field(
        "all", description="tokens compared: all, or the top_k likeliest of the teacher or of the student"
    )
    top_k: int = Field(64, ge=1, description="number of those tokens, for support teacher and student")
    tail: Literal["bucket", "drop", "floor"] = Field(
        "bucket", description="the other tokens: one bucket; left out, both renormalised; or log-prob `floor` each"
    )
    floor: float = Field(-100.0, lt=0, description="the teacher's log-prob of other tokens with tail `floor`, in nats")

    @model_validator(mode="after")
    def _stored_tokens_cannot_be_tempered_with_a_bucket(self) -> DistillationSettings:
        if self.support == "teacher" and self.tail == "bucket" and self.temperature != 1.0:
            raise ValueError("the tail of a top-k teacher is known at temperature 1 only: choose tail drop or floor")
        return self


def top_k(settings: DistillationSettings) -> int:
    """The teacher's likeliest tokens are stored before learning; any other support needs all of its distribution."""
    return settings.top_k if settings.support == "teacher" else 0


def view(logits: Tensor, teacher: Any, settings: DistillationSettings) -> support.View:
    """Both distributions over the support.

    logits: [n, vocab] of the policy. teacher: [n, vocab] log-probs, or (ids, log-probs), each [n, k].
    """
    logp = (logits / settings.temperature).log_softmax(-1)  # [n, vocab]
    if isinstance(teacher, tuple):
        ids, chosen = teacher
        tail = support.tail_of(chosen)
        chosen = (chosen / settings.temperature).to(logp.dtype)
    else:
        known = (teacher / settings.temperature).log_softmax(-1).to(logp.dtype)
        if settings.support == "all":
            return support.whole(logp, known)
        by = logp if settings.support == "student" else known
        ids = by.detach().topk(min(settings.top_k, by.shape[1]), -1).indices
        chosen, tail = known.gather(1, ids), known.scatter(1, ids, -torch.inf).logsumexp(-1)
    if settings.tail == "floor":
        return support.with_floor(logp, ids, chosen, floor=settings.floor)
    if settings.tail == "drop" or ids.shape[1] >= logp.shape[1]:
        return support.renormalised(logp, ids, chosen)
    return support.with_tail(logp, ids, chosen, tail.to(logp.dtype))


def distribution(logits: Tensor, teacher: Any, settings: DistillationSettings) -> tuple[Tensor, Tensor]:
    """The divergence [n] and its negative derivative by the logits [n, vocab] of one chunk; see `view`."""
    seen = view(logits, teacher, settings)
    loss: Tensor = apply.value(settings.divergence, {"student": seen.student, "teacher": seen.teacher})
    with torch.no_grad():
        slope = apply.coefficient(
            settings.divergence, lambda s: {"student": s, "teacher": seen.teacher}, seen.student, ascend=False
        )
        return loss, seen.to_logits(slope) / settings.temperature


def metrics(batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean over tokens of the divergence, in nats."""
    mask = batch.loss_mask & ~batch.probe[:, None]
    return {"divergence": (torch.where(mask, -batch.logits, 0.0).sum(), mask.sum())}


def distillation(name: str, settings: type[DistillationSettings], *, source: str) -> Algorithm:
    """A member of the family, on answers of a source; all tokens of a step weigh the same."""
    return Algorithm(
        name,
        settings,
        distribution=distribution,
        top_k=top_k,
        metrics=metrics,
        aggregation={"logits": "token"},
        source=source,
        reward="constant",
    )
