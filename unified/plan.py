"""`unified plan`: what a recipe would run and why, and what that costs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from unified.as_json import of_plan, print_json
from unified.check import Plan, PlannedStage, check_recipe
from unified.cost import Cost, cost_of
from unified.devices import Hardware
from unified.devices import hardware as parse_hardware
from unified.errors import UserError
from unified.made import STAGE, files_of, is_to_come, resolved
from unified.pace import Servers
from unified.recipe import Recipe, load_recipe
from unified.registry import call_named
from unified.render import Renderer
from unified.runner import run_folder
from unified.scaling import QUESTIONS, answer
from unified.sizes import Size, settings_of_model, size_of, tokenizer_of
from unified.spread import Spread, spread_of
from unified.survey import Finding, survey
from unified.work import Rows, Work

#: rows of a dataset whose tokens are counted, spread evenly over it
COUNTED_ROWS = 200


@dataclass(frozen=True)
class Place:
    """Where a recipe is to run: devices that train, how state lies on them, and devices that sample apart from them."""

    on: Hardware | None = None
    spread: Spread = field(default_factory=Spread)
    servers: Servers | None = None


@dataclass(frozen=True)
class Estimate:
    """One stage: what would be done with it, its work and cost; None where they are not known."""

    finding: Finding
    work: Work | None
    cost: Cost | None


@dataclass
class Estimator:
    """Counts rows and models of a plan, each once; nothing is fetched and no weights are loaded."""

    plan: Plan
    findings: Sequence[Finding]
    place: Place = field(default_factory=Place)
    _rows: dict[tuple[str, str, str | None], Rows | None] = field(default_factory=dict)
    _tokenizers: dict[str, Any] = field(default_factory=dict)
    _sizes: dict[tuple[str, bool], Size | None] = field(default_factory=dict)

    def estimate(self, finding: Finding) -> Estimate:
        """Work and cost of one stage."""
        stage = finding.stage
        if stage.part.work is None:
            return Estimate(finding, None, None)
        root = self.root(_own(stage))

        def measure(data: Any, split: str) -> Rows | None:
            return self.measure(data, split, root)

        work = call_named(stage.part.work, settings=stage.settings, measure=measure)
        place = self.place
        made = cost_of(work, self.size, place.on, place.spread, place.servers) if work is not None else None
        return Estimate(finding, work, made)

    def root(self, reference: str | None) -> str | None:
        """The model that a reference goes back to: "base", a folder or hub id."""
        stages = {f.stage.name: f.stage for f in self.findings}
        while reference is not None and reference.startswith(STAGE):
            reference = _own(stages[reference.removeprefix(STAGE)])
        return reference

    def size(self, reference: str, scalar: bool) -> Size | None:
        """The size of the model behind a reference; a stage leaves a model of the architecture that it was handed."""
        root = self.root(reference)
        if root is None:
            return None
        if (root, scalar) not in self._sizes:
            model = settings_of_model(root, self.plan.recipe.model)
            found = size_of(model, self.plan.recipe.home, scalar=scalar) if model else None
            self._sizes[root, scalar] = found
        return self._sizes[root, scalar]

    def measure(self, data: Any, split: str, root: str | None) -> Rows | None:
        """A dataset as counted with the tokenizer of a model; None where it cannot be opened yet."""
        if data is None:
            return None
        key = (json.dumps(data.as_dict(), sort_keys=True, default=str), split, root)
        if key not in self._rows:
            self._rows[key] = self._measured(data, split, root)
        return self._rows[key]

    def _measured(self, data: Any, split: str, root: str | None) -> Rows | None:
        recipe = self.plan.recipe
        tokenizer = self._tokenizer(root)
        if tokenizer is None:
            return None
        try:
            data = resolved(data, self._dataset)
            if is_to_come(data):  # on the hub
                return None
            rows = call_named(data.part.open, settings=data.settings, split=split, seed=recipe.seed, folder=recipe.home)
        except UserError:  # written by a stage that has not run, or found wanting by the check
            return None
        renderer = Renderer(tokenizer, sys.maxsize)
        every = max(len(rows) // COUNTED_ROWS, 1)
        groups = [renderer.group(rows[i], row=i) for i in range(0, len(rows), every)]
        if not groups:
            return None
        answers = [answer for group in groups for answer in group.answers]
        return Rows(
            rows=len(rows),
            answers=len(answers) / len(groups),
            prompt_tokens=sum(len(g.prompt) for g in groups) / len(groups),
            answer_tokens=sum(len(a.ids) for a in answers) / max(len(answers), 1),
            longest=float(max(len(g.prompt) + max((len(a.ids) for a in g.answers), default=0) for g in groups)),
            longest_prompt=float(max(len(g.prompt) for g in groups)),
        )

    def _tokenizer(self, root: str | None) -> Any:
        if root is not None and root not in self._tokenizers:
            model = settings_of_model(root, self.plan.recipe.model)
            self._tokenizers[root] = tokenizer_of(model, self.plan.recipe.home) if model else None
        return self._tokenizers.get(root or "")

    def _dataset(self, reference: str) -> dict[str, Any]:
        name = reference.removeprefix(STAGE)
        found = next((f for f in self.findings if f.stage.name == name), None)
        if found is None or found.manifest is None or found.manifest.dataset is None:
            raise UserError(f"stage '{name}' has made no dataset yet")
        return files_of(found.manifest.dataset, found.folder)


def _own(stage: PlannedStage) -> str | None:
    """The reference of the model that a stage goes on from."""
    models = [use for use in stage.uses if use.kind != "dataset"]
    own = next((use for use in models if use.at == ("model",)), models[0] if models else None)
    return own.reference if own else None


def estimates(recipe: Recipe, output: Path | None = None, place: Place | None = None) -> list[Estimate]:
    """Every stage of a recipe. UserError for a recipe with mistakes."""
    plan = check_recipe(recipe)
    findings = survey(plan, run_folder(recipe, output), check_recipe)
    estimator = Estimator(plan, findings, place or Place())
    return [estimator.estimate(finding) for finding in findings]


def place_of(hardware: str | None, launch: str | None, servers: str | None) -> Place:
    """What `--hardware`, `--launch` and `--servers` say. UserError for a name that is not known."""
    on = parse_hardware(hardware) if hardware else None
    given = [n for n, value in (("--launch", launch), ("--servers", servers)) if value is not None]
    if on is None and given:
        raise UserError(f"{given[0]} means something only with --hardware", "for example --hardware 8xH100")
    sampling = Servers(parse_hardware(servers, "--servers")) if servers else None
    return Place(on, spread_of(launch, on.count if on else 1), sampling)


def tell(
    recipe: Path | None,
    sets: Sequence[str],
    profile: str | None,
    output: Path | None,
    *,
    hardware: str | None,
    launch: str | None = None,
    servers: str | None = None,
    scaling: str | None,
    law: Mapping[str, Any],
    as_json: bool = False,
) -> None:
    """What the command line prints: the plan of a recipe, or an answer of the scaling law. UserError for mistakes."""
    console = Console(highlight=False)
    place = place_of(hardware, launch, servers)
    if scaling is not None:
        if recipe is not None:
            raise UserError("--scaling asks about pretraining, not about a recipe", f"leave out {recipe}")
        lines = list(answer(scaling, hardware=place.on, **law))
        if as_json:
            print_json({"question": scaling, "answer": lines})
        else:
            console.print(*map(Text, lines), sep="\n", soft_wrap=True)
        return
    given = [f"--{name.replace('_', '-')}" for name, value in law.items() if value is not None]
    if given:
        raise UserError(f"{given[0]} means something only with --scaling", f"known: {', '.join(QUESTIONS)}")
    if recipe is None:
        raise UserError("give a recipe, or ask a question with --scaling", f"questions: {', '.join(QUESTIONS)}")
    from unified.plan_page import print_plan

    found = estimates(load_recipe(recipe, sets, profile), output, place)
    if as_json:
        print_json(of_plan(found))
    else:
        print_plan(console, found, place)
