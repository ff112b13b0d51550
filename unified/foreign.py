"""Engines whose arithmetic is not the trainer's, or whose weights are elsewhere: what follows from it for a stage.

Nothing here imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unified.errors import Problem
from unified.registry import call_named, catalogue
from unified.settings import Chosen

if TYPE_CHECKING:
    from unified.stage import TrainSettings


def corrected(settings: TrainSettings) -> dict[str, Any]:
    """The algorithms of a stage as they are on answers of a foreign engine, by the settings that name them."""
    out: dict[str, Any] = {}
    if settings.algorithm is not None and _sampled(settings.source, settings.algorithm):
        out["algorithm"] = _corrected(settings.algorithm)
    if settings.terms:
        first = settings.terms[0].algorithm
        out["terms"] = [
            term.model_copy(update={"algorithm": _corrected(term.algorithm)})
            if (_sampled(term.source, term.algorithm) if term.data is not None else _sampled(settings.source, first))
            else term
            for term in settings.terms
        ]
    return out


def _models_of(source: Chosen) -> list[str]:
    """The models of the stage that a source asks, by their references."""
    return sorted(call_named(source.part.models, settings=source.settings)) if source.part.models else []


def _sampled(source: Chosen | None, algorithm: Chosen) -> bool:
    """Whether answers are sampled: by the source that was chosen, or the algorithm's own."""
    part: Any = source.part if source is not None else catalogue().find("source", algorithm.part.source)
    return bool(getattr(part, "online", False))


def _corrected(chosen: Chosen) -> Chosen:
    """An algorithm with the settings that it has on answers of a foreign engine."""
    if chosen.part.corrected is None:
        return chosen
    return Chosen(chosen.part, call_named(chosen.part.corrected, settings=chosen.settings))


def engine_problems(settings: TrainSettings) -> list[Problem]:
    """What does not go together with the engine of a stage."""
    engine = settings.engine
    away = engine is not None and engine.part.push is not None
    problems = []
    if settings.max_staleness and not away:
        hint = "drop it, or name an engine with weights of its own: `engine: {name: vllm, ...}`"
        what = "`max_staleness` needs an engine that samples while the model learns"
        problems.append(Problem(what, ("max_staleness",), (hint,)))
    source = settings.source
    if settings.max_staleness and away and source is not None and (asked := _models_of(source)):
        what = (
            f"source '{source.name}' asks {', '.join(asked)} while it samples, which the process that learns computes"
        )
        hint = "drop `max_staleness`, or take a source and a reward that ask no model of the stage"
        problems.append(Problem(what, ("max_staleness",), (hint,)))
    form = engine.part.form if engine is not None and settings.adapter is None else None
    if engine is not None and form is not None and call_named(form, settings=engine.settings) == "adapter":
        what = f"engine '{engine.name}' is to be given an adapter, and this stage trains none"
        problems.append(Problem(what, ("engine",), ("write `adapter:`, or have the whole model pushed",)))
    return problems
