"""`unified plan`: what a recipe would run and why, and what that costs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unified.check import Plan, PlannedStage, check_recipe
from unified.console import duration
from unified.cost import Cost, Size, cost_of, settings_of_model, size_of, tokenizer_of
from unified.devices import UTILISATION, Hardware
from unified.devices import hardware as parse_hardware
from unified.errors import UserError
from unified.made import STAGE, files_of, is_to_come, resolved
from unified.recipe import Recipe, load_recipe
from unified.registry import call_named
from unified.render import Renderer
from unified.runner import run_folder
from unified.scaling import QUESTIONS, answer, short
from unified.survey import Finding, survey
from unified.work import Rows, Work

#: rows of a dataset whose tokens are counted, spread evenly over it
COUNTED_ROWS = 200
UNKNOWN = "?"
_DOES = {
    "done": "skip",
    "depends": "run, if needed",
    "changed": "run",
    "interrupted": "resume",
    "new": "run",
}


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
    on: Hardware | None = None
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
        return Estimate(finding, work, cost_of(work, self.size, self.on) if work is not None else None)

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


def estimates(recipe: Recipe, output: Path | None = None, on: Hardware | None = None) -> list[Estimate]:
    """Every stage of a recipe. UserError for a recipe with mistakes."""
    plan = check_recipe(recipe)
    findings = survey(plan, run_folder(recipe, output), check_recipe)
    estimator = Estimator(plan, findings, on)
    return [estimator.estimate(finding) for finding in findings]


def print_plan(console: Console, made: Sequence[Estimate], on: Hardware | None) -> None:
    """Three tables: what runs and why; work and cost; memory by part. Below them what was assumed."""
    runs = _table("What would run", ["stage", "will", "why"])
    for each in made:
        finding = each.finding
        why = "; ".join(finding.why) or "nothing that it depends on has changed"
        runs.add_row(*map(Text, (finding.stage.name, _DOES[finding.state], why)))
    console.print(runs)
    console.print(_work_table(made, on))
    console.print(_memory_table(made, on))
    for line in notes(made, on):
        console.print(Text(line), soft_wrap=True)


def _work_table(made: Sequence[Estimate], on: Hardware | None) -> Table:
    headings = ["stage", "steps", "prompts", "trained", "scored", "sampled", "FLOPs"]
    table = _table("Work, in tokens", [*headings, *(["time"] if on else [])])
    for each in made:
        work, cost = each.work, each.cost
        cells = [UNKNOWN] * 5
        if work is not None:
            tokens = [work.tokens(does) for does in ("train", "score", "generate")]
            cells = [str(work.steps), str(work.prompts), *("-" if not t else short(t) for t in tokens)]
        cells.append(f"{cost.flops:.2e}" if cost else UNKNOWN)
        if on:
            cells.append(_time(cost.seconds) if cost and cost.seconds is not None else UNKNOWN)
        table.add_row(*map(Text, (each.finding.stage.name, *cells)))
    todo = [e for e in made if e.finding.state != "done"]
    if len(made) > 1:
        known = [e.cost for e in todo if e.cost is not None]
        cells = ["at most", "", "", "", "", "", f"{sum(c.flops for c in known):.2e}"]
        cells += [_time(sum(c.seconds or 0.0 for c in known))] if on else []
        table.add_section()
        table.add_row(*map(Text, cells))
    return table


def _memory_table(made: Sequence[Estimate], on: Hardware | None) -> Table:
    headings = ["stage", "weights", "gradients", "optimiser", "activations", "cache", "peak"]
    table = _table("Memory of one device", [*headings, *(["fits"] if on else [])])
    for each in made:
        cells = [UNKNOWN] * (len(headings) - 1)
        fits = UNKNOWN
        if each.cost is not None:
            m = each.cost.memory
            parts = (m.weights, m.gradients, m.optimiser, m.activations, m.kv_cache, m.total)
            cells = ["-" if not value else size_text(value) for value in parts]
            fits = "yes" if on and m.total <= on.device.memory else "no"
        table.add_row(*map(Text, (each.finding.stage.name, *cells, *([fits] if on else []))))
    return table


def _table(title: str, headings: Sequence[str]) -> Table:
    return Table(*headings, title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


def _time(seconds: float) -> str:
    return "< 0.1 s" if seconds < 0.1 else duration(seconds)


def notes(made: Sequence[Estimate], on: Hardware | None) -> list[str]:
    """What the figures assume, and why some are missing."""
    lines = [
        "Tokens are those of all models together; answers to be sampled count as long as `max_tokens` allows.",
        "FLOPs: 6 per parameter and trained token (4 beside an adapter; 2 more with activations recomputed), 2 per",
        "scored or sampled one.",
        "Memory: a whole copy of each model in float32; activations as in arXiv:2205.05198, section 4.1, roughly; the",
        "cache is that of keys and values while answers are sampled, never at the same time as activations.",
    ]
    if on is not None:
        d = on.device
        lines.append(
            f"Time: {on.count} x {d.name} at {UTILISATION:.0%} of the data sheet's peak ({d.bf16 / 1e12:g} TFLOP/s "
            f"in bfloat16, {d.fp32 / 1e12:g} in float32); sampling reads all weights once a token "
            f"({d.bandwidth / 1e12:g} TB/s)."
        )
    lines += [
        f"{stage.name}: models and data with another {' and '.join(sorted(stage.allowed))} are allowed."
        for stage in (e.finding.stage for e in made)
        if stage.allowed
    ]
    if any(e.work is None or e.cost is None for e in made):
        lines.append(
            f"{UNKNOWN}: the data of an earlier stage that has not run, a model or tokenizer that is not on this "
            "machine, or a kind of stage that does not tell its work."
        )
    return lines


def size_text(value: float) -> str:
    """Bytes as a person writes them, in powers of 1000: 3.2 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    raise AssertionError


def tell(
    recipe: Path | None,
    sets: Sequence[str],
    profile: str | None,
    output: Path | None,
    *,
    hardware: str | None,
    scaling: str | None,
    law: Mapping[str, Any],
) -> None:
    """What the command line prints: the plan of a recipe, or an answer of the scaling law. UserError for mistakes."""
    console = Console(highlight=False)
    on = parse_hardware(hardware) if hardware else None
    if scaling is not None:
        if recipe is not None:
            raise UserError("--scaling asks about pretraining, not about a recipe", f"leave out {recipe}")
        console.print(*(Text(line) for line in answer(scaling, hardware=on, **law)), sep="\n", soft_wrap=True)
        return
    given = [f"--{name.replace('_', '-')}" for name, value in law.items() if value is not None]
    if given:
        raise UserError(f"{given[0]} means something only with --scaling", f"known: {', '.join(QUESTIONS)}")
    if recipe is None:
        raise UserError("give a recipe, or ask a question with --scaling", f"questions: {', '.join(QUESTIONS)}")
    print_plan(console, estimates(load_recipe(recipe, sets, profile), output, on), on)
