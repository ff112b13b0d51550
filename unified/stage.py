"""What a stage of a recipe is given, what it gives back, and the settings of a training stage. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unified.fit import Policy
from unified.settings import Chosen, Field, Settings, choice

if TYPE_CHECKING:
    from unified.models import Artifact


@dataclass
class StageContext:
    """The surroundings of one stage while it runs.

    name: of the stage; folder: where its results go (exists, is its own); home: the folder of the recipe, against which
    relative paths are read. seed: of the stage. artifact(reference): the model behind "base", "stage:NAME", a path or a
    hub id. notify: calls an event hook by name. progress: told (step, steps, metrics) while the stage runs.
    say: one line for the person who watches.
    """

    name: str
    folder: Path
    home: Path
    seed: int
    artifact: Callable[[str], Artifact]
    notify: Callable[..., None]
    progress: Callable[[int, int, Mapping[str, float]], None]
    say: Callable[[str], None] = lambda _: None


@dataclass
class StageResult:
    """What a stage made: `artifact` its model (None where it makes none), `summary` the numbers for the table.

    dataset: of a stage that makes one, the settings of `files` that read it: `path` (relative to the stage's folder),
    and what else a recipe need not say then (`format`, `held_out_path`).
    """

    artifact: Artifact | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    dataset: dict[str, Any] | None = None


class ModelSettings(Settings):
    """The model that a recipe starts from: one that exists, or a fresh one built from a configuration."""

    path: str | None = Field(None, description="a folder, relative to the recipe, or a hub id")
    new: dict[str, Any] | None = Field(None, description="a transformers configuration with model_type; random weights")
    tokenizer: Chosen | None = choice("dataset", None, description="for `new`: the dataset that makes the tokenizer")


class TermSettings(Settings):
    """One summand of a training stage: weight x (data source, reward, coefficient)."""

    algorithm: Chosen = choice("algorithm", description="the gradient coefficient of this term")
    weight: float = Field(1.0, description="factor on this term's coefficient")
    on: str = Field("all", description="rows it acts on: all, best, worst, or a column of the data that is not 0")
    aggregation: str | None = Field(None, description="normaliser of logp in place of the algorithm's own")
    constant_length: int | None = Field(None, ge=1, description="L of aggregation `constant`, in tokens")
    data: Chosen | None = choice("dataset", None, description="rows of its own; without, the stage's")
    source: Chosen | None = choice("source", None, description="how its own rows get answers")
    reward: Chosen | None = choice("reward", None, description="how its own answers are judged")
    per_step: int | None = Field(None, ge=1, description="prompts of its own rows per optimiser step")

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        """A `source` without a name is the algorithm's own."""
        return name_source(data)


class CriticSettings(Settings):
    """The value model of algorithms that push `value`."""

    trunk: Literal["own", "shared"] = Field("own", description="own: a model of its own; shared: a head on the policy")
    model: str | None = Field(
        None, description="start: stage:NAME or a path of a scalar model; none: fresh from the policy"
    )


class EvaluationSettings(Settings):
    """What is measured on held-out prompts, at the end of a stage and every `eval_steps`."""

    data: Chosen | None = choice("dataset", None, description="its held-out split is used; without, the stage's data")
    reward: Chosen | None = choice("reward", None, description="judges sampled answers; none: only losses are measured")
    num_prompts: int = Field(64, ge=1, description="held-out prompts")
    samples: int = Field(1, ge=1, description="answers sampled per prompt")
    temperature: float = Field(1.0, ge=0, description="of sampling; 0 is greedy")
    max_tokens: int = Field(64, ge=1, description="longest sampled answer, in tokens")


class TrainSettings(Settings):
    """A training stage: terms, data, and the optimiser. Names are those of transformers where it has one."""

    algorithm: Chosen | None = choice(
        "algorithm", None, description="the one algorithm of this stage, in place of `terms`"
    )
    terms: list[TermSettings] = Field([], description="summands of the gradient; the first drives the steps")
    model: str = Field("base", description="what is trained: base (the recipe's model), stage:NAME, a path or hub id")
    reference: str = Field("input", description="the frozen reference: input (what the stage was handed), or a model")
    teacher: str | None = Field(None, description="the frozen teacher of distillation: stage:NAME, a path or hub id")
    critic: CriticSettings = Field(CriticSettings(), description="the value model, for algorithms with one")
    data: Chosen | None = choice("dataset", None, description="where rows come from: a dataset, or the path of a file")
    source: Chosen | None = choice("source", None, description="how prompts get answers; without, the algorithm's own")
    reward: Chosen | None = choice("reward", None, description="how answers are judged; without, the algorithm's own")
    engine: Chosen | None = choice(
        "engine", None, description="what samples answers; without, `transformers` in process"
    )
    filters: list[Chosen] = choice("filter", [], description="rules that drop groups before they are learned from")

    max_missing: float = Field(
        0.5, ge=0, le=1, description="the stage stops where the reward fails on more than this share of answers at once"
    )
    refill: int = Field(0, ge=0, description="collections more, at most, to replace sampled groups that were dropped")
    ref_sync_steps: int | None = Field(None, ge=1, description="optimiser steps between renewals of the reference")
    ref_mixup_alpha: float = Field(1.0, gt=0, le=1, description="share of the policy in a renewed reference")

    shuffle: bool = Field(
        True, description="rows in an order drawn anew for every pass; false: as the data have them, every pass alike"
    )
    max_steps: int = Field(-1, description="optimiser steps; -1: as many as num_train_epochs gives")
    num_train_epochs: float = Field(1.0, gt=0, description="passes over the data, where max_steps is -1")
    batch_size: int = Field(16, ge=1, description="prompts per optimiser step, over all processes")
    collect_size: int | None = Field(None, ge=1, description="prompts collected at once; without, batch_size")
    inner_epochs: int = Field(1, ge=1, description="passes over what was collected at once")
    learning_rate: float | dict[str, float] = Field(1e-5, description="of all roles, or {policy: ..., critic: ...}")
    lr_scheduler_type: str = Field("constant", description="a schedule of transformers: constant, linear, cosine, ...")
    lr_scheduler_kwargs: dict[str, Any] = Field(
        {}, description="what else the schedule takes, by transformers' names: {min_lr_rate: 0.1}, {lr_end: 1e-7}"
    )
    warmup_steps: int = Field(0, ge=0, description="optimiser steps of linear warm-up")
    warmup_ratio: float = Field(
        0.0, ge=0, le=1, description="the same as a share of all steps, where warmup_steps is 0"
    )
    optim: str = Field("adamw_torch", description="adamw_torch, adam, sgd, or a name in torch.optim")
    weight_decay: float = Field(0.0, ge=0, description="not applied to norms and biases")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="first moment decay")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="second moment decay")
    adam_epsilon: float = Field(1e-8, gt=0, description="added to the root of the second moment")
    max_grad_norm: float = Field(1.0, ge=0, description="gradient norm is clipped here; 0: not at all")
    bf16: bool = Field(False, description="matrix products in bfloat16; weights, log-probs and sums in float32")
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass")
    dropout: float | None = Field(None, ge=0, lt=1, description="dropout of the trained model; without: 0")

    layout: Literal["auto", "padded", "packed", "prefix-shared"] = Field(
        "auto", description="how answers are laid out in the forward; auto: prompts shared where it pays, else packed"
    )
    tokens_per_micro_batch: int = Field(
        8192, ge=1, description="token slots of one forward; lower it when memory runs out"
    )
    max_length: int | None = Field(
        None, ge=1, description="longest prompt with answer, in tokens; without, the model's limit"
    )

    too_long: Policy = Field(
        "refuse",
        description="rows over max_length: an error, dropped, or cut in the prompt (from the left) or in the answer",
    )

    evaluation: EvaluationSettings | None = Field(None, description="what is measured on held-out prompts")
    eval_steps: int | None = Field(None, ge=1, description="measure every so many optimiser steps; without, at the end")
    eval_on_start: bool = Field(False, description="measure before the first step as well")
    metric_for_best_model: str | None = Field(None, description="keep the weights that are best by this eval metric")
    greater_is_better: bool = Field(True, description="whether a higher metric is better")
    save_steps: int | None = Field(None, ge=1, description="optimiser steps between checkpoints to resume from")
    sample_rows: int = Field(4, ge=0, description="answers written to samples.jsonl per collected batch")

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        """A `source` without a name is the algorithm's own; a critic may be one word."""
        critic = data.get("critic")
        if isinstance(critic, str):
            word = {"fresh": {}, "own": {}, "shared": {"trunk": "shared"}}
            data = {**data, "critic": word.get(critic, {"model": critic})}
        return name_source(data)


def name_source(data: dict[str, Any]) -> dict[str, Any]:
    """Write the algorithm's default source into a `source` that has settings but no name."""
    from unified.registry import catalogue

    source, algorithm = data.get("source"), data.get("algorithm")
    if isinstance(source, dict) and "name" not in source and algorithm:
        name = algorithm.get("name") if isinstance(algorithm, dict) else getattr(algorithm, "name", algorithm)
        part = catalogue().find("algorithm", str(name))
        if part is not None:
            return {**data, "source": {"name": part.source, **source}}  # type: ignore[attr-defined]
    return data
