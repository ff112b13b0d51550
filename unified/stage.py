"""What a stage of a recipe is given, what it gives back, and the settings of a training stage. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator, model_validator

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
    say: one line for the person who watches. cache: a folder that outlives stages, for what may be computed again.
    log: told every line of metrics.jsonl, in the main process.
    """

    name: str
    folder: Path
    home: Path
    seed: int
    artifact: Callable[[str], Artifact]
    notify: Callable[..., None]
    progress: Callable[[int, int, Mapping[str, float]], None]
    say: Callable[[str], None] = lambda _: None
    cache: Path | None = None
    log: Callable[[Mapping[str, Any]], None] = lambda _: None


def pushed_folder(cache: Path, stage: str) -> Path:
    """Where the weights lie that a stage has written for an engine elsewhere; nobody reads them behind its end."""
    return (cache / "weights" / stage).absolute()


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
    trust_remote_code: bool = Field(
        False, description="run Python that lies beside the weights at `path`, and beside what stages make of them"
    )


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


class AdapterSettings(Settings):
    """A LoRA on the trained models: only it learns. Names are peft's."""

    r: int = Field(16, ge=1, description="rank of the two matrices")
    lora_alpha: int = Field(32, ge=1, description="what they add is multiplied by lora_alpha / r")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the way into them")
    target_modules: str | list[str] = Field(
        "all-linear", description="adapted layers: all-linear (all but the output), names, or a regular expression"
    )
    exclude_modules: str | list[str] | None = Field(None, description="layers that are left out: names, or a pattern")
    use_rslora: bool = Field(False, description="multiply by lora_alpha / sqrt(r) instead (arXiv:2312.03732)")
    use_dora: bool = Field(False, description="learn the length of each weight besides (arXiv:2402.09353)")
    quantization: Literal["4bit"] | None = Field(
        None, description="hold the weights that stand still in 4 bits (QLoRA, arXiv:2305.14314); needs bitsandbytes"
    )
    save: Literal["adapter", "merged"] = Field(
        "adapter", description="what the stage leaves: an adapter of peft, or a whole model with it folded in"
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
    adapter: AdapterSettings | None = Field(
        None, description="train a LoRA on the model, and on a critic of its own, in place of all weights; needs peft"
    )
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
    reward_timeout: float | None = Field(
        600.0,
        gt=0,
        description="seconds for the reward of a collected batch; then each prompt is judged by itself in its share of "
        "as much again, and what takes longer is missing; rewards that ask models have no limit, null: none has",
    )
    nonfinite: Literal["stop", "skip"] = Field(
        "stop",
        description="NaN or infinity in rewards, log-probs, values, advantages, coefficients or gradients: stop with "
        "its place, or leave the answers (of coefficients and gradients: the optimiser step) out, counted",
    )
    max_nonfinite: int = Field(
        5, ge=0, description="nonfinite: skip: collected batches in a row with something left out, before it stops"
    )
    max_staleness: int = Field(
        0,
        ge=0,
        description="collected batches that the policy may have learned from since the weights that sampled; above 0 "
        "an engine elsewhere samples the next batches while the model learns",
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
    bf16: bool | Literal["auto"] = Field(
        False,
        description="matrix products in bfloat16, weights and sums in float32; auto: where the hardware has it",
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass")
    dropout: float | None = Field(None, ge=0, lt=1, description="dropout of the trained model; without: 0")

    layout: Literal["auto", "padded", "packed", "prefix-shared"] = Field(
        "auto", description="how answers are laid out in the forward; auto: prompts shared where it pays, else packed"
    )
    tokens_per_micro_batch: int | None = Field(
        None, ge=1, description="token slots of one forward, fewer take less memory; without, 4096 on a CPU, else 8192"
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
    greater_is_better: bool = Field(
        True, description="whether a higher metric is better; of a metric whose name ends in `loss`, false if left out"
    )
    save_steps: int | None = Field(None, ge=1, description="optimiser steps between checkpoints to resume from")
    save_total_limit: int = Field(
        2, ge=1, description="checkpoints kept, the newest; with two, a damaged one is replaced by the one before"
    )
    sample_rows: int = Field(4, ge=0, description="answers written to samples.jsonl per collected batch")
    lens_steps: int | None = Field(
        None, ge=1, description="optimiser steps between pictures of a few fixed prompts (lens.jsonl); without, none"
    )
    lens_rows: int = Field(2, ge=1, description="prompts of these pictures, the first of the data")

    report_to: list[str] = Field(
        [], description="trackers that get the metrics: tensorboard, wandb, trackio, mlflow, ... of accelerate"
    )
    project: str = Field("unified", description="the project, or experiment, that trackers put the run into")
    run_name: str | None = Field(None, description="what trackers call the run; without, the stage's name")

    @property
    def drops(self) -> float:
        """The largest dropout of a trained model, that of its adapter included."""
        return max(self.dropout or 0.0, self.adapter.lora_dropout if self.adapter is not None else 0.0)

    @property
    def quantised(self) -> bool:
        """Whether trained models are copies in fewer bits of what the stage was handed."""
        return self.adapter is not None and self.adapter.quantization is not None

    @property
    def own_reference(self) -> bool:
        """Whether the reference is the trained policy without its adapter, which is what the stage was handed."""
        return self.adapter is not None and self.reference in ("input", self.model)

    @field_validator("learning_rate")
    @classmethod
    def _names_a_role(cls, rate: float | dict[str, float]) -> float | dict[str, float]:
        if rate == {}:
            raise ValueError("a rate, or one for a role at least: {policy: 1e-5}")
        return rate

    @model_validator(mode="before")
    @classmethod
    def _lower_loss_is_better(cls, data: Any) -> Any:
        """As in transformers: a recipe that keeps the best weights by a loss need not say that less of it is better."""
        if isinstance(data, Mapping) and str(data.get("metric_for_best_model") or "").endswith("loss"):
            return {"greater_is_better": False, **data}
        return data

    @model_validator(mode="after")
    def _corrects_for_its_engine(self) -> TrainSettings:
        """Algorithms on answers of a foreign engine correct for it, unless a recipe says how, or that they do not."""
        if self.engine is not None and getattr(self.engine.part, "foreign", False):
            from unified.foreign import corrected

            self.__dict__.update(corrected(self))
        return self

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        """A `source` without a name is the algorithm's own; a critic may be one word."""
        critic = data.get("critic")
        if isinstance(critic, str):
            word = {"fresh": {}, "own": {}, "shared": {"trunk": "shared"}}
            data = {**data, "critic": word.get(critic, {"model": critic})}
        if isinstance(data.get("report_to"), str):
            data = {**data, "report_to": [] if data["report_to"] == "none" else [data["report_to"]]}
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
