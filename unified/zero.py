"""DeepSpeed ZeRO behind the same functions as the other wrappers: its engine owns gradients, states and the update.

Weights are in float32 here, so that what the optimiser moves and what the model computes with are the same numbers.
Stage 3 shares out every tensor in its flat form, padded to equal parts; stages 1 and 2 keep weights whole and share out
what the optimiser holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from unified.processes import Processes
from unified.roles import Roles
from unified.wrapping import Piece, Read, Rest, Wrapper


class ZeroWrapper(Wrapper):
    """A module in DeepSpeed's engine."""

    @property
    def sharded(self) -> bool:
        """Whether no process holds all gradients: from stage 2 on, and here also at stage 1."""
        return True

    @property
    def shares_weights(self) -> bool:
        """Whether no process holds all weights: at stage 3 alone."""
        return _stage(self.accelerator) == 3

    def hold(self, *, last: bool) -> AbstractContextManager[Any]:
        return nullcontext()

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self.model.set_gradient_accumulation_boundary(is_boundary=last)
        self.model.backward(loss)

    def gradients(self, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        found = (self._gradient(p) for p in parameters if p.requires_grad)
        return [g for g in found if g is not None]

    def _gradient(self, parameter: Any) -> Tensor | None:
        """This process's part of a gradient, as the engine holds it and not a copy."""
        if self.shares_weights:
            optimizer = parameter._z3_optimizer
            part, _ = optimizer._get_fp32_grad_state_partition(param=parameter, release_swap_buffers=False)
            return part
        mapping = parameter._hp_mapping
        return None if mapping is None else mapping.get_lp_grad_fragment(parameter._index_in_param_group)

    def step(self) -> None:
        self.model.step()
        self.optimizer.step()  # moves nothing; the schedule looks whether it was called
        self._empty()

    def forget(self) -> None:
        self.model.optimizer.zero_grad(set_to_none=True)
        self._empty()

    def _empty(self) -> None:
        """Leave nothing for the next step to add to.

        Stage 3 writes over its buffers in the first backward of a step, and adds in the others: to those of the step
        before, where a parameter is not reached by the first. Stages 1 and 2 keep sums in dictionaries that others hold
        as well.
        """
        optimizer = self.model.optimizer
        if self.shares_weights:
            optimizer.grad_partitions_flat_buffer.zero_()
            optimizer.averaged_gradients = {}
            return
        for kept in (optimizer.averaged_gradients, optimizer.all_grad_tensors):
            kept.update(dict.fromkeys(kept))

    def whole(self, tensor: Any) -> Tensor:
        if not hasattr(tensor, "ds_id"):
            return super().whole(tensor)
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().clone()

    def piece(self, tensor: Any) -> Piece | None:
        if not hasattr(tensor, "ds_id"):
            return super().piece(tensor)
        return self._cut(tensor, tensor.ds_tensor.detach())

    def _cut(self, parameter: Any, part: Tensor) -> Piece | None:
        """A part in its place, without what it is padded with."""
        start = part.numel() * self.processes.rank
        length = min(part.numel(), parameter.ds_numel - start)
        return Piece(part.reshape(-1)[:length], start) if length > 0 else None

    def fill(self, name: str, tensor: Any, read: Read) -> None:
        if hasattr(tensor, "ds_id"):
            self._fill_part(name, tensor, tensor.ds_tensor.detach(), read)
            if tensor.requires_grad:
                self._fill_part(name, tensor, _master(tensor), read)
            return
        super().fill(name, tensor, read)
        if getattr(tensor, "_hp_mapping", None) is not None:
            tensor._hp_mapping.update_hp()

    def _fill_part(self, name: str, parameter: Any, part: Tensor, read: Read) -> None:
        place = self._cut(parameter, part)
        if place is not None:
            place.values.copy_(read(name, place.start, place.start + place.values.numel()))

    @torch.no_grad()
    def mix(self, old: nn.Module, new: nn.Module, share: float) -> None:
        for into, of in zip(old.parameters(), new.parameters(), strict=True):
            own, other = (getattr(p, "ds_tensor", p.detach()) for p in (into, of))
            own.lerp_(other.to(own.dtype), share)

    def state(self) -> tuple[dict[str, Piece], list[dict[str, Any]], Rest]:
        pieces: dict[str, Piece] = {}
        rest: Rest = {}
        for name, parameter in self._parameters():
            for key, value, piece in self._parts(parameter):
                if piece is not None:
                    pieces[f"{name}/{key}"] = piece
                elif value is not None:
                    rest.setdefault(name, {})[key] = value
        everyone = self.processes.lists([rest])  # of stages 1 and 2 not every process has every parameter
        return pieces, self._groups(), {name: values for of in everyone for name, values in of.items()}

    def _parts(self, parameter: Any) -> list[tuple[str, Any, Piece | None]]:
        """(key, value that is no tensor of its shape, this process's part of one that is)."""
        flat, offset, length, start = self._place(parameter)
        if flat is None:
            return []
        out: list[tuple[str, Any, Piece | None]] = []
        for key, value in self._inner.state.get(flat, {}).items():
            if isinstance(value, Tensor) and value.numel() == flat.numel() and value.dim():
                part = value[offset : offset + length]
                out.append((key, None, Piece(part, start)) if length > 0 else (key, None, None))
            else:
                out.append((key, value, None))
        return out

    def _place(self, parameter: Any) -> tuple[Tensor | None, int, int, int]:
        """(the flat tensor that the optimiser moves, where in it the part begins, its length, where in the whole)."""
        if self.shares_weights:
            optimizer = parameter._z3_optimizer
            group, offset, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = length * self.processes.rank
            return optimizer.fp32_partitioned_groups_flat[group], offset, min(length, parameter.ds_numel - start), start
        mapping = parameter._hp_mapping
        if mapping is None:
            return None, 0, 0, 0
        flat = self.model.optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
        here = mapping.get_hp_fragment_address()
        return flat, here.start, here.numel, mapping.lp_fragment_address.start

    def load_state(self, groups: list[dict[str, Any]], rest: Rest, stored: set[str], read: Read) -> None:
        for name, parameter in self._parameters():
            flat, offset, length, start = self._place(parameter)
            if flat is None:
                continue
            state = self._inner.state[flat]
            for key in [key.removeprefix(f"{name}/") for key in stored if key.startswith(f"{name}/")]:
                whole = state.setdefault(key, torch.zeros_like(flat))
                if length > 0:
                    whole[offset : offset + length] = read(f"{name}/{key}", start, start + length)
            for key, value in rest.get(name, {}).items():
                state[key] = value.clone() if isinstance(value, Tensor) else value
        for now, then in zip(self._inner.param_groups, groups, strict=True):
            now.update(then)

    @property
    def _inner(self) -> Any:
        """The optimiser within DeepSpeed's own."""
        return self.model.optimizer.optimizer

    def _groups(self) -> list[dict[str, Any]]:
        return [{k: v for k, v in g.items() if k != "params"} for g in self._inner.param_groups]


def wrapper_of(accelerator: Accelerator, processes: Processes, model: Any, roles: Roles, optimizer: Any) -> Wrapper:
    """What a module that accelerate has prepared is wrapped in."""
    zero = hasattr(model, "set_gradient_accumulation_boundary")
    return (ZeroWrapper if zero else Wrapper)(accelerator, processes, model, roles, optimizer)


def _stage(accelerator: Accelerator) -> int:
    plugin = accelerator.state.deepspeed_plugin
    return int(plugin.zero_stage)


def _master(parameter: Any) -> Tensor:
    """What the optimiser moves of a parameter."""
    part, _ = parameter._z3_optimizer._get_fp32_opt_state_partition(parameter, release_swap_buffers=False)
    return part.detach()
