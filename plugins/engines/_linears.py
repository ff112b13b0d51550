"""Linear layers with their weights laid out once for all steps of a rollout, on CPUs that multiply bfloat16 numbers.

A product of few rows spends much of its time on bringing the weight into the order that the instructions want; for 16
to 64 rows it is 1.2 to 1.5 times as fast when that has been done before (measured on one thread with avx512_bf16,
weights of 256 x 256 to 384 x 32000). The numbers are the same up to the order of sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: most rows of a product that gains by it
FEW = 128
#: tokens of an answer from which on the layout pays: it costs about as much as two products
ENOUGH = 8


@contextmanager
def laid_out(model: nn.Module, tokens: int) -> Iterator[None]:
    """While answers of up to so many tokens are drawn, products of few rows by the model's linear layers are quick."""
    plain = [m for m in model.modules() if type(m) is nn.Linear and "forward" not in vars(m)]
    layers = plain if tokens >= ENOUGH and _can(model) else []
    try:
        for layer in layers:
            layer.forward = MethodType(_Once(), layer)  # type: ignore[method-assign]
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


class _Once:
    """The forward of a layer, which lays its weight out when it is first called with few rows."""

    def __init__(self) -> None:
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None

    def __call__(self, layer: nn.Linear, x: Tensor) -> Tensor:
        rows = x.numel() // max(x.shape[-1], 1)
        if not 0 < rows <= FEW:
            return F.linear(x, layer.weight, layer.bias)
        if self.weight is None:
            self.weight = _laid_out(layer.weight, rows)
            self.bias = None if layer.bias is None else layer.bias.detach().bfloat16()
        flat = x.reshape(rows, -1).bfloat16()
        return _product(flat, self.weight, self.bias).view(*x.shape[:-1], -1)


def _laid_out(weight: Tensor, rows: int) -> Tensor:
    """A weight [out, in] as torch's compiler keeps it for products of so many rows."""
    out: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().bfloat16().contiguous(), rows)
    return out


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def _can(model: nn.Module) -> bool:
    """Whether products are in bfloat16 on such a CPU, and torch gives with laid out weights what it gives without."""
    weight = next(model.parameters())
    if weight.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return False
    if torch.get_autocast_dtype("cpu") != torch.bfloat16 or torch.is_grad_enabled():
        return False
    return _agrees()


_found: list[bool] = []


def _agrees() -> bool:
    """Tried once on small numbers."""
    if not _found:
        x, weight, bias = ((torch.arange(n) % 7 - 3).bfloat16() for n in (5 * 32, 48 * 32, 48))
        x, weight = x.view(5, 32), weight.view(48, 32)
        try:
            found = _product(x, _laid_out(weight, 5), bias)
            _found.append(bool((found == F.linear(x.float(), weight.float(), bias.float()).bfloat16()).all()))
        except (RuntimeError, AttributeError, NotImplementedError, TypeError):  # a torch without these
            _found.append(False)
    return _found[0]
