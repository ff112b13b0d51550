"""The last verb of an optimiser step: look at the gradient, clip it, move the weights."""

from __future__ import annotations

import math

import torch

from unified.guard import Finding, settle, warn
from unified.running import Run


def update(run: Run) -> bool:
    """Clip each role's gradient, step the optimiser and the schedule.

    False, with none of it done, where a gradient is not finite in some process and the step is to be left out.
    """
    limit = run.settings.max_grad_norm or float("inf")
    found = {role: run.wrapper.gradients(run.parameters_of(role)) for role in run.trained}
    gradients = {role: of_role for role, of_role in found.items() if of_role}
    norms = {role: run.wrapper.norm(of_role) for role, of_role in gradients.items()}
    for role, norm in norms.items():
        if not math.isfinite(float(norm)):
            text = f"the gradient of the {role} has the norm {float(norm):g}{_where(run, role)}"
            run.guard.note(Finding("gradient", text))
    if settle(run):
        return False
    for role, of_role in gradients.items():
        run.wrapper.clip(of_role, norms[role], limit)
        name, value = "grad_norm" if role in ("policy", "scorer") else f"grad_norm/{role}", float(norms[role])
        if run.processes.rank == 0:  # the same in all processes, whatever their number
            run.add(name, value)
        sign = run.watch.gradient(name, value, limit if math.isfinite(limit) else 0.0)
        if sign is not None:
            warn(run, sign.kind, sign.message, sign.values)
    if run.processes.rank == 0:
        run.add("learning_rate", float(run.optimizer.param_groups[0]["lr"]))
    run.wrapper.step()
    run.scheduler.step()
    return True


def _where(run: Run, role: str) -> str:
    """The first parameter of a role whose gradient is not finite."""
    for name, parameter in run.roles.models[role].named_parameters():
        if not all(bool(torch.isfinite(g).all()) for g in run.wrapper.gradients([parameter])):
            return f": the first to break is {name}, behind heads and coefficients that are finite"
    return ""
