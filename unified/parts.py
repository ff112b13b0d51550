"""What a plugin can offer: one frozen declaration per kind of part. Nothing here imports torch.

Every function of a part is called with the arguments that it names, out of those its docstring below lists; a part that
names an unknown one is refused when its plugin is loaded.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from unified.settings import Settings

Scope = Literal["answer", "group", "step"]
Reads = frozenset[str] | Callable[[Any], frozenset[str]]

#: the ways to weigh a token, DESIGN 5.1; see unified.aggregation
AGGREGATIONS = ("token", "sequence", "sequence-sum", "group", "group-token", "constant")
#: per-token scalars that a model computes and the engine differentiates
HEADS = ("logp", "entropy", "value", "score", "logits")
#: of the policy's distribution now, read without gradient: collision_logp is log Σ p², in nats
STATISTICS = ("collision_logp",)
#: fields computed before learning -> the head they are
SCORED = {"old_logp": "logp", "ref_logp": "logp", "teacher_logp": "logp", "old_value": "value"}
SCORED["old_collision_logp"] = "collision_logp"
#: what a coefficient may look at that the forward of its own micro-batch gives
COMPUTED = frozenset((*HEADS, *STATISTICS, "old_logp", "old_value"))


class NoSettings(Settings):
    """Nothing to set."""


@dataclass(frozen=True)
class Part:
    """What all parts have: a name that recipes use, and typed settings.

    check(settings, home, columns) -> list of Problems of the settings that can be seen before anything runs, and that
        settings alone do not show: a file that is not there, a column that the data lack. home: the recipe's folder.
        columns: those in which some row that the part is used on has something; None where rows are not known yet.
    files(settings, home) -> {name: path} of files that decide what the part does and that no setting names as a path (a
        module): their content is an input of the stage. The name is what the manifest tells; no path of this machine.
    """

    name: str
    settings: type[Settings] = NoSettings
    check: Callable[..., Any] | None = field(default=None, kw_only=True)
    files: Callable[..., Mapping[str, Path]] | None = field(default=None, kw_only=True)

    kind: ClassVar[str] = "part"
    #: function-valued field -> argument names it may ask for (None: any, they are its settings)
    offers: ClassVar[Mapping[str, tuple[str, ...] | None]] = {}
    #: the same of the functions that every kind of part may give
    always: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "check": ("settings", "home", "columns"),
        "files": ("settings", "home"),
    }

    def doc(self) -> str:
        """What the part is, its formula and source: the docstring of the module that declares it."""
        module = sys.modules.get(self.settings.__module__)
        if self.settings is NoSettings or module is None:
            for one in fields(self):
                function = getattr(self, one.name)
                if inspect.isfunction(function):
                    return inspect.getdoc(sys.modules[function.__module__]) or inspect.getdoc(function) or ""
            return ""
        return inspect.getdoc(module) or inspect.getdoc(self.settings) or ""


_COEFFICIENT_ARGUMENTS = ("batch", "settings", "statistics", "state")


@dataclass(frozen=True)
class Algorithm(Part):
    """A gradient coefficient, with what it needs to be computed (DESIGN section 4).

    Give `coefficient`, or `loss`, or both; the rest only when needed.

    coefficient(batch, settings, statistics, state) -> {head: [batch, time] or [batch]}; a bare tensor means logp.
        What stands before the gradient of the head; positive raises it. Without the normaliser w.
    loss(batch, settings, statistics, state) -> [batch, time], [batch] or [groups], or {head: one of these}.
        The published objective, to be minimised, unreduced. Without a `coefficient` the engine differentiates it.
    credit(batch, settings, state) -> {"advantage": ..., "returns": ...}, each [batch] or [batch, time].
        Once per collected batch, without gradient; `batch.total` and `batch.gather` reach all processes.
    statistics(batch, settings, state) -> dict of tensors. Scope "step" only, from the heads of the whole step.
    metrics(batch, settings, statistics, state) -> {name: (sum, count)}, summed over micro-batches and processes.
    update(state, totals, settings) -> state. Once per collected batch; `totals` maps metric names to means.
    initial_state(settings) -> dict of numbers or tensors; saved with every checkpoint.
    distribution(logits, teacher, settings) -> loss [n], or (loss [n], −∂loss/∂logits [n, vocab]). For the head
        `logits`, which is −loss of each token: one chunk of the policy's logits [n, vocab], and of the teacher's
        log-probs [n, vocab], or (ids [n, k], logp [n, k]) where `top_k` is given. Without the coefficient the engine
        differentiates the loss. An algorithm that pushes `logits` with GC 1 needs no `coefficient` and no `loss`.
    top_k(settings) -> how many of the teacher's likeliest tokens are stored before learning; 0: it runs beside.
    reads, credit_reads: names of fields and current heads that coefficient or loss, and credit, look at;
        a frozenset, or a function of the settings ("ref_logp" only where the KL weight is not 0). Loss and metrics are
        given the heads that are pushed in any case; a coefficient that reads none of them is computed before the
        forward, which then is cheaper.
    through_ratio: whether the coefficient looks at logp and old_logp by their difference alone; or a function of the
        settings. In the only step on answers that difference is 0, and the coefficient is known before the forward.
    aggregation: per head that is pushed, how tokens are weighed; a bare name means {"logp": name}.
    scope: how far the coefficient of an answer depends on other answers; a name, or a function of the settings.
    source: the data source a stage uses when its recipe names none ("rows": answers as they stand in the data).
    reward: the reward a stage uses when its recipe names none; "required" when the recipe must say.
    answers: fewest answers a prompt must have to count.
    corrected(settings) -> the settings for answers that a foreign engine samples, where a recipe leaves it open how the
        gap between that engine and the trainer is corrected; the same settings where it does not.
    """

    coefficient: Callable[..., Any] | None = None
    loss: Callable[..., Any] | None = None
    credit: Callable[..., Any] | None = None
    statistics: Callable[..., Any] | None = None
    metrics: Callable[..., Any] | None = None
    update: Callable[..., Any] | None = None
    initial_state: Callable[..., Any] | None = None
    distribution: Callable[..., Any] | None = None
    top_k: Callable[..., int] | None = None
    corrected: Callable[..., Settings] | None = None
    reads: Reads = frozenset()
    credit_reads: Reads = frozenset()
    through_ratio: bool | Callable[[Any], bool] = False
    aggregation: str | Mapping[str, str] | Callable[[Any], Mapping[str, str]] = "sequence"
    scope: Scope | Callable[[Any], Scope] = "answer"
    source: str = "rows"
    reward: str = "given"
    answers: int = 1

    kind: ClassVar[str] = "algorithm"
    offers: ClassVar[Mapping[str, tuple[str, ...] | None]] = {
        "coefficient": _COEFFICIENT_ARGUMENTS,
        "loss": _COEFFICIENT_ARGUMENTS,
        "credit": ("batch", "settings", "state"),
        "statistics": ("batch", "settings", "state"),
        "metrics": _COEFFICIENT_ARGUMENTS,
        "update": ("state", "totals", "settings"),
        "initial_state": ("settings",),
        "distribution": ("logits", "teacher", "settings"),
        "top_k": ("settings",),
        "corrected": ("settings",),
    }

    def names_read(self, settings: Settings) -> frozenset[str]:
        """Fields and current heads that the coefficient looks at under these settings."""
        return self.reads(settings) if callable(self.reads) else frozenset(self.reads)

    def names_credited(self, settings: Settings) -> frozenset[str]:
        """Fields that the credit looks at under these settings."""
        return self.credit_reads(settings) if callable(self.credit_reads) else frozenset(self.credit_reads)

    def looks_through_ratio(self, settings: Settings) -> bool:
        """Whether the coefficient looks at logp and old_logp by their difference alone under these settings."""
        return self.through_ratio(settings) if callable(self.through_ratio) else self.through_ratio

    def is_known_before(self, settings: Settings, *, once: bool) -> bool:
        """Whether the coefficient looks at nothing that a forward computes.

        once: whether old_logp is logp itself, in the only step on a batch.
        """
        now = self.names_read(settings) & COMPUTED
        return not now or (once and now <= {"logp", "old_logp"} and self.looks_through_ratio(settings))

    def scope_of(self, settings: Settings) -> Scope:
        """How far the coefficient of an answer looks under these settings."""
        return self.scope(settings) if callable(self.scope) else self.scope

    def aggregations(self, settings: Settings) -> dict[str, str]:
        """Per pushed head, the way its tokens are weighed."""
        if isinstance(self.aggregation, str):
            return {"logp": self.aggregation}
        return dict(self.aggregation(settings) if callable(self.aggregation) else self.aggregation)


@dataclass(frozen=True)
class Rule(Part):
    """A small pure function inside algorithms, replaceable by name in a recipe.

    `of` is the kind of rule: advantage, ratio, kl, margin, link, filter, selection. Which tensors a rule of that kind
    may name is told by the algorithms that use it (docs/rules.md); its own settings are passed as keywords.

    value: the thing itself (advantage, objective, estimate, margin, loss).
    coefficient: its derivative in the direction of ascent, where the kind has one.
    statistics: what the rule must know of a whole optimiser step, as a dict of tensors; the other two may then name
        `statistics`. It may name what they may, and `counts` [batch] bool, `total` and `gather`.
    reads: batch fields the rule looks at, so that only these are computed.
    scope: "step" where `statistics` is to be called; a name, or a function of the settings.
    """

    of: str = ""
    value: Callable[..., Any] | None = None
    coefficient: Callable[..., Any] | None = None
    statistics: Callable[..., Any] | None = None
    reads: Reads = frozenset()
    scope: Scope | Callable[[Any], Scope] = "answer"

    kind: ClassVar[str] = "rule"
    offers: ClassVar[Mapping[str, tuple[str, ...] | None]] = {"value": None, "coefficient": None, "statistics": None}

    def names_read(self, settings: Settings) -> frozenset[str]:
        """Fields that the rule looks at under these settings."""
        return self.reads(settings) if callable(self.reads) else frozenset(self.reads)

    def scope_of(self, settings: Settings) -> Scope:
        """How far the rule looks under these settings."""
        return self.scope(settings) if callable(self.scope) else self.scope

    def doc(self) -> str:
        """The docstring of the rule's function."""
        function = self.value or self.coefficient
        return inspect.getdoc(function) or ""


@dataclass(frozen=True)
class Dataset(Part):
    """Where rows come from.

    open(settings, split, seed, folder) -> Sequence[Example]; split is "train" or "held_out", folder the recipe's own.
        It may also have `counts` (rows left out, by name), `problems` (first places, "file:line: why"), `format`, and
        `streaming`, true where a row is read when it is asked for: then it is also rendered only when it is drawn.
    tokenizer(settings) -> a fast tokenizer made on the spot, for datasets that bring their own alphabet.
    remote: whether open fetches its rows; then they are opened when a stage runs, and not by the check.
    """

    open: Callable[..., Any] | None = None
    tokenizer: Callable[..., Any] | None = None
    remote: bool = False

    kind: ClassVar[str] = "dataset"
    offers: ClassVar[Mapping[str, tuple[str, ...] | None]] = {
        "open": ("settings", "split", "seed", "folder"),
        "tokenizer": ("settings",),
    }


@dataclass(frozen=True)
class DataFormat(Part):
    """How one row of a file becomes an Example.

    recognises(columns, row) -> bool, from the set of a row's column names and, where these do not decide, from what
        stands in the row; asked for the first rows of a file.
    convert(row, settings) -> Example, or a list of them (also empty) where a row holds several prompts; raise
        ValueError with what is wrong for a row that does not fit.
    """

    recognises: Callable[..., bool] | None = None
    convert: Callable[..., Any] | None = None

    kind: ClassVar[str] = "format"
    offers: ClassVar[Mapping[str, tuple[str, ...] | None]] = {
        "recognises": ("columns", "row"),
        "convert": ("row", "settings"),
    }


@dataclass(frozen=True)
class DataSource(Part):
    """How prompts get their answers: as they stand in the rows, or sampled from the policy.

    collect(prompts, settings, sample, seed, models, folder) -> list[PromptGroup]; `prompts` are PromptGroups drawn from
        the dataset in seeded order (this process's share where the source is online, else those of all processes);
        `sample(prompts, n, sampling)` asks the rollout engine with the policy as it is now, `sample.decode(ids)` is
        text and `sample.tokenizer` its tokenizer; `models` and `folder` are those of a reward.
    models(settings) -> as for a reward, for sources that judge while they search.
    online: whether collect asks the rollout engine.
    """

    collect: Callable[..., Any] | None = None
    models: Callable[..., Mapping[str, str]] | None = None
    online: bool = False

    kind: ClassVar[str] = "source"
    offers: ClassVar[Mapping[str, tuple[str, ...] | None]] = {
        "collect": ("prompts", "settings", "sample", "seed", "models", "folder"),
        "models": ("settings",),
    }


@dataclass(frozen=True)
class Reward(Part):
    """How good an answer is.

    judge(groups, settings, models, folder) -> one list per group, one entry per answer: a float, a list of floats (one
        per token of the answer), or None where the judgement failed (missing, never zero). Columns that it writes into
        an answer (`answer.columns`) are reported as reward/NAME; `group.reasons` says in words why one is missing.
        `models` maps the references that `models` gives to unified.Judge: `.score(groups)` and `.score_tokens(groups)`
        of a scalar model, `.answer(prompts, sampling, n)` of a policy. `folder` is that of the recipe.
    models(settings) -> {reference: "scalar" or "policy"}, the models to load beside the policy (a path, `stage:NAME`);
        "self" is the policy itself as it is now.
    """

    judge: Callable[..., Any] | None = None
    models: Callable[..., Mapping[str, str]] | None = None

    kind: ClassVar[str] = "reward"
    offers: ClassVar[Mapping[str, tuple[str, ...] | None]] = {
        "judge": ("groups", "settings", "models", "folder"),
        "models": ("settings",),
    }


@dataclass(frozen=True)
class RolloutEngine(Part):
    """What samples answers.

    generate(model, tokenizer, prompts, n, sampling, settings, seeds, receipt, told) -> per prompt a list of n Answers
        with token ids, sampling_logp (of the distribution sampled from) and finish ("stop" or "length").
        `prompts` are lists of token ids; `sampling` is a unified.data.Sampling. The k-th answer to prompt i must be
        drawn from `seeds[i][k]`, an int of 63 bits, alone: the other answers of the call, which depend on batch and
        process, have no part in it. Torch is not seeded for the call; it is called under the stage's autocast.
        `told`, where it is not None, is to be called with (i, k, token) for each token when it is drawn.
    push(weights, settings) -> receipt, of an engine that samples elsewhere, with weights of its own: it makes them
        those of `weights`, a unified.NewWeights, and makes sure that they are. Called in the main process alone, before
        sampling, where the policy has changed; what it gives can be pickled and reaches `generate` in every process. A
        receipt may be a mapping with `metrics`, {name: number}. `generate` may then be called in another thread while
        the model learns: it looks at the configuration of `model`, and not at its weights. It raises unified.LostEngine
        where the engine is away, and the run is to stop with a checkpoint.
    form(settings) -> what `push` is given: "model", or "adapter" (the LoRA alone). Without it: "model".
    foreign: whether the code that samples is not the trainer's own, so that its log-probs may differ from the trainer's
        by more than rounding. Algorithms correct for that by default where they can (`corrected`).
    """

    generate: Callable[..., Any] | None = None
    push: Callable[..., Any] | None = None
    form: Callable[..., Literal["model", "adapter"]] | None = None
    foreign: bool = False

    kind: ClassVar[str] = "engine"
    offers: ClassVar[Mapping[str, tuple[str, ...] | None]] = {
        "generate": ("model", "tokenizer", "prompts", "n", "sampling", "settings", "seeds", "receipt", "told"),
        "push": ("weights", "settings"),
        "form": ("settings",),
    }


@dataclass(frozen=True)
class StageKind(Part):
    """What a stage of a recipe does.

    run(stage, settings) -> StageResult; `stage` is a unified.stage.StageContext.
    uses(settings) -> list of (path of keys, reference, kind needed): every model reference in the settings ("base",
        "stage:NAME", a path) with the kind of model it must be, "policy", "scalar" or "any". A fourth item says what it
        must have in common with the stage's own `model` (else the first of the list): some of "vocabulary", "template",
        "architecture"; without, the first two for a scalar model, nothing for others. Datasets of other stages are
        found without its help.
    makes(settings) -> "policy", "scalar", "dataset" or None: the kind of model it leaves behind, or a dataset, which
        later stages name as `data: stage:NAME`.
    check(settings, home, seed, tokenizer) -> list of Problems found without loading a model: combinations that make no
        sense, data that is missing, empty or malformed; `tokenizer` is None where it is not known yet.
    work(settings, measure) -> unified.Work: steps, and tokens of every model, for `unified plan`; None where they are
        not known. `measure(data, split)` gives a dataset's unified.Rows, or None where it is not there yet.
    measures(settings) -> {number in the stage's summary: "", or what would have it measured}, for metrics that a recipe
        names. A name that ends in `*` stands for all that begin so. Without it nobody knows.
    """

    run: Callable[..., Any] | None = None
    uses: Callable[..., Any] | None = None
    makes: Callable[..., Any] | None = None
    check: Callable[..., Any] | None = field(default=None, kw_only=True)
    work: Callable[..., Any] | None = None
    measures: Callable[..., Mapping[str, str]] | None = None

    kind: ClassVar[str] = "stage"
    offers: ClassVar[Mapping[str, tuple[str, ...] | None]] = {
        "run": ("stage", "settings"),
        "uses": ("settings",),
        "makes": ("settings",),
        "check": ("settings", "home", "seed", "tokenizer"),
        "work": ("settings", "measure"),
        "measures": ("settings",),
    }


KINDS: dict[str, type[Part]] = {
    cls.kind: cls for cls in (Algorithm, Rule, Dataset, DataFormat, DataSource, Reward, RolloutEngine, StageKind)
}
