"""AOT: the better answers' log-ratios shall lie above in distribution, rank by rank over the whole step.

aot: with a = logp of the better - logp of the worse of a prompt and b the same of the reference, the k-th smallest a is
compared with the k-th smallest b; GC = +-beta l'(beta (a - b_k)), l' = sigmoid(-x) for the sigmoid link.
aot_unpaired: with g = log-ratio to the reference, the k-th smallest g of the better answers is compared with the k-th
smallest of the worse ones, of whichever prompts; GC = +-beta l'(beta (g+ - g-)) of the pair that an answer is in.
Compared are the best and the worst answer of each prompt (means, where several tie); loss = mean over prompts of the
link, -log sigmoid(beta (...)) by default.
Use: pairs (aot) or answers judged one by one (aot_unpaired) where the whole distribution shall move, not each pair.
Watch: `rewards/margins`; the batch is what is sorted, so a small `batch_size` compares few ranks.
Source: Melnyk et al. 2024, arXiv:2406.05882.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from unified import Algorithm, Batch, Chosen, Field, Settings, choice, hookimpl, pairs
from unified_plugins.algorithms.preference import compared, link_coefficient, link_value
from unified_plugins.rules.margins import reference, reference_free
from unified_plugins.rules.matching import look_up, partners


class AOTSettings(Settings):
    """What a recipe may set for AOT, paired and unpaired."""

    beta: float = Field(0.1, gt=0, description="scale of the log-ratios; larger stays nearer to the reference")
    link: Chosen = choice("link", "sigmoid", description="the loss of one matched pair")


def extremes(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Shares [batch] of the best and of the worst answers of each prompt, and which prompts [groups] have two sides."""
    reward, group = batch.total_reward, batch.group
    ends, shares = [], []
    for sign in (1.0, -1.0):
        own = torch.where(batch.counts, sign * reward, -torch.inf)
        top = torch.full((batch.groups,), -torch.inf, dtype=own.dtype, device=own.device)
        ends.append(top.scatter_reduce(0, group, own, "amax"))
        shares.append(((own == ends[-1][group]) & batch.counts).double())
    apart = ends[0] > -ends[1]
    for i, share in enumerate(shares):
        number = torch.zeros_like(ends[0], dtype=share.dtype).index_add(0, group, share)
        shares[i] = share * apart[group] / number.clamp(min=1)[group]
    return shares[0], shares[1], apart


def sides(batch: Batch, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x [batch] of the best and of the worst answer of each prompt, [groups] each, and which prompts have both."""
    best, worst, apart = extremes(batch)
    zero = torch.zeros(batch.groups, dtype=torch.float64, device=x.device)
    return zero.index_add(0, batch.group, best * x), zero.index_add(0, batch.group, worst * x), apart


def statistics(batch: Batch) -> dict[str, Tensor]:
    """aot, per prompt of the step: `keys` (b), `xs` (a), and `values`, the b that its a is compared with; [prompts]."""
    gain, level, apart = _differences(batch)
    gains, levels = batch.gather(gain[apart]), batch.gather(level[apart])
    return {"keys": levels, "xs": gains, "values": partners(gains, levels)}


def coefficient(batch: Batch, settings: AOTSettings, statistics: Mapping[str, Tensor]) -> Tensor:
    """aot: GC of logp, one number per answer, [batch]."""
    gain, level, apart = _matched(batch, statistics)
    up, _ = link_coefficient(settings.link, settings.beta * gain, settings.beta * level, beta=settings.beta)
    best, worst, _ = extremes(batch)
    return settings.beta * (best - worst) * _spread(up, apart)[batch.group]


def loss(batch: Batch, settings: AOTSettings, statistics: Mapping[str, Tensor]) -> Tensor:
    """aot: the link of each prompt, [groups]."""
    gain, level, apart = _matched(batch, statistics)
    each = link_value(settings.link, settings.beta * gain, settings.beta * level, beta=settings.beta)
    return _spread(each, apart)


def _differences(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """a and b of every prompt, [groups] each, and which prompts have two sides."""
    better, worse, apart = sides(batch, reference_free(batch.logp, batch.loss_mask))
    ref_better, ref_worse, _ = sides(batch, reference_free(batch.ref_logp.double(), batch.loss_mask))
    return better - worse, ref_better - ref_worse, apart


def _matched(batch: Batch, statistics: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """a and its target, of the prompts with two sides, and which [groups] these are."""
    gain, level, apart = _differences(batch)
    return gain[apart], look_up(level[apart], gain[apart].detach(), **statistics), apart


def unpaired_statistics(batch: Batch) -> dict[str, Tensor]:
    """aot_unpaired, of the better (0) and the worse answers (1): as of aot, with g and log p under the reference."""
    *gains, apart = sides(batch, reference(batch.logp, batch.ref_logp, batch.loss_mask))
    *keys, _ = sides(batch, reference_free(batch.ref_logp.double(), batch.loss_mask))
    xs = [batch.gather(gain[apart]) for gain in gains]
    out = {f"keys{i}": batch.gather(key[apart]) for i, key in enumerate(keys)}
    return {**out, "xs0": xs[0], "xs1": xs[1], "values0": partners(xs[0], xs[1]), "values1": partners(xs[1], xs[0])}


def unpaired_coefficient(batch: Batch, settings: AOTSettings, statistics: Mapping[str, Tensor]) -> Tensor:
    """aot_unpaired: GC of logp, one number per answer, [batch]."""
    better, worse, of_better, of_worse, apart = _matched_sides(batch, statistics)
    beta = settings.beta
    up, _ = link_coefficient(settings.link, beta * better, beta * of_better, beta=beta)
    _, down = link_coefficient(settings.link, beta * of_worse, beta * worse, beta=beta)
    best, worst, _ = extremes(batch)
    return beta * (best * _spread(up, apart)[batch.group] + worst * _spread(down, apart)[batch.group])


def unpaired_loss(batch: Batch, settings: AOTSettings, statistics: Mapping[str, Tensor]) -> Tensor:
    """aot_unpaired: half the link of the match of each side, [groups].

    Over the step every match stands here twice, so that the values add up to the loss; partners may be in another
    micro-batch and stand as constants, so that the gradient of each side is taken whole.
    """
    better, worse, of_better, of_worse, apart = _matched_sides(batch, statistics)
    beta = settings.beta
    both = link_value(settings.link, beta * better, beta * of_better, beta=beta)
    both = both + link_value(settings.link, beta * of_worse, beta * worse, beta=beta)
    return _spread(both - 0.5 * both.detach(), apart)


def _matched_sides(batch: Batch, statistics: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """g of the better and worse answers, of their partners, and which [groups] have both."""
    *gains, apart = sides(batch, reference(batch.logp, batch.ref_logp, batch.loss_mask))
    *keys, _ = sides(batch, reference_free(batch.ref_logp.double(), batch.loss_mask))
    found = []
    for i, (gain, key) in enumerate(zip(gains, keys, strict=True)):
        known = {name: statistics[f"{name}{i}"] for name in ("keys", "xs", "values")}
        found.append(look_up(key[apart], gain[apart].detach(), **known))
    return gains[0][apart], gains[1][apart], *found, apart


def _spread(x: Tensor, apart: Tensor) -> Tensor:
    """Numbers of the prompts with two sides as [groups], 0 for the others."""
    out = torch.zeros(apart.shape, dtype=x.dtype, device=x.device)
    return out.masked_scatter(apart, x)


def metrics(batch: Batch, settings: AOTSettings) -> dict[str, tuple[Tensor, Tensor]]:
    """As of the preference family, over all pairs of a prompt: accuracies, margins and both sides of beta g."""
    found = pairs(batch)
    score = settings.beta * reference(batch.logp, batch.ref_logp, batch.loss_mask)
    return compared(found, score[found.better], score[found.worse])


def _aot(name: str, *functions: Callable[..., Any]) -> Algorithm:
    known, given, published = functions
    return Algorithm(
        name,
        AOTSettings,
        statistics=known,
        coefficient=given,
        loss=published,
        metrics=metrics,
        reads=frozenset({"logp", "ref_logp"}),
        aggregation="group",
        scope="step",
        answers=2,
    )


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer both to recipes as `algorithm: aot` and `algorithm: aot_unpaired`."""
    return [
        _aot("aot", statistics, coefficient, loss),
        _aot("aot_unpaired", unpaired_statistics, unpaired_coefficient, unpaired_loss),
    ]
