"""Optimiser by name with a group per role and decay, and transformers' schedules."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from unified.errors import Problem, UserError, unknown_name
from unified.sound import keep, recall
from unified.stage import TrainSettings

#: names that transformers uses -> class in torch.optim
OPTIMISERS = {
    "adamw_torch": "AdamW",
    "adamw": "AdamW",
    "adam": "Adam",
    "sgd": "SGD",
    "adagrad": "Adagrad",
    "rmsprop": "RMSprop",
}
#: schedules of transformers that follow from the steps alone
SCHEDULES = (
    "constant",
    "constant_with_warmup",
    "cosine",
    "cosine_warmup_with_min_lr",
    "cosine_with_min_lr",
    "cosine_with_restarts",
    "inverse_sqrt",
    "linear",
    "polynomial",
    "warmup_stable_decay",
)
#: those of them that need no setting of their own, and take any learning rate
PLAIN = ("constant", "constant_with_warmup", "cosine", "cosine_with_restarts", "inverse_sqrt", "linear")
#: what `schedule` itself gives a schedule of transformers
_GIVEN = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")


def optimiser_class(name: str) -> type[torch.optim.Optimizer]:
    """The optimiser of that name; UserError with the known ones."""
    known = {**OPTIMISERS, **{n: n for n in dir(torch.optim) if n[0].isupper() and n != "Optimizer"}}
    if name not in known:
        raise UserError(unknown_name("optimiser", name, known).text())
    cls: type[torch.optim.Optimizer] = getattr(torch.optim, known[name])
    return cls


def optimiser(roles: dict[str, nn.Module], settings: TrainSettings) -> torch.optim.Optimizer:
    """One optimiser over the trained roles: weight decay only on matrices of the linear layers and embeddings.

    A learning rate per role; a role without one of its own takes that of "policy".
    """
    cls = optimiser_class(settings.optim)
    groups: list[dict[str, Any]] = []
    seen: set[int] = set()
    for role, module in roles.items():
        rate = role_rate(settings, role)
        plain: list[nn.Parameter] = []
        decayed: list[nn.Parameter] = []
        for parameter in module.parameters():
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            (decayed if parameter.dim() >= 2 else plain).append(parameter)
        for parameters, decay in ((decayed, settings.weight_decay), (plain, 0.0)):
            if parameters:
                groups.append({"params": parameters, "lr": rate, "weight_decay": decay, "role": role})
    options: dict[str, Any] = {"lr": role_rate(settings, "policy")}
    if issubclass(cls, (torch.optim.Adam, torch.optim.AdamW)):
        options |= {"betas": (settings.adam_beta1, settings.adam_beta2), "eps": settings.adam_epsilon, "fused": True}
    try:
        return cls(groups, **options)
    except (TypeError, ValueError) as error:
        what = f"optimiser '{settings.optim}' does not take the parameters of this model: {error}"
        raise UserError(what, "choose another `optim`; adamw_torch takes all") from error


def role_rate(settings: TrainSettings, role: str) -> float:
    """The learning rate of a role."""
    rate = settings.learning_rate
    if isinstance(rate, dict):
        return rate.get(role, rate.get("policy", next(iter(rate.values()))))
    return rate


def schedule(optimizer: torch.optim.Optimizer, settings: TrainSettings, steps: int) -> Any:
    """transformers' learning-rate schedule of that name over `steps` optimiser steps.

    With warm-up, "constant" is its "constant_with_warmup": the plain one would leave the warm-up out without a word.
    A floor in `lr_scheduler_kwargs` that is a rate (min_lr, lr_end) is that of the policy; other roles fall by the same
    share. UserError for a schedule or a setting of it that is not there, or that transformers refuses.
    """
    name = settings.lr_scheduler_type
    problems = _named_problems(settings)
    if problems:
        raise UserError(problems[0].text())
    warmup = settings.warmup_steps or int(settings.warmup_ratio * steps)
    name = "constant_with_warmup" if name == "constant" and warmup else name
    from transformers import get_scheduler  # slow to import, and a check does without

    try:
        return get_scheduler(
            name, optimizer, num_warmup_steps=warmup, num_training_steps=steps,
            scheduler_specific_kwargs=dict(settings.lr_scheduler_kwargs),
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        raise UserError(f"schedule '{name}': {str(error).strip()}") from error


def schedule_problems(settings: TrainSettings) -> list[Problem]:
    """What is wrong with the schedule and its settings; it is tried on an optimiser of one weight.

    Not tried are schedules with nothing to be wrong in, and what was tried before and was right.
    """
    name, own = settings.lr_scheduler_type, dict(settings.lr_scheduler_kwargs)
    if name in PLAIN and not own:
        return []
    steps = settings.max_steps if settings.max_steps > 0 else 1_000_000
    warmup, rate = (settings.warmup_steps, settings.warmup_ratio), role_rate(settings, "policy")
    question = ["schedule", name, own, steps, warmup, rate]
    if recall(question):
        return []
    problems = _named_problems(settings) or _tried(settings, steps)
    if not problems:
        keep(question, True)
    return problems


def _tried(settings: TrainSettings, steps: int) -> list[Problem]:
    """What goes wrong at the beginning, in the middle or at the end of a schedule."""
    weight = nn.Parameter(torch.zeros(1))
    try:
        tried = schedule(torch.optim.SGD([weight], lr=role_rate(settings, "policy")), settings, steps)
        for step in (0, steps // 2, steps):
            [float(rate(step)) for rate in tried.lr_lambdas]
    except (UserError, TypeError, ValueError, ZeroDivisionError) as error:
        first = str(error).strip().splitlines()[0]
        what = first if first.startswith("schedule") else f"schedule '{settings.lr_scheduler_type}': {first}"
        return [Problem(what, ("lr_scheduler_kwargs" if settings.lr_scheduler_kwargs else "lr_scheduler_type",))]
    return []


def _named_problems(settings: TrainSettings) -> list[Problem]:
    """A schedule, or a setting of it, whose name nobody knows."""
    name = settings.lr_scheduler_type
    if name not in SCHEDULES:
        return [unknown_name("schedule", name, SCHEDULES, at=("lr_scheduler_type",))]
    from transformers import SchedulerType
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

    function: Any = TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)]
    taken = inspect.signature(function).parameters
    known = [key for key in taken if key not in _GIVEN]
    return [
        unknown_name(f"setting of schedule '{name}'", key, known, at=("lr_scheduler_kwargs", key))
        for key in settings.lr_scheduler_kwargs
        if key not in known
    ]
