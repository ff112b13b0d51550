"""What a recipe says that its results must be: `expect`, a list of comparisons of numbers in the stages' summaries.

expect:
  - {stage: after, than: before, margin: se}   eval/reward of `after` is above by more than two standard errors
  - {stage: after, metric: eval/accuracy, at_least: 0.9}

A standard error is `METRIC_se` where the stage measured one (over prompts), else `METRIC_std` / √(answers). A
comparison counts only with 200 answers or prompts on either side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from unified.errors import Problem, UserError, unknown_name
from unified.manifest import read_manifest, stage_folder
from unified.recipe import Recipe
from unified.settings import Field, Settings, parse

#: a difference counts when it is more than so many standard errors, measured on so many answers or prompts
ERRORS, FEWEST = 2.0, 200


class Expectation(Settings):
    """One entry of `expect`."""

    stage: str = Field(description="whose result; a stage of rounds by its full name, or its own for the last round")
    metric: str = Field("eval/reward", description="a number of the stage's summary")
    than: str | None = Field(None, description="a stage whose number it must be above")
    margin: Literal["se"] | float = Field(
        "se", description="by more than this, and never by less than two standard errors; se: by those alone"
    )
    lower: bool = Field(False, description="lower is better: with `than`, below the other's number")
    at_least: float | None = Field(None, description="lowest value")
    at_most: float | None = Field(None, description="highest value")

    @model_validator(mode="after")
    def _says_something(self) -> Expectation:
        if self.than is None and self.at_least is None and self.at_most is None:
            raise ValueError("give `than`, `at_least` or `at_most`")
        if self.than is None and {"margin", "lower"} & self.model_fields_set:
            raise ValueError("`margin` and `lower` go with `than`")
        return self


@dataclass(frozen=True)
class Finding:
    """Whether one expectation is held, and the numbers."""

    held: bool
    words: str

    def text(self) -> str:
        """One line."""
        return f"expected, {'held' if self.held else 'NOT HELD'}: {self.words}"


def read_expectations(recipe: Recipe) -> tuple[list[Expectation], list[Problem]]:
    """The entries, and what is wrong with them: their paths of keys start at `expect`."""
    written = recipe.expect
    if written is None:
        return [], []
    if not isinstance(written, list):
        hint = "for example: - {stage: NAME, than: OTHER, margin: se}"
        return [], [Problem("`expect` must be a list of comparisons", ("expect",), (hint,))]
    found: list[Expectation] = []
    problems: list[Problem] = []
    for i, entry in enumerate(written):
        if not isinstance(entry, Mapping):
            problems.append(Problem("an expectation must be a mapping", ("expect", i), ("{stage: NAME, than: OTHER}",)))
            continue
        made, wrong = parse(Expectation, entry, owner="an expectation")
        problems += [p.under("expect", i) for p in wrong]
        named = {key: entry[key] for key in ("stage", "than") if isinstance(entry.get(key), str)}
        problems += [
            unknown_name("stage", name, list(recipe.stages), at=("expect", i, key))
            for key, name in named.items()
            if not called(recipe, name)
        ]
        if made is not None:
            found.append(made)
    return found, problems


def check_expectations(recipe: Recipe, folder: Path) -> list[Finding]:
    """One finding for each expectation of a recipe whose run lies in `folder`; [] where the recipe expects nothing.

    A number that was not measured, or on too few answers, is an expectation that is not held. UserError for an
    `expect` that cannot be read.
    """
    expected, problems = read_expectations(recipe)
    if problems:
        raise UserError("\n".join(p.text(str(recipe.root.place_of(p.at))) for p in problems))
    return [_finding(one, recipe, folder) for one in expected]


def _finding(one: Expectation, recipe: Recipe, folder: Path) -> Finding:
    ours = _summary(recipe, folder, one.stage)
    value = ours.get(one.metric)
    if not isinstance(value, (int, float)):
        return Finding(False, f"{one.stage}: {one.metric} was not measured")
    held, words = True, f"{one.stage} {one.metric} {value:.4g}"
    if one.at_least is not None:
        held, words = held and value >= one.at_least, f"{words}, at least {one.at_least:g}"
    if one.at_most is not None:
        held, words = held and value <= one.at_most, f"{words}, at most {one.at_most:g}"
    if one.than is not None:
        compared = _compared(one, ours, _summary(recipe, folder, one.than))
        held, words = held and compared.held, f"{words}, {compared.words}"
    return Finding(held, words)


def _compared(one: Expectation, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Finding:
    """Whether the difference of the two numbers is above its margin."""
    other = theirs.get(one.metric)
    if not isinstance(other, (int, float)):
        return Finding(False, f"but {one.than}: {one.metric} was not measured")
    name = f"{'below' if one.lower else 'above'} {one.than} {other:.4g}"
    errors = [standard_error(ours, one.metric), standard_error(theirs, one.metric)]
    if None in errors:
        return Finding(False, f"{name}: no standard error was measured")
    fewest = min(_measured_on(ours), _measured_on(theirs))
    if fewest < FEWEST:
        return Finding(False, f"{name}: measured on {fewest:.0f}, {FEWEST} are needed")
    error = math.sqrt(sum(e * e for e in errors if e is not None))
    least = max(ERRORS * error, 0.0 if one.margin == "se" else float(one.margin))
    difference = (other if one.lower else ours[one.metric]) - (ours[one.metric] if one.lower else other)
    words = f"{name} by {difference:.4g}, more than {least:.4g} (standard error {error:.4g})"
    return Finding(difference > least, words)


def standard_error(summary: Mapping[str, Any], metric: str) -> float | None:
    """Of a mean in a summary, in its own unit: the one measured over prompts, else deviation / √(answers)."""
    if isinstance(summary.get(f"{metric}_se"), (int, float)):
        return float(summary[f"{metric}_se"])
    deviation, answers = summary.get(f"{metric}_std"), summary.get("eval/answers")
    if isinstance(deviation, (int, float)) and answers:
        return float(deviation) / math.sqrt(answers)
    return None


def _measured_on(summary: Mapping[str, Any]) -> float:
    return float(summary.get("eval/prompts") or summary.get("eval/answers") or 0.0)


def called(recipe: Recipe, name: str) -> list[str]:
    """The stages that a name means: the one of that full name, or those of all rounds, in order."""
    if name in recipe.stages:
        return [name]
    return [full for full in recipe.stages if "." in full and full.rpartition(".")[2] == name]


def _summary(recipe: Recipe, folder: Path, name: str) -> dict[str, Any]:
    """What the stage measured; of rounds, in the last one that was run."""
    done = [m for full in called(recipe, name) if (m := read_manifest(stage_folder(folder, full))) is not None]
    return done[-1].summary if done else {}
