"""Linear layers with their weights laid out once for all steps of a rollout, on CPUs that multiply bfloat16 numbers.

A product of few rows spends much of its time on bringing the weight into the order that the instructions want; for 16
to 64 rows it is 1.2 to 1.5 times as fast when that has been done before (measured on one thread with avx512_bf16,
weights of 256 x 256 to 384 x 32000). Layers that read the same input one after the other (those of queries, keys and
values; the two of a gated unit) are one product: 16 rows of width 384, 59 us in place of 78, and 88 of 106. The numbers
are the same up to the order of sums.
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
        last = _Last()
        for layer in layers:
            layer.forward = MethodType(_Once(last), layer)  # type: ignore[method-assign]
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


class _Together:
    """Layers that were given the same input one after the other, and the product of all of them with the last one."""

    def __init__(self) -> None:
        self.layers: list[nn.Linear] = []
        self.rounded: list[Tensor] = []  # their weights in bfloat16, until these are laid out
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None
        self.given: Tensor | None = None
        self.made: tuple[Tensor, ...] = ()

    def product(self, place: int, x: Tensor, rows: int) -> Tensor:
        """That of the layer at a place with x [..., in] of so many rows: [..., out]."""
        if self.given is not x:
            if self.weight is None:
                self._lay_out(rows)
            assert self.weight is not None
            made = _product(x.reshape(rows, -1).bfloat16(), self.weight, self.bias)
            self.made = made.split([layer.out_features for layer in self.layers], -1)
            self.given = x
        return self.made[place].view(*x.shape[:-1], -1)

    def _lay_out(self, rows: int) -> None:
        self.weight = _laid_out(self.rounded[0] if len(self.rounded) == 1 else torch.cat(self.rounded), rows)
        self.rounded = []
        if self.layers[0].bias is not None:
            self.bias = torch.cat([layer.bias.detach() for layer in self.layers]).bfloat16()


class _Last:
    """The layer that was called last for the first time: its input and who it is multiplied with."""

    def __init__(self) -> None:
        self.given: Tensor | None = None
        self.group = _Together()

    def join(self, layer: nn.Linear, x: Tensor) -> _Together:
        """The group of a layer that is called for the first time, at whose end it stands."""
        first = self.group.layers[0] if self.group.layers else layer
        if self.given is not x or self.group.weight is not None or (first.bias is None) != (layer.bias is None):
            self.given, self.group = x, _Together()
        self.group.layers.append(layer)
        return self.group


class _Once:
    """The forward of a layer, which finds its group in the first call with few rows, and is laid out in the second."""

    def __init__(self, last: _Last) -> None:
        self.last = last
        self.group: _Together | None = None
        self.place = 0

    def __call__(self, layer: nn.Linear, x: Tensor) -> Tensor:
        rows = x.numel() // max(x.shape[-1], 1)
        if not 0 < rows <= FEW:
            return F.linear(x, layer.weight, layer.bias)
        if self.group is None:
            self.group = self.last.join(layer, x)
            self.place = len(self.group.layers) - 1
            weight, bias = layer.weight.detach().bfloat16(), None if layer.bias is None else layer.bias.bfloat16()
            self.group.rounded.append(weight)
            return F.linear(x.bfloat16(), weight, bias)
        return self.group.product(self.place, x, rows)


def _laid_out(weight: Tensor, rows: int) -> Tensor:
    """A weight [out, in] in bfloat16 as torch's compiler keeps it for products of so many rows."""
    out: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
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
