"""The policy-gradient family: advantage x ratio rule x KL rule, of which PPO and GRPO are presets.

GC = d objective(ratio, advantage) / d logp + kl_weight * (-d KL estimate / d logp), the second where the KL's place is
the loss. In the reward or the advantage the KL is subtracted once per collected batch, from log-probs of the policy
that sampled. Which tensors each kind of rule may name is said in `rules/advantages.py`, `ratios.py` and `kl.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from unified import Algorithm, Batch, Field, Settings, choice
from unified_plugins.rules import apply
from unified_plugins.rules.kl import adapt_weight


class PolicyGradientSettings(Settings):
    """What a recipe may set for every member of the family."""

    advantage: choice("advantage") = Field(  # type: ignore[valid-type]
        "group", validate_default=True, description="how much better an answer or token was than expected"
    )
    ratio: choice("ratio") = Field(  # type: ignore[valid-type]
        "clip", validate_default=True, description="trust region on policy over the policy that sampled"
    )
    kl: choice("kl") = Field("k3", validate_default=True, description="estimate of KL(policy, reference)")  # type: ignore[valid-type]
    kl_weight: float = Field(0.0, ge=0, description="weight of that estimate; 0: no reference is needed")
    kl_place: Literal["reward", "advantage", "loss"] = Field("loss", description="where the KL enters")
    kl_target: float | None = Field(None, gt=0, description="adapt kl_weight towards this KL, in nats per token")
    kl_horizon: float = Field(20.0, gt=0, description="slowness of that, in collected batches")
    reward_clip: float | None = Field(None, gt=0, description="rewards are clipped to +- this, before the KL")
    entropy_weight: float = Field(0.0, ge=0, description="weight of the entropy bonus")

    @model_validator(mode="after")
    def _adaptive_weight_starts_above_zero(self) -> PolicyGradientSettings:
        if self.kl_target is not None and not self.kl_weight:
            raise ValueError("kl_target needs a kl_weight above 0 to start from")
        return self

    @property
    def kl_at(self) -> str:
        """Where the KL enters, or "" when it does not."""
        return self.kl_place if self.kl_weight else ""


def reads(settings: PolicyGradientSettings) -> frozenset[str]:
    """Fields and current heads of the coefficient: the reference only where the KL weight is not 0."""
    names = apply.reads(settings.ratio)
    if settings.kl_at:
        names |= apply.reads(settings.kl) | {"logp"}
    return names


def credit_reads(settings: PolicyGradientSettings) -> frozenset[str]:
    """Fields of the credit: those of the advantage rule, and both log-probs where the KL enters before the loss."""
    placed = settings.kl_at in ("reward", "advantage")
    return apply.reads(settings.advantage) | (apply.reads(settings.kl) | {"old_logp"} if placed else frozenset())


def aggregation(how: str) -> Callable[[PolicyGradientSettings], dict[str, str]]:
    """The heads that are pushed: logp, and entropy where it has a weight, both weighed the same way."""
    return lambda settings: {"logp": how, **({"entropy": how} if settings.entropy_weight else {})}


def initial_state(settings: PolicyGradientSettings) -> dict[str, float]:
    """The KL weight, which `update` changes where a target is set."""
    return {"kl_weight": settings.kl_weight}


def update(
    state: Mapping[str, float], totals: Mapping[str, float], settings: PolicyGradientSettings
) -> dict[str, float]:
    """Move the KL weight towards the target, once per collected batch."""
    if settings.kl_target is None:
        return dict(state)
    weight = adapt_weight(state["kl_weight"], totals["kl"], target=settings.kl_target, horizon=settings.kl_horizon)
    return {**state, "kl_weight": weight}


def credit(batch: Batch, settings: PolicyGradientSettings, state: Mapping[str, float]) -> dict[str, Tensor]:
    """Advantage (and returns) of every answer or token, from its reward."""
    reward = batch.reward
    if settings.reward_clip is not None:
        reward = reward.clamp(-settings.reward_clip, settings.reward_clip)
    whole = reward if reward.dim() == 1 else torch.where(batch.loss_mask, reward, 0.0).sum(1)  # [batch]
    token = torch.where(
        batch.last if reward.dim() == 1 else batch.loss_mask, batch.expand(reward), 0.0
    )  # [batch, time]
    penalty = torch.zeros_like(token)
    if settings.kl_at in ("reward", "advantage"):
        estimate = apply.value(settings.kl, _offered_to_kl(batch, settings, batch.old_logp))
        penalty = state["kl_weight"] * torch.where(batch.loss_mask, estimate, 0.0)
    if settings.kl_at == "reward":
        whole, token = whole - penalty.sum(1), token - penalty
    offered = {
        "reward": whole,
        "token_reward": token,
        "group": batch.group,
        "loss_mask": batch.loss_mask,
        "counts": batch.counts & _first_of_trajectory(batch.trajectory, batch.counts),
        "total": batch.total,
        "gather": batch.gather,
        **{name: getattr(batch, name) for name in apply.reads(settings.advantage)},
    }
    found = apply.value(settings.advantage, offered)
    found = dict(found) if isinstance(found, Mapping) else {"advantage": found}
    if settings.kl_at == "advantage":
        found["advantage"] = batch.expand(found["advantage"], "advantage") - penalty
    return found


def coefficient(batch: Batch, settings: PolicyGradientSettings, state: Mapping[str, float]) -> dict[str, Tensor]:
    """GC of logp, [batch, time], and of entropy, [batch]."""
    logp = batch.logp if batch.has("logp") else None
    push = apply.coefficient(settings.ratio, lambda x: _offered_to_ratio(batch, settings, x), logp, ascend=True)
    if settings.kl_at == "loss":
        pull = apply.coefficient(settings.kl, lambda x: _offered_to_kl(batch, settings, x), logp, ascend=False)
        push = push + state["kl_weight"] * pull
    out = {"logp": push}
    if settings.entropy_weight:
        weight = torch.ones(batch.size, dtype=torch.float64, device=push.device)
        out["entropy"] = settings.entropy_weight * weight
    return out


def loss(batch: Batch, settings: PolicyGradientSettings, state: Mapping[str, float]) -> dict[str, Tensor]:
    """The published objective with its sign turned, [batch, time] per head, to be minimised."""
    each = -apply.value(settings.ratio, _offered_to_ratio(batch, settings, batch.logp))
    if settings.kl_at == "loss":
        each = each + state["kl_weight"] * apply.value(settings.kl, _offered_to_kl(batch, settings, batch.logp))
    out = {"logp": each}
    if settings.entropy_weight:
        out["entropy"] = -settings.entropy_weight * batch.entropy
    return out


def metrics(
    batch: Batch, settings: PolicyGradientSettings, state: Mapping[str, float]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Means over tokens.

    zero_advantage: share without credit. clip_ratio: share with credit that the ratio rule does not push. policy_kl:
    k1 from the old policy to the policy, kl: the estimate to the reference, entropy where it is there; all in nats.
    """
    mask = batch.loss_mask & ~batch.probe[:, None]
    advantage = batch.expand(batch.advantage, "advantage")
    out: dict[str, Tensor] = {"zero_advantage": (advantage == 0).double()}
    if "old_logp" in apply.reads(settings.ratio):
        flat = coefficient(batch, settings.model_copy(update={"kl_weight": 0.0}), state)["logp"] == 0
        out["clip_ratio"] = (flat & (advantage != 0)).double()
        out["policy_kl"] = batch.old_logp - batch.logp
    if settings.kl_at and batch.has("ref_logp") and batch.has("logp"):
        out["kl"] = apply.value(settings.kl, _offered_to_kl(batch, settings, batch.logp))
    if batch.has("entropy"):
        out["entropy"] = batch.entropy
    return {name: (torch.where(mask, x, 0.0).sum(), mask.sum()) for name, x in out.items()}


def policy_gradient(name: str, settings: type[PolicyGradientSettings], *, how: str, answers: int) -> Algorithm:
    """A member of the family without a critic.

    how: the normaliser of its tokens. answers: fewest answers that its advantage compares.
    """
    return Algorithm(
        name,
        settings,
        coefficient=coefficient,
        loss=loss,
        credit=credit,
        metrics=metrics,
        update=update,
        initial_state=initial_state,
        reads=reads,
        credit_reads=credit_reads,
        aggregation=aggregation(how),
        source="rollouts",
        reward="required",
        answers=answers,
    )


def _offered_to_ratio(batch: Batch, settings: PolicyGradientSettings, logp: Tensor | None) -> dict[str, Any]:
    """What a ratio rule may name, with logp in the place of the batch's own."""
    names = apply.reads(settings.ratio)
    out = {n: getattr(batch, n) for n in names if n != "logp"}
    out |= {"advantage": batch.expand(batch.advantage, "advantage"), "loss_mask": batch.loss_mask, "group": batch.group}
    if logp is not None:
        out["logp"] = logp
        if "old_logp" in names:
            out["log_ratio"] = torch.where(batch.loss_mask, logp - batch.old_logp, 0.0)
            out["ratio"] = out["log_ratio"].exp()
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
