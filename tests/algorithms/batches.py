"""Random batches, and terms by name, for the tests of the algorithms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unified import Batch
from unified.batch import Here
from unified.coefficient import Term, coefficients, named_loss
from unified.settings import choose


def term(name: str, **settings: Any) -> Term:
    """A term with an algorithm as a recipe would choose it."""
    chosen, problems = choose("algorithm", {"name": name, **settings})
    assert chosen is not None, [p.text() for p in problems]
    return Term(chosen.part, chosen.settings)


def random_fields(seed: int = 0, *, rows: int = 12, time: int = 7) -> dict[str, Tensor]:
    """Every field, float64: three answers a prompt of any length with holes, the reward a ranking with some ties.

    The first prompt has three different rewards.
    """
    torch.manual_seed(seed)

    def noise(scale: float = 1.0) -> Tensor:
        return scale * torch.randn(rows, time, dtype=torch.float64)

    mask = torch.rand(rows, time) < 0.8
    mask &= torch.arange(time) < torch.randint(2, time + 1, (rows, 1))
    mask[:, 0] = True
    logp = -noise().abs() - 0.1
    value = noise()
    return {
        "loss_mask": mask,
        "group": torch.arange(rows) // 3,
        "reward": torch.cat([torch.tensor([0, 2, 1]), torch.randint(0, 3, (rows,))[3:]]).double(),
        "logp": logp,
        "old_logp": logp + noise(0.3),
        "ref_logp": logp + noise(0.5),
        "entropy": noise().abs(),
        "value": value,
        "old_value": value + noise(0.3),
        "score": noise(),
        "advantage": noise(),
        "returns": noise(),
        "collision_logp": -noise().abs(),
        "teacher_logp": logp + noise(),
        "logits": -noise().abs(),
        "sampling_logp": logp + noise(0.5),
    }


def known(one: Term, batch: Batch) -> dict[str, Tensor]:
    """The statistics of a step that is this batch, where the algorithm has some."""
    return dict(one.call("statistics", batch=batch)) if one.algorithm.statistics else {}


def pushed(one: Term, batch: Batch) -> dict[str, Tensor]:
    """w GC per head, [batch, time], of a step that is this batch."""
    w = one.normalisers(batch, one.rows(batch), Here())
    return {head: gc.double() * w[head][:, None] for head, gc in coefficients(one, batch, known(one, batch)).items()}


def loss(one: Term, batch: Batch) -> float:
    """The named loss of a step that is this batch."""
    return named_loss(one, batch, one.normalisers(batch, one.rows(batch), Here()), known(one, batch))


def mean_metrics(one: Term, batch: Batch) -> dict[str, float]:
    """The metrics, as the log shows them; without those that are totals."""
    found = one.call("metrics", batch=batch, statistics=known(one, batch))
    return {name: float(x / n) for name, (x, n) in found.items() if n}
