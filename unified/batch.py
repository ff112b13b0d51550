"""The view that a plugin sees: completion-only tensors [batch, time], a row per answer, whatever the layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

#: fields with one number per answer; every other field is [batch, time] (reward may be either)
ROW_FIELDS = frozenset({"group", "trajectory", "probe"})
EITHER = frozenset({"reward", "advantage", "returns"})


class Reach(Protocol):
    """How a batch reaches rows that are not here."""

    def sum(self, x: Tensor) -> Tensor:
        """Elementwise sum of x over all processes."""

    def gather(self, x: Tensor) -> Tensor:
        """Concatenation over all processes of per-answer values [batch, ...], in rank order."""


class Here:
    """One process: what is here is all there is."""

    def sum(self, x: Tensor) -> Tensor:
        """x itself."""
        return x

    def gather(self, x: Tensor) -> Tensor:
        """x itself."""
        return x


class Nowhere:
    """Given to functions that run once per micro-batch, where asking other processes would hang."""

    def sum(self, x: Tensor) -> Tensor:
        """Refused."""
        raise RuntimeError("batch.total and batch.gather work in credit and statistics, not in a coefficient or loss")

    gather = sum


class Batch:
    """Answers of whole prompt groups, or of a micro-batch of them, as tensors.

    Always there: `loss_mask` [batch, time] bool (this token carries a gradient), `group` [batch] int (equal values mark
    answers of one prompt; numbered 0.. in order of appearance), `reward` [batch] or [batch, time] (0 where none was
    given), `probe` [batch] bool, `trajectory` [batch] int. `columns` holds [batch] numbers of the data.
    As declared in `reads`, each [batch, time]: `logp`, `entropy`, `value`, `score` (now), `old_logp`, `sampling_logp`,
    `ref_logp`, `teacher_logp`, `old_value`, `collision_logp` (log Σ p² now), `logits` (−loss of a distribution), and
    what credit gave: `advantage`, `returns`. Log-probs in nats, 0 outside `loss_mask`.
    Index t speaks of token t of the answer everywhere; `value[:, t]` is read before token t, `score[:, t]` after it.
    """

    loss_mask: Tensor
    group: Tensor
    reward: Tensor
    probe: Tensor
    trajectory: Tensor
    logp: Tensor
    entropy: Tensor
    value: Tensor
    score: Tensor
    old_logp: Tensor
    sampling_logp: Tensor
    ref_logp: Tensor
    teacher_logp: Tensor
    collision_logp: Tensor
    logits: Tensor
    old_value: Tensor
    advantage: Tensor
    returns: Tensor

    def __init__(
        self, fields: Mapping[str, Tensor], columns: Mapping[str, Tensor] | None = None, reach: Reach | None = None
    ) -> None:
        """Check shapes. Raises ValueError that shows both sides when two fields do not fit each other."""
        if "loss_mask" not in fields:
            raise ValueError("a batch needs loss_mask [batch, time]")
        mask = fields["loss_mask"]
        if mask.dim() != 2:
            raise ValueError(f"loss_mask is {list(mask.shape)}; it must be [batch, time]")
        self.columns = dict(columns or {})
        self._reach: Reach = reach or Here()
        self._fields = dict(fields)
        rows = mask.shape[0]
        device = mask.device
        self._fields["loss_mask"] = mask.bool()
        self._fields.setdefault("group", torch.arange(rows, device=device))
        self._fields.setdefault("trajectory", torch.arange(rows, device=device))
        self._fields.setdefault("probe", torch.zeros(rows, dtype=torch.bool, device=device))
        self._fields.setdefault("reward", torch.zeros(rows, device=device))
        for name, value in [*self._fields.items(), *self.columns.items()]:
            wanted = (rows,) if name in ROW_FIELDS or name in self.columns else tuple(mask.shape)
            fits = tuple(value.shape) == wanted or (name in EITHER and tuple(value.shape) == (rows,))
            if not fits:
                what = "[batch]" if len(wanted) == 1 else "[batch, time]"
                raise ValueError(
                    f"{name} is {list(value.shape)} but loss_mask is {list(mask.shape)}; it must be {what}"
                )
        self._fields["group"] = _numbered(self._fields["group"])
        self._fields["probe"] = self._fields["probe"].bool()

    def __getattr__(self, name: str) -> Tensor:
        fields = self.__dict__.get("_fields", {})
        if name in fields:
            value: Tensor = fields[name]
            return value
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(
            f"this batch has no '{name}': declare it in `reads` (or `credit_reads`); it has {sorted(fields)}"
        )

    def has(self, name: str) -> bool:
        """Whether a field is there."""
        return name in self._fields

    @property
    def reach(self) -> Reach:
        """How it reaches rows that are not here."""
        return self._reach

    @property
    def fields(self) -> dict[str, Tensor]:
        """All fields by name."""
        return dict(self._fields)

    @property
    def size(self) -> int:
        """Number of answers."""
        return int(self.loss_mask.shape[0])

    @property
    def groups(self) -> int:
        """Number of prompts."""
        return int(self.group.max()) + 1 if self.size else 0

    @property
    def counts(self) -> Tensor:
        """[batch] bool: answers that count: not probes, and with at least one token that carries a gradient."""
        return self.loss_mask.any(1) & ~self.probe

    @property
    def lengths(self) -> Tensor:
        """[batch] number of tokens that carry a gradient."""
        return self.loss_mask.sum(1)

    @property
    def total_reward(self) -> Tensor:
        """[batch] reward of the whole answer."""
        return self.reward if self.reward.dim() == 1 else (self.reward * self.loss_mask).sum(1)

    @property
    def last(self) -> Tensor:
        """[batch, time] bool: the last token of each answer that carries a gradient."""
        place = torch.arange(self.loss_mask.shape[1], device=self.loss_mask.device)
        where = torch.where(self.loss_mask, place, -1).amax(1, keepdim=True)
        return self.loss_mask & (place == where)

    def total(self, x: Tensor) -> Tensor:
        """Sum of x over its first dimension, over all answers in reach and all processes."""
        return self._reach.sum(x.sum(0))

    def gather(self, x: Tensor) -> Tensor:
        """Per-answer values [batch, ...] of all processes, in rank order."""
        return self._reach.gather(x)

    def expand(self, x: Tensor, name: str = "value") -> Tensor:
        """[batch] or [batch, time] as [batch, time], 0 outside the loss mask."""
        if x.dim() == 1 and x.shape[0] == self.size:
            x = x[:, None].expand(self.loss_mask.shape)
        if x.shape != self.loss_mask.shape:
            raise ValueError(
                f"{name} is {list(x.shape)} but loss_mask is {list(self.loss_mask.shape)}; "
                "it must be [batch] or [batch, time]"
            )
        return torch.where(self.loss_mask, x, torch.zeros((), dtype=x.dtype, device=x.device))

    def rows(self, index: Tensor, *, time: int | None = None, reach: Reach | None = None) -> Batch:
        """The answers at `index` [n] as a batch of their own, cut to `time` tokens (default: the longest answer)."""
        mask = self.loss_mask[index]
        if time is None:
            time = int(mask.any(0).nonzero().max()) + 1 if mask.any() else min(1, mask.shape[1])
        cut = {k: v[index][:, :time] if v.dim() == 2 else v[index] for k, v in self._fields.items()}
        return Batch(cut, {k: v[index] for k, v in self.columns.items()}, reach or self._reach)

    def plus(self, reach: Reach | None = None, /, **fields: Tensor) -> Batch:
        """The same batch with more fields (or other values of some)."""
        return Batch({**self._fields, **fields}, self.columns, reach or self._reach)


def _numbered(key: Tensor) -> Tensor:
    """[batch] int: 0 for the first key that appears, 1 for the next other one, and so on.

    Where every row is a group of its own, row and group numbers are then the same.
    """
    keys, place = torch.unique(key, return_inverse=True)
    rows = torch.arange(key.numel(), device=key.device)
    first = torch.full((keys.numel(),), key.numel(), device=key.device).scatter_reduce(0, place, rows, "amin")
    return first.argsort().argsort()[place]


@dataclass(frozen=True)
class Pairs:
    """All ordered comparisons within the prompts of a batch.

    better, worse: [pairs] row numbers; share: [pairs] 1 / number of pairs of the same prompt, so that every prompt
    weighs the same; group: [pairs] number of the prompt.
    """

    better: Tensor
    worse: Tensor
    share: Tensor
    group: Tensor

    def per_group(self, x: Tensor, groups: int) -> Tensor:
        """[pairs] -> [groups]: the mean over the pairs of each prompt (0 for a prompt without a pair)."""
        return torch.zeros(groups, dtype=x.dtype, device=x.device).index_add(0, self.group, x * self.share.to(x.dtype))

    def per_row(self, better: Tensor, worse: Tensor, rows: int) -> Tensor:
        """[pairs], [pairs] -> [rows]: what each pair gives to its better and worse answer, weighed by share."""
        share = self.share.to(better.dtype)
        out = torch.zeros(rows, dtype=better.dtype, device=better.device)
        return out.index_add(0, self.better, better * share).index_add(0, self.worse, worse * share)


def pairs(batch: Batch) -> Pairs:
    """Every pair of answers to one prompt of which one has the higher reward; equal rewards make no pair."""
    reward, counts, group = batch.total_reward, batch.counts, batch.group
    order = torch.argsort(group, stable=True)  # answers of a prompt side by side
    sizes = torch.bincount(group, minlength=batch.groups)
    most = int(sizes.max()) if batch.size else 0
    slot = torch.arange(batch.size, device=group.device) - (sizes.cumsum(0) - sizes)[group[order]]
    table = torch.full((batch.groups, most), -1, device=group.device)  # row numbers by prompt, -1 where there is none
    table[group[order], slot] = torch.where(counts[order], order, -1)
    worth = torch.where(table >= 0, reward[table], torch.nan)  # a comparison with nan is never true
    prompt, first, second = (worth[:, :, None] > worth[:, None, :]).nonzero(as_tuple=True)
    better, worse = table[prompt, first], table[prompt, second]
    group = batch.group[better]
    number = torch.zeros(batch.groups, dtype=torch.float64, device=reward.device)
    number = number.index_add(0, group, torch.ones_like(group, dtype=torch.float64))
    return Pairs(better, worse, 1.0 / number[group], group)


def from_numbers(data: Mapping[str, Any], dtype: torch.dtype = torch.float64) -> Batch:
    """A batch from nested lists (as in a JSON file): {"logp": [[...]], "loss_mask": [[...]], "reward": [...], ...}.

    Raises ValueError for rows of unequal length and for fields that do not fit each other.
    """
    fields: dict[str, Tensor] = {}
    columns: dict[str, Tensor] = {}
    for name, value in data.items():
        kind = (
            torch.bool if name in ("loss_mask", "probe") else torch.long if name in ("group", "trajectory") else dtype
        )
        if name == "columns":
            columns = {k: torch.as_tensor(v, dtype=dtype) for k, v in value.items()}
            continue
        try:
            fields[name] = torch.tensor(value, dtype=kind)
        except (ValueError, TypeError) as error:
            raise ValueError(f"'{name}' is no table of numbers with rows of equal length: {error}") from error
    if "loss_mask" not in fields:
        like = next((v for v in fields.values() if v.dim() == 2), None)
        if like is None:
            raise ValueError("give loss_mask, or one field that is [batch, time], such as logp")
        fields["loss_mask"] = torch.ones(like.shape, dtype=torch.bool)
    return Batch(fields, columns)
