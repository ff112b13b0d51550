"""Whole models beside shared-out ones: for answers, and to be written."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def shell_of(model: nn.Module) -> nn.Module:
    """A copy of a model whose parameters take no memory until they are filled in; tied ones stay tied."""
    empty: dict[int, Any] = {}
    for parameter in model.parameters():
        like = torch.empty_like(parameter, device="meta")
        empty[id(parameter)] = nn.Parameter(like, requires_grad=parameter.requires_grad)
    return copy.deepcopy(model, empty)


@torch.no_grad()
def fill_shell(shell: nn.Module, model: nn.Module, whole: Callable[[Tensor], Tensor], *, keep: bool) -> None:
    """Give a shell the weights that a shared-out model has now. All processes must call it.

    whole: makes all of a parameter out of its parts. keep: whether this process fills its shell, or only takes part.
    """
    made: dict[int, nn.Parameter] = {}
    for into, of in zip(shell.parameters(), model.parameters(), strict=True):
        value = whole(of)
        if keep and into.is_meta:
            made[id(into)] = nn.Parameter(value.clone(), requires_grad=into.requires_grad)
        elif keep:
            into.copy_(value)
    for module in shell.modules() if made else ():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in made:
                module._parameters[name] = made[id(parameter)]
    for buffer, now in zip(shell.buffers(), model.buffers(), strict=True):
        if keep:
            buffer.data = now.detach().clone()
