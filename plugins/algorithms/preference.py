"""The preference family: a margin (one number per answer), a transform (its score) and a link (the loss of a pair).

With h the margin rule of an answer, g = transform(h) its score and m = beta (g of the better - g of the worse) - gap,
a prompt's loss is the mean of link(m) over its pairs, so that a ranked list of K answers weighs as much as one pair.
GC[b, t] = sum over pairs of b: share * (-d link / d g) * beta * d g[b] / d h[b] * d h[b] / d logp[b, t]; for a link of
the margin alone the first derivative is that by m, with + where b is the better and - where it is the worse.
Which tensors each kind of rule may name is said in `rules/margins.py`, `transforms.py` and `links.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unified import Algorithm, Batch, Chosen, Field, Pairs, Settings, choice, pairs
from unified_plugins.rules import apply


class PreferenceSettings(Settings):
    """What a recipe may set for every member of the family."""

    beta: float = Field(0.1, gt=0, description="scale of the margin; larger stays nearer to the reference")
    margin: Chosen = choice("margin", "reference", description="what is compared")
    transform: Chosen = choice("transform", "f_reverse_kl", description="the score as a function of what is compared")
    link: Chosen = choice("link", "sigmoid", description="the loss of one comparison")
    gap: float = Field(0.0, description="distance asked for, taken off the scaled margin")


def reads(settings: PreferenceSettings) -> frozenset[str]:
    """Those of the margin: the reference only where the margin is taken against it."""
    return apply.reads(settings.margin)


def coefficient(batch: Batch, settings: PreferenceSettings) -> Tensor:
    """GC of logp, [batch, time]."""
    return push(batch, settings, pairs(batch))


def loss(batch: Batch, settings: PreferenceSettings) -> Tensor:
    """The mean of the link over the pairs of each prompt, [groups]."""
    return cost(batch, settings, pairs(batch))


def metrics(batch: Batch, settings: PreferenceSettings) -> dict[str, tuple[Tensor, Tensor]]:
    """Means over prompts: rewards/accuracies, rewards/margins, rewards/chosen, rewards/rejected (beta g)."""
    found = pairs(batch)
    score = scores(batch, settings)
    return compared(found, score[found.better], score[found.worse])


def preference(name: str, settings: type[PreferenceSettings]) -> Algorithm:
    """A member of the family."""
    return Algorithm(
        name,
        settings,
        coefficient=coefficient,
        loss=loss,
        metrics=metrics,
        reads=reads,
        aggregation="group",
        scope="group",
        answers=2,
    )


def push(batch: Batch, settings: PreferenceSettings, found: Pairs, weight: Tensor | float = 1.0) -> Tensor:
    """GC of logp, [batch, time], from these pairs, each times `weight` [pairs]."""
    score = scores(batch, settings)
    up, down = link_coefficient(
        settings.link, score[found.better], score[found.worse], beta=settings.beta, gap=settings.gap
    )
    return batch.expand(found.per_row(up * weight, down * weight, batch.size)) * along(batch, settings)


def cost(batch: Batch, settings: PreferenceSettings, found: Pairs, weight: Tensor | float = 1.0) -> Tensor:
    """The mean of the link over these pairs of each prompt, each times `weight` [pairs]; [groups]."""
    score = scores(batch, settings)
    each = link_value(settings.link, score[found.better], score[found.worse], beta=settings.beta, gap=settings.gap)
    return found.per_group(each * weight, batch.groups)


def scores(batch: Batch, settings: PreferenceSettings) -> Tensor:
    """[batch]: beta g of every answer."""
    score: Tensor = apply.value(settings.transform, {"h": _margin(batch, settings)})
    return settings.beta * score


def along(batch: Batch, settings: PreferenceSettings) -> Tensor:
    """d scores / d logp of each answer's own tokens, [batch, time]."""
    slope = apply.coefficient(settings.transform, lambda h: {"h": h}, _margin(batch, settings), ascend=True)
    inner = apply.coefficient(settings.margin, lambda x: _offered(batch, settings, x), batch.logp, ascend=True)
    return settings.beta * batch.expand(slope) * batch.expand(inner)


def compared(found: Pairs, better: Tensor, worse: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """How often, and by how much, the better answers of [pairs] come out ahead; every prompt weighs the same."""
    each = {
        "rewards/accuracies": (better > worse).double(),
        "rewards/margins": better - worse,
        "rewards/chosen": better,
        "rewards/rejected": worse,
    }
    return {name: ((x * found.share).sum(), found.share.sum()) for name, x in each.items()}


def link_value(link: Any, better: Tensor, worse: Tensor, *, beta: float = 1.0, gap: Tensor | float = 0.0) -> Tensor:
    """The loss of each comparison, [pairs], of scaled scores [pairs]."""
    value: Tensor = apply.value(link, _compared(better, worse, beta, gap))
    return value


def link_coefficient(
    link: Any, better: Tensor, worse: Tensor, *, beta: float = 1.0, gap: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """Its negative derivatives by the scaled scores of the better and of the worse answer, [pairs] each."""
    both = torch.stack([better, worse])
    found = apply.coefficient(link, lambda x: _compared(x[0], x[1], beta, gap), both, ascend=False)
    return (found, -found) if found.dim() == 1 else (found[0], found[1])


def _compared(better: Tensor, worse: Tensor, beta: float, gap: Tensor | float) -> dict[str, Any]:
    """What a link may name."""
    return {"margin": better - worse - gap, "better": better, "worse": worse, "beta": beta}


def _margin(batch: Batch, settings: PreferenceSettings) -> Tensor:
    """[batch]: h of every answer."""
    h: Tensor = apply.value(settings.margin, _offered(batch, settings, batch.logp))
    return h


def _offered(batch: Batch, settings: PreferenceSettings, logp: Tensor) -> dict[str, Any]:
    """What a margin rule may name, with logp in the place of the batch's own."""
    own = {n: getattr(batch, n) for n in apply.reads(settings.margin) if n != "logp"}
    return {**own, "loss_mask": batch.loss_mask, "group": batch.group, "counts": batch.counts, "logp": logp}
