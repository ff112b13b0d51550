"""A stage that merges: the weighted average of the weights of several models of one architecture.

θ = Σ_k w_k θ_k with Σ w = 1; as an exponential moving average over the models in their order, θ ← d θ + (1 − d) θ_k.
Source: model soups, Wortsman et al. 2022, arXiv:2203.05482. Value heads on the trunk are averaged likewise. An adapter
is folded into its model when it is loaded, so that a merge of one writes it out as a whole model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from unified import Field, Problem, Settings, StageContext, StageKind, StageResult, UserError, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from unified import Artifact


class MergeSettings(Settings):
    """What a merging stage may set."""

    models: list[str] = Field(min_length=1, description="what is averaged: stage:NAME, base, paths or hub ids")
    weights: list[float] | None = Field(
        None, description="one per model, divided by their sum; without, all weigh the same"
    )
    ema_decay: float | None = Field(
        None, ge=0, lt=1, description="in place of weights: d of the moving average over the models in their order"
    )
    of: Literal["policy", "scalar"] = Field("policy", description="the kind of all of them")


def shares(settings: MergeSettings) -> list[float]:
    """The weight of each model; they sum to 1."""
    n = len(settings.models)
    if settings.ema_decay is not None:
        d = settings.ema_decay
        return [d ** (n - 1), *((1 - d) * d ** (n - 1 - k) for k in range(1, n))]
    weights = settings.weights or [1.0] * n
    return [w / sum(weights) for w in weights]


def run(stage: StageContext, settings: MergeSettings) -> StageResult:
    """Write the average to model/, with the tokenizer of the first. UserError for models that do not fit."""
    from accelerate import PartialState

    from unified import Artifact, save_model

    artifacts = [stage.artifact(reference) for reference in settings.models]
    tokenizer = artifacts[0].tokenizer()
    head = _value_head(settings, artifacts) if settings.of == "policy" else None
    total: dict[str, Tensor] = {}
    first: Any = None
    parts = zip(settings.models, artifacts, shares(settings), strict=True)
    for number, (reference, artifact, share) in enumerate(parts, start=1):
        model = artifact.load(settings.of)
        first = model if first is None else first
        _refuse_another(settings.models[0], first, reference, model)
        for name, tensor in _floats(model).items():
            part = share * tensor.detach().double()
            total[name] = total[name] + part if name in total else part
        stage.progress(number, len(artifacts), {})
    for name, tensor in _floats(first).items():
        tensor.data.copy_(total[name])
    if PartialState().is_main_process:
        save_model(first, tokenizer, stage.folder / "model", head)
    weights = {f"weight/{i}": share for i, share in enumerate(shares(settings))}
    return StageResult(Artifact(settings.of, stage.folder / "model"), {"models": len(artifacts), **weights})


def _value_head(settings: MergeSettings, artifacts: list[Artifact]) -> Any:
    """The average of the models' value heads, None where none has one. UserError where some have one and some not."""
    from unified import stored_value_head

    heads: list[Any] = [stored_value_head(artifact) for artifact in artifacts]
    lacking = [reference for reference, head in zip(settings.models, heads, strict=True) if head is None]
    if lacking and len(lacking) < len(heads):
        having = next(reference for reference, head in zip(settings.models, heads, strict=True) if head is not None)
        raise UserError(
            f"'{having}' has a value head on its trunk (value_head.safetensors), '{lacking[0]}' has none",
            "merge models that all have one, or none",
        )
    if lacking:
        return None
    made = heads[0]
    for name, tensor in made.state_dict().items():
        parts = zip(heads, shares(settings), strict=True)
        tensor.copy_(sum(share * head.state_dict()[name].double() for head, share in parts))
    return made


def _floats(model: Any) -> dict[str, Tensor]:
    """Parameters (shared ones once) and buffers that are saved, as far as they are numbers with a fraction."""
    saved = model.state_dict().keys()
    named = {**dict(model.named_parameters()), **{n: b for n, b in model.named_buffers() if n in saved}}
    return {name: tensor for name, tensor in named.items() if tensor.is_floating_point()}


def _refuse_another(first_name: str, first: Any, name: str, model: Any) -> None:
    """UserError that shows both sides where two models have not the same architecture."""
    ours = {n: list(t.shape) for n, t in _floats(first).items()}
    theirs = {n: list(t.shape) for n, t in _floats(model).items()}
    kinds = (first.config.model_type, model.config.model_type)
    if kinds[0] != kinds[1]:
        raise UserError(f"'{first_name}' is a {kinds[0]} and '{name}' a {kinds[1]}; only equals can be averaged")
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            raise UserError(
                f"{key} is {ours.get(key, 'not')} in '{first_name}' and {theirs.get(key, 'not')} in '{name}'",
                "only models of one architecture can be averaged",
            )


def uses(settings: MergeSettings) -> list[tuple[Any, ...]]:
    """All models, of one kind, with the tokenizer and the architecture of the first."""
    common = ("vocabulary", "template", "architecture")
    return [(("models", i), reference, settings.of, common) for i, reference in enumerate(settings.models)]


def check(settings: MergeSettings) -> list[Problem]:
    """Weights that do not fit the models."""
    weights = settings.weights
    if weights is not None and settings.ema_decay is not None:
        return [Problem("give `weights` or `ema_decay`, not both", ("weights",))]
    if weights is not None and len(weights) != len(settings.models):
        return [Problem(f"there are {len(settings.models)} models but {len(weights)} weights", ("weights",))]
    if weights is not None and sum(weights) == 0:
        return [Problem("the weights sum to 0", ("weights",), ("they are divided by their sum",))]
    return []


@hookimpl
def unified_stages() -> list[StageKind]:
    """Offer merging to recipes as `kind: merge`."""
    return [
        StageKind("merge", MergeSettings, run=run, uses=uses, makes=lambda settings: settings.of, check=check),
    ]
