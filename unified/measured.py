"""Metrics that a recipe names, held against what its stages will measure, as far as that is known before they run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from unified.errors import Problem, did_you_mean
from unified.expect import Expectation, called
from unified.recipe import Recipe
from unified.registry import call_named
from unified.settings import Settings, parse
from unified.stage import TrainSettings
from unified.tree import Place

#: of answers that are sampled at an evaluation
_SAMPLED = ("reward", "reward_std", "answers", "length", "clipped_ratio", "dropped/missing")


def of_training(settings: TrainSettings, *, online: bool) -> dict[str, str]:
    """What a training stage measures: `StageKind.measures`. Metrics of its algorithms are asked for, which loads torch.

    With held-out rows the `eval/` of an algorithm whose names cannot be known before it runs may be any.
    """
    best = "" if settings.metric_for_best_model else "`metric_for_best_model` keeps the best weights"
    learned, _ = _of_terms(settings, driving=False)
    out = {"steps": "", "best_step": best, "last/*": "", **{f"last/{name}": "" for name in learned}}
    judged = settings.evaluation is not None and settings.evaluation.reward is not None
    hint = "" if judged else "`evaluation: {reward: ...}` measures it"
    out |= {f"eval/{name}": hint for name in _SAMPLED} | ({"eval/kl": ""} if judged else {})
    if settings.evaluation is not None and not online:
        names, complete = _of_terms(settings, driving=True)
        if not complete:  # an algorithm may have a metric of any of the names before
            out = {name: said for name, said in out.items() if not said or not name.startswith("eval/")}
        out |= {"eval/dropped/*": "", "eval/nonfinite/*": "", **({} if complete else {"eval/*": ""})}
        out |= {f"eval/{name}": "" for name in names}
    return out


def _of_terms(settings: TrainSettings, *, driving: bool) -> tuple[list[str], bool]:
    """Losses and metrics of the terms as they are logged, and whether these are all.

    driving: only of terms on the stage's own rows, which are those that an evaluation measures.
    """
    from unified.tried import metric_names

    one = [settings.algorithm] if settings.algorithm is not None else []
    terms = [(t.algorithm, t.data is None) for t in settings.terms] or [(algorithm, True) for algorithm in one]
    found: list[str] = []
    complete = True
    for algorithm, drives in terms:
        if driving and not drives:
            continue
        names = metric_names(algorithm.part, algorithm.settings)
        complete = complete and names is not None
        prefix = f"{algorithm.name}/" if len(terms) > 1 else ""
        found += [prefix + name for name in ("loss", *sorted(names or ()))]
    return found, complete


def problem_of(measures: Mapping[str, str], metric: str, at: tuple[str | int, ...]) -> Problem | None:
    """What is wrong with a metric that a recipe names; None where it is, or may be, measured.

    A name that may be one of many is wrong where it is one slip of the pen from a name that is known.
    """
    if metric in measures:
        said = measures[metric]
        return Problem(f"'{metric}' is not measured", at, (said,)) if said else None
    known = sorted(name for name, said in measures.items() if not said and not name.endswith("*"))
    slip = next((name for name in measures if _one_slip(metric, name)), None)
    if slip is None and any(name.endswith("*") and metric.startswith(name[:-1]) for name in measures):
        return None
    near = slip or did_you_mean(metric, known)
    hints = [f"did you mean '{near}'?"] if near else []
    alike = [name for name in known if name.partition("/")[:2] == metric.partition("/")[:2]]
    return Problem(f"'{metric}' is not measured", at, (*hints, f"measured: {', '.join(alike or known) or 'nothing'}"))


def best_model_problem(settings: TrainSettings, *, online: bool) -> Problem | None:
    """What is wrong with `metric_for_best_model`, which may leave the eval/ in front away."""
    name = settings.metric_for_best_model
    if name is None or settings.evaluation is None:
        return None
    measures = {k: said for k, said in of_training(settings, online=online).items() if k.startswith("eval/")}
    whole = name if name.startswith("eval/") else f"eval/{name}"
    return problem_of(measures, whole, ("metric_for_best_model",))


def metric_problems(recipe: Recipe, planned: Mapping[str, Any]) -> Iterator[tuple[Place, Problem]]:
    """Metrics of `expect`, and of `until` in blocks of rounds, that a stage will not measure.

    planned: full name -> its PlannedStage; None, or no entry, for one with mistakes of its own.
    """
    for one, at in _expected(recipe):
        for name in (one.stage, one.than):
            stages = [planned.get(full) for full in called(recipe, name)] if name else []
            found = problem_of_stage(stages[-1], one.metric, (*at, "metric")) if stages else None
            if found is not None:
                yield recipe.root.place_of(found.at), _said(found, f"expect[{at[1]}]: stage '{name}'")
                break
    for block in recipe.blocks.values():
        if block.until is None or not block.stages:
            continue
        name = block.until.stage or block.stages[-1]
        found = problem_of_stage(planned.get(block.full(1, name)), block.until.metric, ())
        if found is not None:
            place = recipe.root.place_of(("stages", block.name, "until", "metric"))
            yield place, _said(found, f"block '{block.name}': stage '{name}'")


def problem_of_stage(stage: Any, metric: str, at: tuple[str | int, ...]) -> Problem | None:
    """What is wrong with a metric of a stage's summary; None where nobody knows what that will hold."""
    if stage is None or stage.part.measures is None:
        return None
    settings: Settings = stage.settings
    return problem_of(call_named(stage.part.measures, settings=settings), metric, at)


def _expected(recipe: Recipe) -> Iterator[tuple[Expectation, tuple[str | int, ...]]]:
    """The expectations that can be read, each with its place."""
    for i, entry in enumerate(recipe.expect if isinstance(recipe.expect, list) else []):
        if isinstance(entry, Mapping):
            made, _ = parse(Expectation, entry, owner="an expectation")
            if made is not None:
                yield made, ("expect", i)


def _said(problem: Problem, of: str) -> Problem:
    return Problem(f"{of}: {problem.message}", problem.at, problem.hints)


def _one_slip(a: str, b: str) -> bool:
    """Whether one letter is missing, too many or another one, or two neighbours are exchanged."""
    if a == b or b.endswith("*") or abs(len(a) - len(b)) > 1:
        return False
    start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    rests = a[start:], b[start:]
    swapped = rests[0][:2] == rests[1][:2][::-1] and rests[0][2:] == rests[1][2:]
    return swapped or any(rests[0][i:] == rests[1][j:] for i, j in ((1, 1), (0, 1), (1, 0)))
