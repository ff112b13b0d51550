"""The policy-gradient family: advantage x ratio rule x factors x KL rule, of which PPO and GRPO are presets.

GC = factors * d objective(ratio, advantage) / d logp + kl_weight * (-d KL estimate / d logp), the second where the
KL's place is the loss. In the reward or the advantage the KL is subtracted once per collected batch, from log-probs of
the policy that sampled. Which tensors each kind of rule may name is said in `rules/advantages.py`, `ratios.py`,
`factors.py` and `kl.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from unified import Algorithm, Batch, Chosen, Field, Settings, choice
from unified_plugins.rules import apply
from unified_plugins.rules.entropy import adapt_entropy
from unified_plugins.rules.kl import adapt_weight


class PolicyGradientSettings(Settings):
    """What a recipe may set for every member of the family."""

    critic: ClassVar[bool] = False  # whether the algorithm trains one, so that an advantage may look at it

    advantage: Chosen = choice("advantage", "group", description="how much better an answer or token was than expected")
    ratio: Chosen = choice("ratio", "clip", description="trust region on policy over the policy that sampled")
    factors: list[Chosen] = choice(
        "factor", [], description="numbers that multiply the push of a token: corrections, and what is left out"
    )
    kl: Chosen = choice("kl", "k3", description="estimate of KL(policy, reference)")
    kl_weight: float = Field(0.0, ge=0, description="weight of that estimate; 0: no reference is needed")
    kl_place: Literal["reward", "advantage", "loss"] = Field("loss", description="where the KL enters")
    kl_target: float | None = Field(None, gt=0, description="adapt kl_weight towards this KL, in nats per token")
    kl_horizon: float = Field(20.0, gt=0, description="slowness of that, in collected batches")
    reward_clip: float | None = Field(None, gt=0, description="rewards are clipped to +- this, before the KL")
    entropy_weight: float = Field(0.0, ge=0, description="weight of the entropy bonus")
    entropy_target: float | None = Field(
        None, gt=0, description="adapt entropy_weight, and pay the bonus only below this entropy, in nats per token"
    )
    entropy_rate: float = Field(0.005, gt=0, description="change of that weight per collected batch")

    @model_validator(mode="after")
    def _fits_together(self) -> PolicyGradientSettings:
        if self.kl_target is not None and not self.kl_weight:
            raise ValueError("kl_target needs a kl_weight above 0 to start from")
        if "old_value" in apply.reads(self.advantage) and not self.critic:
            raise ValueError(
                f"advantage '{self.advantage.name}' looks at a critic, and this algorithm trains none; "
                "choose another advantage, or an algorithm with a critic, such as ppo"
            )
        return self

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        """`factors: none` is an empty list: nothing is corrected, whatever samples."""
        return {**data, "factors": []} if data.get("factors") == "none" else data

    @property
    def kl_at(self) -> str:
        """Where the KL enters, or "" when it does not."""
        return self.kl_place if self.kl_weight else ""

    @property
    def pays_entropy(self) -> bool:
        """Whether the entropy is pushed, now or once its target asks for it."""
        return bool(self.entropy_weight) or self.entropy_target is not None


def reads(settings: PolicyGradientSettings) -> frozenset[str]:
    """Fields and current heads of the coefficient: the reference only where the KL weight is not 0."""
    names = apply.reads(settings.ratio).union(*map(apply.reads, settings.factors))
    if settings.kl_at:
        names |= apply.reads(settings.kl) | {"logp"}
    return names


def through_ratio(settings: PolicyGradientSettings) -> bool:
    """Whether the rules see log-probs of the policies by their ratio alone, and no KL to another one is pushed."""
    both = frozenset({"logp", "old_logp", "mismatch"})
    named = [name for rule in (settings.ratio, *settings.factors) for name in apply.names(rule, both)]
    return settings.kl_at != "loss" and not named


def credit_reads(settings: PolicyGradientSettings) -> frozenset[str]:
    """Fields of the credit: those of the advantage rule, and both log-probs where the KL enters before the loss."""
    placed = settings.kl_at in ("reward", "advantage")
    return apply.reads(settings.advantage) | (apply.reads(settings.kl) | {"old_logp"} if placed else frozenset())


def corrected(settings: PolicyGradientSettings) -> PolicyGradientSettings:
    """On answers of a foreign engine: truncated importance weights, where a recipe does not say which factors.

    Source: Yao et al. 2025, Your Efficient RL Framework Secretly Brings You Off-Policy RL Training.
    """
    if "factors" in settings.model_fields_set or settings.factors:
        return settings
    weights = type(settings).model_validate({"factors": ["importance"]}).factors
    return settings.model_copy(update={"factors": weights})


def aggregation(how: str) -> Callable[[PolicyGradientSettings], dict[str, str]]:
    """The heads that are pushed: logp, and entropy where it has a weight, both weighed the same way."""
    return lambda settings: {"logp": how, **({"entropy": how} if settings.pays_entropy else {})}


def scope(settings: PolicyGradientSettings) -> Literal["answer", "step"]:
    """Step, at the cost of one more forward, where a rule must know something of the whole optimiser step."""
    return "step" if any(apply.scope(rule) == "step" for _, rule in _stepwise(settings)) else "answer"


def initial_state(settings: PolicyGradientSettings) -> dict[str, float]:
    """The KL weight, and of an adaptive bonus its weight and the last entropy; `update` changes them."""
    state = {"kl_weight": settings.kl_weight}
    if settings.entropy_target is not None:
        state |= {"entropy_weight": settings.entropy_weight, "entropy": 0.0}
    return state


def update(
    state: Mapping[str, float], totals: Mapping[str, float], settings: PolicyGradientSettings
) -> dict[str, float]:
    """Move the weights of KL and entropy towards their targets, once per collected batch in which answers counted."""
    out = dict(state)
    if settings.kl_target is not None and "kl" in totals:
        target, horizon = settings.kl_target, settings.kl_horizon
        out["kl_weight"] = adapt_weight(state["kl_weight"], totals["kl"], target=target, horizon=horizon)
    if settings.entropy_target is not None and "entropy" in totals:
        target, entropy = settings.entropy_target, totals["entropy"]
        weight = adapt_entropy(state["entropy_weight"], entropy, target=target, rate=settings.entropy_rate)
        out |= {"entropy_weight": weight, "entropy": entropy}
    return out


def entropy_weight(settings: PolicyGradientSettings, state: Mapping[str, float]) -> float:
    """The weight of the bonus now: of an adaptive one 0 while the entropy is above its target."""
    if settings.entropy_target is None:
        return settings.entropy_weight
    return state["entropy_weight"] if state["entropy"] <= settings.entropy_target else 0.0


def credit(batch: Batch, settings: PolicyGradientSettings, state: Mapping[str, float]) -> dict[str, Tensor]:
    """Advantage (and returns) of every answer or token, from its reward."""
    reward = batch.reward
    if settings.reward_clip is not None:
        reward = reward.clamp(-settings.reward_clip, settings.reward_clip)
    whole = reward if reward.dim() == 1 else torch.where(batch.loss_mask, reward, 0.0).sum(1)  # [batch]
    token = torch.where(
        batch.last if reward.dim() == 1 else batch.loss_mask, batch.expand(reward), 0.0
    )  # [batch, time]
    outcome, penalty = whole, torch.zeros_like(token)
    if settings.kl_at in ("reward", "advantage"):
        estimate = apply.value(settings.kl, _offered_to_kl(batch, settings, batch.old_logp))
        penalty = state["kl_weight"] * torch.where(batch.loss_mask, estimate, 0.0)
    if settings.kl_at == "reward":
        whole, token = whole - penalty.sum(1), token - penalty
    offered = {
        "reward": whole,
        "token_reward": token,
        "outcome": outcome,
        "group": batch.group,
        "loss_mask": batch.loss_mask,
        "last": batch.last,
        "counts": batch.counts & _first_of_trajectory(batch.trajectory, batch.counts),
        "tokens": batch.loss_mask & batch.counts[:, None],
        "columns": batch.columns,
        "total": batch.total,
        "gather": batch.gather,
        **{name: getattr(batch, name) for name in apply.reads(settings.advantage)},
    }
    found = apply.value(settings.advantage, offered)
    found = dict(found) if isinstance(found, Mapping) else {"advantage": found}
    if settings.kl_at == "advantage":
        found["advantage"] = batch.expand(found["advantage"], "advantage") - penalty
    return found


def statistics(batch: Batch, settings: PolicyGradientSettings) -> dict[str, Tensor]:
    """What the rules must know of the whole optimiser step, under the place of each rule."""
    out: dict[str, Tensor] = {}
    for place, rule in _stepwise(settings):
        if apply.scope(rule) != "step":
            continue
        offers = _offered_to_ratio if place == "ratio" else _offered_to_factor
        reach = {"counts": batch.counts, "total": batch.total, "gather": batch.gather}
        found = apply.statistics(rule, {**offers(batch, rule, batch.logp if batch.has("logp") else None), **reach})
        out |= {f"{place}.{name}": value for name, value in found.items()}
    return out


def coefficient(
    batch: Batch, settings: PolicyGradientSettings, state: Mapping[str, float], statistics: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """GC of logp, [batch, time], and of entropy, [batch]."""
    logp = batch.logp if batch.has("logp") else None
    known = _of_place(statistics, "ratio")
    push = apply.coefficient(
        settings.ratio, lambda x: _offered_to_ratio(batch, settings.ratio, x, known), logp, ascend=True
    )
    weight = factor(batch, settings, statistics)
    push = push if weight is None else torch.where(weight == 0, 0.0, push * weight)
    if settings.kl_at == "loss":
        pull = apply.coefficient(settings.kl, lambda x: _offered_to_kl(batch, settings, x), logp, ascend=False)
        push = push + state["kl_weight"] * pull
    out = {"logp": push}
    if settings.pays_entropy:
        ones = torch.ones(batch.size, dtype=torch.float64, device=push.device)
        out["entropy"] = entropy_weight(settings, state) * ones
    return out


def loss(
    batch: Batch, settings: PolicyGradientSettings, state: Mapping[str, float], statistics: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The published objective with its sign turned, [batch, time] per head, to be minimised."""
    known = _of_place(statistics, "ratio")
    each = -apply.value(settings.ratio, _offered_to_ratio(batch, settings.ratio, batch.logp, known))
    weight = factor(batch, settings, statistics)
    each = each if weight is None else each * weight
    if settings.kl_at == "loss":
        each = each + state["kl_weight"] * apply.value(settings.kl, _offered_to_kl(batch, settings, batch.logp))
    out = {"logp": each}
    if settings.pays_entropy:
        out["entropy"] = -entropy_weight(settings, state) * batch.entropy
    return out


def factor(batch: Batch, settings: PolicyGradientSettings, statistics: Mapping[str, Tensor]) -> Tensor | None:
    """The product of all factors, [batch, time] without a gradient; None where there is none."""
    product: Tensor | None = None
    logp = batch.logp.detach() if batch.has("logp") else None
    for i, rule in enumerate(settings.factors):
        known = _of_place(statistics, f"factor{i}")
        one = apply.value(rule, _offered_to_factor(batch, rule, logp, known)).detach()
        one = batch.expand(one, f"factor '{rule.name}'")
        product = one if product is None else product * one
    return product


def metrics(
    batch: Batch, settings: PolicyGradientSettings, state: Mapping[str, float], statistics: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Means over tokens.

    zero_advantage: share without credit. clip_ratio: share with credit that the ratio rule does not push. policy_kl:
    k1 from the old policy to the policy, kl: the estimate to the reference, entropy where it is there; all in nats.
    mismatch: KL(rollout engine, old policy), by k3 from the tokens that it drew, in nats.
    factor, factor_zero: the product of the factors, and the share where it is 0. entropy_weight: of an adaptive bonus.
    """
    mask = batch.loss_mask & ~batch.probe[:, None]
    advantage = batch.expand(batch.advantage, "advantage")
    out: dict[str, Tensor] = {"zero_advantage": (advantage == 0).double()}
    if "old_logp" in apply.reads(settings.ratio):
        known = _of_place(statistics, "ratio")
        push = apply.coefficient(
            settings.ratio, lambda x: _offered_to_ratio(batch, settings.ratio, x, known), batch.logp, ascend=True
        )
        out["clip_ratio"] = ((push == 0) & (advantage != 0)).double()
        out["policy_kl"] = batch.old_logp - batch.logp
    weight = factor(batch, settings, statistics)
    if weight is not None:
        out |= {"factor": weight, "factor_zero": (weight == 0).double()}
    if any("sampling_logp" in apply.reads(rule) for rule in settings.factors):
        gap = batch.old_logp - batch.sampling_logp
        out["mismatch"] = gap.exp() - 1 - gap
    if settings.kl_at and batch.has("ref_logp") and batch.has("logp"):
        out["kl"] = apply.value(settings.kl, _offered_to_kl(batch, settings, batch.logp))
    if batch.has("entropy"):
        out["entropy"] = batch.entropy
    if settings.entropy_target is not None:
        out["entropy_weight"] = torch.full_like(advantage, entropy_weight(settings, state))
    return {name: (torch.where(mask, x, 0.0).sum(), mask.sum()) for name, x in out.items()}


def policy_gradient(
    name: str, settings: type[PolicyGradientSettings], *, how: str, answers: int, source: str = "rollouts"
) -> Algorithm:
    """A member of the family without a critic.

    how: the normaliser of its tokens. answers: fewest answers that its advantage compares. source: where they are from.
    """
    return Algorithm(
        name,
        settings,
        coefficient=coefficient,
        loss=loss,
        credit=credit,
        statistics=statistics,
        metrics=metrics,
        update=update,
        initial_state=initial_state,
        reads=reads,
        through_ratio=through_ratio,
        credit_reads=credit_reads,
        aggregation=aggregation(how),
        scope=scope,
        corrected=corrected,
        source=source,
        reward="required",
        answers=answers,
    )


def _stepwise(settings: PolicyGradientSettings) -> list[tuple[str, Any]]:
    """(place, rule) of the rules that may need statistics of the step."""
    return [("ratio", settings.ratio), *((f"factor{i}", rule) for i, rule in enumerate(settings.factors))]


def _of_place(statistics: Mapping[str, Tensor], place: str) -> dict[str, Tensor]:
    """The statistics of one rule, by the names that it gave them."""
    return {k.removeprefix(f"{place}."): v for k, v in statistics.items() if k.startswith(f"{place}.")}


def _offered_to_ratio(
    batch: Batch, rule: Any, logp: Tensor | None, statistics: Mapping[str, Tensor] | None = None
) -> dict[str, Any]:
    """What a ratio rule may name, with logp in the place of the batch's own."""
    names = apply.reads(rule)
    out: dict[str, Any] = {n: getattr(batch, n) for n in names if n != "logp"}
    out |= {"advantage": batch.expand(batch.advantage, "advantage"), "loss_mask": batch.loss_mask, "group": batch.group}
    if statistics is not None:
        out["statistics"] = statistics
    if logp is not None:
        out["logp"] = logp
        if "old_logp" in names:
            out["log_ratio"] = torch.where(batch.loss_mask, logp - batch.old_logp, 0.0)
            out["ratio"] = out["log_ratio"].exp()
    return out


def _offered_to_factor(
    batch: Batch, rule: Any, logp: Tensor | None, statistics: Mapping[str, Tensor] | None = None
) -> dict[str, Any]:
    """What a factor may name: what a ratio rule may, and the gap to the rollout engine."""
    out = _offered_to_ratio(batch, rule, logp, statistics)
    if {"old_logp", "sampling_logp"} <= apply.reads(rule):
        out["mismatch"] = torch.where(batch.loss_mask, batch.old_logp - batch.sampling_logp, 0.0)
    return out


def _offered_to_kl(batch: Batch, settings: PolicyGradientSettings, logp: Tensor | None) -> dict[str, Any]:
    """What a KL rule may name, with logp in the place of the batch's own."""
    names = apply.reads(settings.kl)
    out = {n: getattr(batch, n) for n in names if n != "logp"} | {"loss_mask": batch.loss_mask}
    if logp is not None:
        out |= {"logp": logp, "log_ratio": torch.where(batch.loss_mask, logp - batch.ref_logp, 0.0)}
        if "old_logp" in names:
            out["old_ratio"] = torch.where(batch.loss_mask, logp - batch.old_logp, 0.0).exp()
    return out


def _first_of_trajectory(trajectory: Tensor, counts: Tensor) -> Tensor:
    """[batch] bool: of the rows of a trajectory that count, the first."""
    _, number = torch.unique(trajectory, return_inverse=True)  # [batch]
    place = torch.arange(trajectory.numel(), device=trajectory.device)
    where = torch.where(counts, place, trajectory.numel())
    first = torch.full_like(place, trajectory.numel()).scatter_reduce(0, number, where, "amin")
    return place == first[number]
