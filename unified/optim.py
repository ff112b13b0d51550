"""Optimiser by name with a group per role and decay, and transformers' schedules."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import get_scheduler

from unified.errors import UserError, unknown_name
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
#: schedules of transformers that need nothing but the steps
SCHEDULES = (
    "constant",
    "constant_with_warmup",
    "cosine",
    "cosine_with_restarts",
    "inverse_sqrt",
    "linear",
    "polynomial",
)


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
        options |= {"betas": (settings.adam_beta1, settings.adam_beta2), "eps": settings.adam_epsilon}
    return cls(groups, **options)


def role_rate(settings: TrainSettings, role: str) -> float:
    """The learning rate of a role."""
    rate = settings.learning_rate
    if isinstance(rate, dict):
        return rate.get(role, rate.get("policy", next(iter(rate.values()))))
    return rate


def schedule(optimizer: torch.optim.Optimizer, settings: TrainSettings, steps: int) -> Any:
    """transformers' learning-rate schedule of that name over `steps` optimiser steps.

    With warm-up, "constant" is its "constant_with_warmup": the plain one would leave the warm-up out without a word.
    """
    if settings.lr_scheduler_type not in SCHEDULES:
        raise UserError(unknown_name("schedule", settings.lr_scheduler_type, SCHEDULES).text())
    warmup = settings.warmup_steps or int(settings.warmup_ratio * steps)
    name = "constant_with_warmup" if settings.lr_scheduler_type == "constant" and warmup else settings.lr_scheduler_type
    return get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
