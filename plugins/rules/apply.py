"""How algorithms call the rules that their settings choose: with what the rule names, and its own settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from unified import Chosen, call_named


def reads(chosen: Chosen) -> frozenset[str]:
    """Batch fields and current heads that the rule looks at under its settings."""
    names: frozenset[str] = chosen.part.names_read(chosen.settings)
    return names


def names(chosen: Chosen, offered: frozenset[str]) -> frozenset[str]:
    """Which of those that are offered the rule names where it decides a push: its closed form, else its value."""
    parameters = inspect.signature(chosen.part.coefficient or chosen.part.value).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return offered
    return offered & {p.name for p in parameters}


def scope(chosen: Chosen) -> str:
    """How far the rule looks under its settings: "answer", "group" or "step"."""
    wide: str = chosen.part.scope_of(chosen.settings)
    return wide


def value(chosen: Chosen, offered: Mapping[str, Any]) -> Any:
    """The rule itself.

    Args:
        chosen: the rule and its settings, which are passed as keywords.
        offered: what the rule may name, tensors and functions.
    Raises:
        UserError: the rule names something that is not offered; the message lists what is.
        TypeError: a setting has the name of something that is offered.
    """
    return call_named(chosen.part.value, **offered, **_keywords(chosen))


def statistics(chosen: Chosen, offered: Mapping[str, Any]) -> dict[str, Tensor]:
    """What the rule must know of the whole step; {} for a rule that looks at answers one by one."""
    if scope(chosen) != "step" or chosen.part.statistics is None:
        return {}
    return dict(call_named(chosen.part.statistics, **offered, **_keywords(chosen)))


def coefficient(
    chosen: Chosen, offers: Callable[[Any], Mapping[str, Any]], at: Tensor | None, *, ascend: bool
) -> Tensor:
    """The rule's derivative: its closed form, or autograd of its value where it has none.

    Args:
        chosen: the rule and its settings.
        offers: what the rule may name, as a function of the tensor that it is differentiated by.
        at: that tensor; None where it is not known yet, which only a closed form that does not name it survives.
        ascend: True for d value, False for -d value.
    Returns:
        The closed form's own shape, or that of `at`.
    """
    if chosen.part.coefficient is not None:
        closed: Tensor = call_named(chosen.part.coefficient, **offers(at), **_keywords(chosen))
        return closed
    if at is None:
        raise ValueError(f"{chosen.name} has no closed form and the tensor it is differentiated by is not there")
    with torch.enable_grad():
        leaf = at.detach().requires_grad_()
        (slope,) = torch.autograd.grad(value(chosen, offers(leaf)).sum(), leaf, allow_unused=True)
    slope = torch.zeros_like(at) if slope is None else slope
    return slope if ascend else -slope


def _keywords(chosen: Chosen) -> dict[str, Any]:
    """The rule's settings by name; choices inside them stay choices."""
    return {name: getattr(chosen.settings, name) for name in type(chosen.settings).model_fields}
