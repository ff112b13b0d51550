"""The state of a training stage while it runs, and the forwards that its verbs share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import repeat
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from unified.ahead import Rollouts
from unified.batch import Batch
from unified.blame import is_out_of_memory
from unified.data import PromptGroup
from unified.distribution import Divergence
from unified.errors import UserError, unknown_name
from unified.guard import Guard
from unified.layout import Kind, Row, cut, lay_out, sharing_pays
from unified.left_out import Counts
from unified.memo import Memo
from unified.processes import Processes
from unified.roles import Asks, Roles
from unified.shells import fill_shell
from unified.signs import Watch
from unified.stage import StageContext, TrainSettings
from unified.stream import Stream
from unified.teacher import visits
from unified.wrapping import Wrapper
from unified.zero import wrapper_of

Sums = dict[str, tuple[float, float]]


@dataclass
class Table:
    """Collected groups of one stream on this process: their rows for forwards, and the batch that plugins see.

    top: the teacher's likeliest tokens where they are stored, (ids, log-probs), each [rows, time, k].
    """

    stream: Stream
    groups: list[PromptGroup]
    rows: list[Row]
    batch: Batch
    top: tuple[Tensor, Tensor] | None = None

    @cached_property
    def costs(self) -> list[int]:
        """Tokens of every row."""
        return [r.tokens for r in self.rows]

    @cached_property
    def shares(self) -> bool:
        """Whether its prompts, computed once for all of their answers, save enough."""
        return sharing_pays(self.rows)

    @property
    def places(self) -> list[tuple[str, int, int]]:
        """Where things of each row are kept: by its tokens, because answers may leave a group or change places."""
        tokens = [hash((tuple(r.prompt), tuple(r.answer), tuple(r.mask))) for r in self.rows]
        keys = [g.key for g in self.groups for _ in g.answers]
        return list(zip(repeat(self.stream.label), keys, tokens, strict=False))


@dataclass
class Collected:
    """A collected batch that is being learned from: its table, and the place in it of the next optimiser step.

    parts: optimiser steps of one pass. before: of the run, when it was collected. epoch, part: of the next one.
    metrics: what its steps gave, once the last is done and the states of the terms have followed. seconds: that were
    spent on it before the run was stopped and went on.
    """

    table: Table
    parts: int
    before: int
    epoch: int = 0
    part: int = 0
    metrics: dict[str, float] | None = None
    seconds: float = 0.0


@dataclass
class Best:
    """What was best by a held-out metric: its value, the step, and all that was measured; the weights are on disk."""

    value: float
    step: int
    measured: dict[str, float]


@dataclass
class Run:
    """Everything that a training stage holds.

    model: the prepared `Roles`; roles: the same, unwrapped. value_role: which role gives `value`.
    trained: role -> heads that are pushed there. step, iteration: optimiser steps and collected batches done.
    kept: log-probs of the reference on fixed rows, computed once; kept_top: the teacher's likeliest tokens, likewise.
    divergences: what the `logits` heads compute, by name. total_prompts: prompts to draw in all.
    judges: (reference, kind) of a model that a reward or source asks -> its role and tokenizer.
    memo: of the reference on disk; False where it cannot be kept, None before it was asked for.
    shells: whole models of the trained roles, where the processes share out the weights; of judges, that answer.
    filled_at: the step whose weights the policy's has, -1 before the first. wrapper: what the module is wrapped in.
    rollouts: what an engine elsewhere holds, and batches sampled ahead.
    guard: what was found that is not finite. watch: signs that training goes wrong.
    dropped: what rendering left out. held_out: streams of the evaluation. last, evaluated: the newest metrics.
    evaluated_at: the step of the latter. collected: what is being learned from; None between two collected batches.
    """

    stage: StageContext
    settings: TrainSettings
    accelerator: Accelerator
    processes: Processes
    model: Any
    roles: Roles
    tokenizer: Any
    streams: list[Stream]
    optimizer: Any
    scheduler: Any
    steps: int
    layout: Kind
    value_role: str = "critic"
    trained: dict[str, frozenset[str]] = field(default_factory=dict)
    step: int = 0
    iteration: int = 0
    sums: Sums = field(default_factory=dict)
    kept: dict[tuple[str, int, int], Tensor] = field(default_factory=dict)
    kept_top: dict[tuple[str, int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)
    divergences: dict[str, Divergence] = field(default_factory=dict)
    total_prompts: int = 0
    dropped: Counts = field(default_factory=lambda: Counts({}))
    held_out: list[Stream] = field(default_factory=list)
    last: dict[str, float] = field(default_factory=dict)
    evaluated: dict[str, float] = field(default_factory=dict)
    evaluated_at: int = -1
    collected: Collected | None = None
    best: Best | None = None
    judges: dict[tuple[str, str], tuple[str, Any]] = field(default_factory=dict)
    memo: Memo | Literal[False] | None = None
    shells: dict[str, Any] = field(default_factory=dict)
    filled_at: int = -1
    wrapper: Wrapper = field(init=False)
    guard: Guard = field(default_factory=Guard)
    rollouts: Rollouts = field(default_factory=Rollouts)
    watch: Watch = field(default_factory=Watch)

    def __post_init__(self) -> None:
        self.wrapper = wrapper_of(self.accelerator, self.processes, self.model, self.roles, self.optimizer)

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return self.accelerator.device

    @property
    def dtype(self) -> torch.dtype:
        """Of rewards: float64 where the models are, else float32."""
        return torch.float64 if next(self.roles.parameters()).dtype == torch.float64 else torch.float32

    @property
    def budget(self) -> int:
        """Token slots of one forward. A CPU is 4 % slower with 2048 (measured at 5M), and holds more with 8192."""
        return self.settings.tokens_per_micro_batch or (4096 if self.device.type == "cpu" else 8192)

    @property
    def pad(self) -> int:
        """An id for empty slots."""
        return int(self.tokenizer.pad_token_id or 0)

    def layout_of(self, table: Table) -> Kind:
        """How the rows of a table are laid out: `auto` shares prompts only where that pays."""
        if self.layout == "prefix-shared" and self.settings.layout == "auto" and not table.shares:
            return "packed"
        return self.layout

    @property
    def several_terms(self) -> bool:
        """Whether the stage has several terms, whose metrics then carry their algorithm's name."""
        return sum(len(s.terms) for s in self.streams) > 1

    def role_of(self, head: str) -> str:
        """The role that gives a current head."""
        return {"value": self.value_role, "score": "scorer"}.get(head, "policy")

    def asks(self, heads: frozenset[str]) -> dict[str, frozenset[str]]:
        """Current heads, by role."""
        out: dict[str, frozenset[str]] = {}
        for head in heads:
            role = self.role_of(head)
            out[role] = out.get(role, frozenset()) | {head}
        return out

    def trained_weights(self) -> dict[str, Tensor]:
        """What training changes, by name, as it is and not a copy; of weights that are tied, one."""
        self.wrapper.reshard()
        changing = {*self.trained, *({"reference"} if self.settings.ref_sync_steps else ())}
        frozen = tuple(f"models.{r}." for r in self.roles.models if r not in changing)
        tensors: dict[str, Tensor] = dict(self.roles.named_parameters())
        if self.settings.adapter is not None:  # beside it the weights stand still
            tensors = {name: value for name, value in tensors.items() if value.requires_grad}
        else:
            kept = set(self.roles.state_dict())
            tensors |= {name: value for name, value in self.roles.named_buffers() if name in kept}
        return {name: value for name, value in tensors.items() if not name.startswith(frozen)}

    def parameters_of(self, role: str) -> list[nn.Parameter]:
        """What is trained of a role, a value head on the policy's trunk included."""
        modules = [self.roles.models[role], *([self.roles.value_head] if role == "policy" else ())]
        return [p for m in modules if m is not None for p in m.parameters() if p.requires_grad]

    def answering(self, role: str = "policy") -> Any:
        """The model of a role as it can be asked for answers: whole, and outside of any wrapper."""
        return self.shells.get(role, self.roles.models[role])

    def make_whole(self) -> None:
        """Bring the policy that is asked for answers up to date. All processes must call it."""
        if "policy" in self.shells and self.filled_at != self.step:
            self._fill("policy", keep=True)
            self.filled_at = self.step

    def to_write(self, role: str) -> Any:
        """The model of a role, or "value_head", as the main process writes it. All processes must call it."""
        if role in self.shells:
            self._fill(role, keep=bool(self.accelerator.is_main_process))
        return self.shells.get(role) or (self.roles.value_head if role == "value_head" else self.roles.models[role])

    def _fill(self, role: str, *, keep: bool) -> None:
        model = self.roles.value_head if role == "value_head" else self.roles.models[role]
        assert model is not None
        self.wrapper.reshard()
        fill_shell(self.shells[role], model, self.wrapper.whole, keep=keep)

    @torch.no_grad()
    def renew_reference(self) -> None:
        """reference <- alpha policy + (1 - alpha) reference; what was kept of the old one is forgotten."""
        models = self.roles.models
        self.wrapper.reshard()
        self.wrapper.mix(models["reference"], models["policy"], self.settings.ref_mixup_alpha)
        self.kept.clear()

    def is_best(self, measured: dict[str, float], name: str) -> bool:
        """Whether this metric is the best so far, which is then noted. UserError for a metric that is not measured."""
        value = measured.get(name, measured.get(f"eval/{name}"))
        if value is None:
            raise UserError(unknown_name("evaluation metric", name, measured).text())
        better = math.isfinite(value) and (
            self.best is None
            or ((value > self.best.value) == self.settings.greater_is_better and value != self.best.value)
        )
        if better:
            self.best = Best(value, self.step, dict(measured))
        return better

    def add(self, name: str, value: float, count: float = 1.0) -> None:
        """Add to a mean that is reported at the end of the collected batch."""
        before = self.sums.get(name, (0.0, 0.0))
        self.sums[name] = (before[0] + value, before[1] + count)


def tabulate(run: Run, stream: Stream, groups: list[PromptGroup]) -> Table:
    """Groups as rows and as a batch on the device. Rewards that are missing everywhere stand as 0."""
    rows = [Row.of(g, a) for g in groups for a in g.answers]
    answers = [a for g in groups for a in g.answers]
    time = max((len(r.answer) for r in rows), default=1) or 1
    shape = (len(rows), time)
    mask, sampling = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=run.dtype)
    per_token = any(isinstance(a.reward, list) for a in answers)
    reward = torch.zeros(shape if per_token else (len(rows),), dtype=run.dtype)
    of_group = [number for number, g in enumerate(groups) for _ in g.answers]
    whole = [i if a.trajectory is None else (of_group[i], a.trajectory) for i, a in enumerate(answers)]
    trajectories: dict[object, int] = {}
    for i, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        n = len(row.answer)
        mask[i, :n] = torch.tensor(row.mask, dtype=torch.bool)
        if answer.sampling_logp is not None:
            sampling[i, :n] = torch.tensor(answer.sampling_logp, dtype=run.dtype)
        trajectories.setdefault(whole[i], len(trajectories))
        _write_reward(reward, i, row, answer.reward)
    fields = {
        "loss_mask": mask,
        "group": torch.tensor([g for g, group in enumerate(groups) for _ in group.answers], dtype=torch.long),
        "reward": reward,
        "probe": torch.tensor([a.probe for a in answers], dtype=torch.bool),
        "trajectory": torch.tensor(
            [trajectories[each] for each in whole],
            dtype=torch.long,
        ),
    }
    if answers and all(a.sampling_logp is not None for a in answers):
        fields["sampling_logp"] = torch.where(mask, sampling, torch.zeros_like(sampling))
    names = set.intersection(*(set(a.columns) for a in answers)) if answers else set()
    columns = {
        n: torch.tensor([float(a.columns[n]) for a in answers], dtype=run.dtype, device=run.device)
        for n in sorted(names)
    }
    batch = Batch({k: v.to(run.device) for k, v in fields.items()}, columns, run.processes)
    return Table(stream, groups, rows, batch)


def _write_reward(reward: Tensor, i: int, row: Row, value: float | list[float] | None) -> None:
    """Into [batch], or into [batch, time]: there a single number stands at the last token that carries a gradient.

    What was given for a token that carries none (a tool's text) goes to the last one before it that does, or to the
    first one of all, so that nothing of the answer's reward is lost.
    """
    carrying = [t for t, m in enumerate(row.mask) if m]
    if value is None:
        return
    if reward.dim() == 1:
        reward[i] = float(value)  # type: ignore[arg-type]
    elif carrying:
        each = value if isinstance(value, list) else [0.0] * carrying[-1] + [value]
        for t, number in enumerate(each):
            reward[i, max((c for c in carrying if c <= t), default=carrying[0])] += number


def forward(
    run: Run, table: Table | None, index: Sequence[int], asks: Asks, push: Tensor | None = None
) -> dict[str, dict[str, Tensor]]:
    """Heads of some rows of a table: role -> head -> [rows, time]. Without a table: of one row of no meaning.

    The latter keeps processes in step under sharded wrappers, where all must run the same number of forwards.
    push: [rows, time] of the policy's logp, where it is known; see `Roles.forward`.
    """
    rows = [table.rows[i] for i in index] if table and index else [Row([run.pad], [run.pad], [True])]
    temperature = table.stream.temperature if table else 1.0
    layout = lay_out(rows, run.layout_of(table) if table else run.layout, pad=run.pad).to(run.device)
    seen = visits(run, table, list(index), layout)
    try:
        out: dict[str, dict[str, Tensor]] = run.model(layout, asks, temperature, seen, push)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise out_of_memory(run) from error
        raise
    return out


def out_of_memory(run: Run) -> UserError:
    """The one message that says which budget to lower."""
    return UserError(
        f"stage '{run.stage.name}': out of memory in a pass over {run.budget} tokens",
        f"lower `tokens_per_micro_batch` (now {run.budget}); gradients do not depend on it",
        "or set `gradient_checkpointing: true`, or `bf16: true`",
    )


@torch.no_grad()
def heads_without_gradient(run: Run, table: Table, wanted: Sequence[int], asks: Asks) -> dict[str, dict[str, Tensor]]:
    """Heads of many rows, micro-batch by micro-batch: role -> head -> [all rows of the table, time], 0 elsewhere.

    Every process runs as many forwards as the one that needs most.
    """
    rows, budget = [table.rows[i] for i in wanted], run.budget
    parts = [m for p in cut(rows, [[i] for i in range(len(rows))], budget, run.layout_of(table)) for m in p]
    full: dict[str, dict[str, Tensor]] = {r: {} for r in asks}
    shape = table.batch.loss_mask.shape
    for k in range(run.processes.most(len(parts))):
        index = [wanted[i] for i in parts[k]] if k < len(parts) else []
        heads = forward(run, table, index, asks)
        for role, named in heads.items():
            for head, value in named.items():
                blank = torch.zeros((*shape, *value.shape[2:]), dtype=value.dtype, device=value.device)
                out = full[role].setdefault(head, blank)
                if index:
                    out[torch.tensor(index, device=value.device), : value.shape[1]] = value
    for role, names in asks.items():  # where no process has a row, the fields are there all the same
        for head in names:
            full[role].setdefault(head, torch.zeros(shape, dtype=run.dtype, device=run.device))
    return full
