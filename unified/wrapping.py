"""What stands between the engine and a wrapped module: gradients held back, added up, clipped; weights made whole.

One process, DDP and FSDP2 are told apart by their tensors alone: a DTensor is shared out, any other is whole in every
process. DeepSpeed keeps gradients and states where only its own functions find them (`unified.zero`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from unified.processes import Processes
from unified.roles import Roles


class Piece(NamedTuple):
    """What this process holds of a tensor: its numbers in a row, [length], and where in the whole they begin."""

    values: Tensor
    start: int


#: (name, start, stop) -> the numbers of a tensor in this range of its flat form
Read = Callable[[str, int, int], Tensor]
#: state of the optimiser that is no tensor of its parameter's shape: name of the parameter -> key -> value
Rest = dict[str, dict[str, Any]]


class Wrapper:
    """A module that accelerate has prepared, with its optimiser.

    model: as prepared; roles: the same, unwrapped. sharded: whether the processes share the weights out.
    """

    def __init__(
        self, accelerator: Accelerator, processes: Processes, model: Any, roles: Roles, optimizer: Any
    ) -> None:
        self.accelerator, self.processes = accelerator, processes
        self.model, self.roles, self.optimizer = model, roles, optimizer

    @property
    def sharded(self) -> bool:
        """Whether no process holds all weights."""
        return isinstance(self.model, FSDPModule)

    # --- gradients ---

    def hold(self, *, last: bool) -> AbstractContextManager[Any]:
        """Around the forward and backward of a micro-batch: under DDP only the last one of a step makes processes talk.

        Shared-out gradients are added up after each, because until then every process holds all of them.
        """
        return nullcontext() if last or self.sharded else self.accelerator.no_sync(self.model)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of a micro-batch's loss."""
        self.accelerator.backward(loss)

    def gradients(self, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        """What this process holds of the gradients, to be changed in place; those that are None are left out."""
        return [_local(p.grad) for p in parameters if p.grad is not None]

    def norm(self, gradients: list[Tensor]) -> Tensor:
        """Of all gradients together, over all processes where these share them out."""
        own = torch.nn.utils.get_total_norm(gradients)
        return self.processes.sum(own.square()).sqrt() if self.sharded else own

    def clip(self, gradients: list[Tensor], norm: Tensor, limit: float) -> None:
        """Scale the gradients so that their norm is at most `limit`."""
        if math.isfinite(limit):
            scale = torch.clamp(limit / (norm + 1e-6), max=1.0)
            torch._foreach_mul_(gradients, scale)

    def step(self) -> None:
        """Move the weights, and forget the gradients."""
        self.optimizer.step()
        self.forget()

    def forget(self) -> None:
        """Drop the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    # --- weights ---

    def reshard(self) -> None:
        """Let go of what the last forward has made whole: only then are all parameters in their parts."""
        for module in self.model.modules() if self.sharded else ():
            if isinstance(module, FSDPModule):
                module.reshard()

    def whole(self, tensor: Tensor) -> Tensor:
        """All of a parameter or buffer, without gradient; every process must ask where they share it out."""
        detached = tensor.detach()
        return detached.full_tensor() if isinstance(detached, DTensor) else detached

    def piece(self, tensor: Tensor) -> Piece | None:
        """This process's part of a tensor to be written; None where another process writes it."""
        detached = tensor.detach()
        if isinstance(detached, DTensor):
            return Piece(detached.to_local().reshape(-1), _start(detached))
        return Piece(detached.reshape(-1), 0) if self.processes.rank == 0 else None

    def fill(self, name: str, tensor: Tensor, read: Read) -> None:
        """Put what was stored of a tensor back into it."""
        detached = tensor.detach()
        start, own = (_start(detached), detached.to_local()) if isinstance(detached, DTensor) else (0, detached)
        own.copy_(read(name, start, start + own.numel()).reshape(own.shape))

    @torch.no_grad()
    def mix(self, old: nn.Module, new: nn.Module, share: float) -> None:
        """old <- share · new + (1 - share) · old, parameter by parameter."""
        for into, of in zip(old.parameters(), new.parameters(), strict=True):
            into.lerp_(of.to(into.dtype), share)

    # --- the optimiser's state ---

    def state(self) -> tuple[dict[str, Piece], list[dict[str, Any]], Rest]:
        """The optimiser's state: parts of tensors, "NAME/KEY"; its groups without parameters; and the rest."""
        pieces: dict[str, Piece] = {}
        rest: Rest = {}
        for name, parameter in self._parameters():
            for key, value in self._states_of(parameter).items():
                if isinstance(value, Tensor) and value.numel() == parameter.numel() and parameter.dim():
                    piece = self.piece(value)
                    pieces |= {f"{name}/{key}": piece} if piece is not None else {}
                else:
                    rest.setdefault(name, {})[key] = value
        return pieces, self._groups(), rest

    def load_state(self, groups: list[dict[str, Any]], rest: Rest, stored: set[str], read: Read) -> None:
        """Put the optimiser's state back. stored: names of the tensors that can be read."""
        numbers = {id(p): n for n, p in enumerate(p for g in self.optimizer.param_groups for p in g["params"])}
        states: dict[int, dict[str, Any]] = {}
        for name, parameter in self._parameters():
            keys = [key.removeprefix(f"{name}/") for key in stored if key.startswith(f"{name}/")]
            values = {k: v.clone() if isinstance(v, Tensor) else v for k, v in rest.get(name, {}).items()}  # of its own
            for key in keys:
                values[key] = torch.empty_like(parameter.detach())
                self.fill(f"{name}/{key}", values[key], read)
            if values:
                states[numbers[id(parameter)]] = values
        own = self.optimizer.state_dict()["param_groups"]
        merged = [{**now, **then, "params": now["params"]} for now, then in zip(own, groups, strict=True)]
        self.optimizer.load_state_dict({"state": dict(sorted(states.items())), "param_groups": merged})

    def _groups(self) -> list[dict[str, Any]]:
        return [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]

    def _states_of(self, parameter: nn.Parameter) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.optimizer.state.get(parameter, {})
        return found

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What is trained, by name."""
        return ((name, p) for name, p in self.roles.named_parameters() if p.requires_grad)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _start(tensor: DTensor) -> int:
    """Where in the flat form of the whole this process's rows begin: FSDP2 shares out the first dimension in order."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return offset[0] * math.prod(tensor.shape[1:]) if offset else 0
