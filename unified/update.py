"""The last verb of an optimiser step: look at the gradient, clip it, move the weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unified.guard import Finding, settle, warn
from unified.run import Run


def update(run: Run) -> bool:
    """Clip each role's gradient, step the optimiser and the schedule.

    False, with none of it done, where a gradient is not finite in some process and the step is to be left out.
    """
    limit = run.settings.max_grad_norm or float("inf")
    gradients = {role: [p.grad for p in ps if p.grad is not None] for role, ps in _with_gradient(run).items()}
    norms = {role: torch.nn.utils.get_total_norm(found) for role, found in gradients.items()}
    for role, norm in norms.items():
        if not math.isfinite(float(norm)):
            text = f"the gradient of the {role} has the norm {float(norm):g}{_where(run, role)}"
            run.guard.note(Finding("gradient", text))
    if settle(run):
        return False
    for role, parameters in _with_gradient(run).items():
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norms[role])
        name, value = "grad_norm" if role in ("policy", "scorer") else f"grad_norm/{role}", float(norms[role])
        run.add(name, value)
        sign = run.watch.gradient(name, value, limit if math.isfinite(limit) else 0.0)
        if sign is not None:
            warn(run, sign.kind, sign.message, sign.values)
    run.add("learning_rate", float(run.optimizer.param_groups[0]["lr"]))
    run.optimizer.step()
    run.scheduler.step()
    run.optimizer.zero_grad(set_to_none=True)
    return True


def _with_gradient(run: Run) -> dict[str, list[Tensor]]:
    """The parameters of each role that have a gradient; roles without any are left out."""
    groups = run.optimizer.param_groups
    found = {r: [p for g in groups if g["role"] == r for p in g["params"] if p.grad is not None] for r in run.trained}
    return {role: parameters for role, parameters in found.items() if parameters}


def _where(run: Run, role: str) -> str:
    """The first parameter of a role whose gradient is not finite."""
    for name, parameter in run.roles.models[role].named_parameters():
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
            return f": the first to break is {name}, behind heads and coefficients that are finite"
    return ""
