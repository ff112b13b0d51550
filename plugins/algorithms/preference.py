"""The preference family: a margin (one number per answer) and a link (the loss of one comparison).

With h the margin rule of an answer and m = beta (h of the better - h of the worse), a prompt's loss is the mean of
link(m) over its pairs, so that a ranked list of K answers weighs as much as one pair. The coefficient is
GC[b, t] = sum over pairs of b: share * (-d link / d m) * (+-beta) * d h[b] / d logp[b, t], + where b is the better.
Which tensors each kind of rule may name is said in `rules/margins.py` and `links.py`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from unified import Algorithm, Batch, Field, Pairs, Settings, choice, pairs
from unified_plugins.rules import apply


class PreferenceSettings(Settings):
    """What a recipe may set for every member of the family."""

    beta: float = Field(0.1, gt=0, description="scale of the margin; larger stays nearer to the reference")
    margin: choice("margin") = Field("reference", validate_default=True, description="what is compared")  # type: ignore[valid-type]
    link: choice("link") = Field("sigmoid", validate_default=True, description="the loss of one comparison")  # type: ignore[valid-type]


def reads(settings: PreferenceSettings) -> frozenset[str]:
    """Those of the margin: the reference only where the margin is taken against it."""
    return apply.reads(settings.margin)


def coefficient(batch: Batch, settings: PreferenceSettings) -> Tensor:
    """GC of logp, [batch, time]."""
    found = pairs(batch)
    m = _margins(batch, settings, found)
    push = settings.beta * link_coefficient(settings.link, m, settings.beta)  # [pairs]
    along = apply.coefficient(settings.margin, lambda x: _offered(batch, settings, x), batch.logp, ascend=True)
    return batch.expand(found.per_row(push, -push, batch.size)) * batch.expand(along)


def loss(batch: Batch, settings: PreferenceSettings) -> Tensor:
    """The mean of the link over the pairs of each prompt, [groups]."""
    found = pairs(batch)
    each = link_value(settings.link, _margins(batch, settings, found), settings.beta)
    return found.per_group(each, batch.groups)


def metrics(batch: Batch, settings: PreferenceSettings) -> dict[str, tuple[Tensor, Tensor]]:
    """Means over prompts: rewards/accuracies, rewards/margins, rewards/chosen, rewards/rejected (beta h, in nats)."""
    found = pairs(batch)
    reward = settings.beta * apply.value(settings.margin, _offered(batch, settings, batch.logp))
    return compared(found, reward[found.better], reward[found.worse])


def compared(found: Pairs, better: Tensor, worse: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """How often, and by how much, the better answers of [pairs] come out ahead; every prompt weighs the same."""
    each = {
        "rewards/accuracies": (better > worse).double(),
        "rewards/margins": better - worse,
        "rewards/chosen": better,
        "rewards/rejected": worse,
    }
    return {name: ((x * found.share).sum(), found.share.sum()) for name, x in each.items()}


def link_value(link: Any, margin: Tensor, beta: float = 1.0) -> Tensor:
    """The loss of each comparison, [pairs]."""
    value: Tensor = apply.value(link, {"margin": margin, "beta": beta})
    return value


def link_coefficient(link: Any, margin: Tensor, beta: float = 1.0) -> Tensor:
    """Its negative derivative by the scaled margin, [pairs]."""
    return apply.coefficient(link, lambda x: {"margin": x, "beta": beta}, margin, ascend=False)


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


def _margins(batch: Batch, settings: PreferenceSettings, found: Pairs) -> Tensor:
    """[pairs]: beta times better minus worse."""
    h = apply.value(settings.margin, _offered(batch, settings, batch.logp))  # [batch]
    return settings.beta * (h[found.better] - h[found.worse])


def _offered(batch: Batch, settings: PreferenceSettings, logp: Tensor) -> dict[str, Any]:
    """What a margin rule may name, with logp in the place of the batch's own."""
    own = {n: getattr(batch, n) for n in apply.reads(settings.margin) if n != "logp"}
    return {**own, "loss_mask": batch.loss_mask, "logp": logp}
