"""Gradients of an input embedding that is the head as well, added in place to those of the head.

torch makes [vocab, hidden] zeros for the few rows that a batch reads, and adds all of it to the gradient of the head.
Here the rows wait until the gradient of the weight is whole, and are added there. Measured on one thread of a CPU, 672
tokens of 32000 words, width 384: 5 ms, and 28 as torch does it; 47 MiB of the peak of a step are not needed.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

#: (number of a backward pass, ids [...], gradients [..., hidden]) of lookups
Waiting = list[tuple[int, Tensor, Tensor]]


def lighten_embedding(model: Any) -> None:
    """Let the input embedding of a model compute as above where it is also its head. A copy of it does as well."""
    module, head = model.get_input_embeddings(), model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if type(module) is not nn.Embedding or weight is not module.weight:
        return
    if module.max_norm is None and not module.scale_grad_by_freq and not module.sparse:
        module.forward = MethodType(_looked_up, module)  # type: ignore[method-assign]  # bound: a copy's is the copy's


def _looked_up(module: nn.Embedding, ids: Tensor) -> Tensor:
    """[..., hidden]. Weights that DeepSpeed shares out have hooks of its own, which read what torch gives."""
    weight = module.weight
    here = weight.device.type == "cpu" and type(weight) is nn.Parameter and not hasattr(weight, "ds_id")
    if not (here and weight.requires_grad and torch.is_grad_enabled()):
        return F.embedding(ids, weight, module.padding_idx)
    out: Tensor = _Rows.apply(ids, weight, module.padding_idx, _waiting(weight))
    return out


def _waiting(weight: Any) -> Waiting:
    """The list of a weight; its gradient takes in whatever waits there, once all else of a backward pass is in it."""
    if not hasattr(weight, "waiting_rows"):
        waiting: Waiting = []

        def take_in(grad: Tensor) -> Tensor | None:
            mine = [(ids, rows) for of, ids, rows in waiting if of == _this_pass()]
            waiting.clear()  # and what a pass has left that was broken off
            if not mine:
                return None
            whole = grad if grad.is_contiguous() else grad.contiguous()  # the zero of `_Rows`, where nothing was added
            for ids, rows in mine:
                whole.index_add_(0, ids.reshape(-1), rows.reshape(-1, rows.shape[-1]))
            return whole

        weight.waiting_rows = waiting
        weight.register_hook(take_in)
    found: Waiting = weight.waiting_rows
    return found


def _this_pass() -> int:
    """The number of the backward pass that is under way."""
    return torch._C._current_graph_task_id()


class _Rows(torch.autograd.Function):
    """Rows of a weight. Its gradient is a zero that holds no memory: added to another one it makes that our own."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, padding: int | None, waiting: Waiting) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.about = (weight.shape, padding, waiting)
        return F.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (ids,) = ctx.saved_tensors
        shape, padding, waiting = ctx.about
        if padding is not None:
            grad = grad.masked_fill((ids == padding)[..., None], 0.0)
        waiting.append((_this_pass(), ids, grad))
        return None, grad.new_zeros(()).expand(shape), None, None
