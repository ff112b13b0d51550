"""Everything that can be known to be wrong with a recipe before a model is loaded, all at once. Writes nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unified.errors import PluginError, Problem, UserError, did_you_mean, unknown_name
from unified.expect import read_expectations
from unified.made import made_by, references
from unified.recipe import Recipe, kind_of
from unified.registry import call_named, catalogue
from unified.rounds import missing_in_rounds
from unified.settings import Chosen, Settings, parse
from unified.stage import ModelSettings
from unified.tree import Node

_WHAT = {
    "policy": "a policy (a causal language model)",
    "scalar": "a scalar model (one number per token)",
    "model": "a model",
    "dataset": "a dataset",
}
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Use:
    """What a stage uses of another: the key path of the reference, the reference, and the kind that is needed.

    kind: "policy", "scalar", "model" (either of the two), "dataset", or None where it is not known.
    """

    at: tuple[str | int, ...]
    reference: str
    kind: str | None


def _use(at: tuple[str | int, ...], reference: str, kind: str) -> Use:
    """A use as a stage kind tells it; "any" is no particular kind of model."""
    return Use(tuple(at), reference, "model" if kind == "any" else kind)


@dataclass(frozen=True)
class PlannedStage:
    """A stage ready to run: its kind, typed settings, and the models that it uses and makes."""

    name: str
    part: Any  # a StageKind
    settings: Settings
    uses: tuple[Use, ...] = ()
    makes: str | None = None

    def describe(self) -> str:
        """One line: what the stage does, from what model, with what parts."""
        words = ", ".join(_parts_named(self.settings)) or "no parts of its own"
        models = ", ".join(dict.fromkeys(use.reference for use in self.uses if use.kind != "dataset"))
        return f"{self.name}: {self.part.name}{f' from {models}' if models else ''} with {words}"


@dataclass
class Plan:
    """A recipe without mistakes."""

    recipe: Recipe
    stages: list[PlannedStage] = field(default_factory=list)


def check_recipe(recipe: Recipe) -> Plan:
    """The typed plan of a recipe.

    Raises UserError with every problem found, each with its place; PluginError when a stage kind's own check raises.
    """
    return _Check(recipe).run()


def typed_plan(recipe: Recipe) -> Plan:
    """The stages by their settings alone; models and data are not looked at, stages with mistakes are left out."""
    check = _Check(recipe)
    return Plan(recipe, [stage for name in recipe.stages if (stage := check._typed(name)) is not None])


class _Check:
    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.planned: dict[str, PlannedStage | None] = {}  # None: its settings are wrong
        self.tokenizers: dict[str, Any] = {}
        self.base_is_sound = False
        self.base_kind: str | None = None

    def run(self) -> Plan:
        names = list(self.recipe.stages)
        for name in names:
            self.planned[name] = self._typed(name)
        self._check_base()
        for i, name in enumerate(names):
            stage = self.planned[name]
            if stage is None:  # its settings are wrong, but what it names as a stage can still be looked up
                for use in _stage_references(self.recipe.stages[name]):
                    self._check_use(name, use, names[:i])
                continue
            for use in stage.uses:
                self._check_use(name, use, names[:i])
            self._check_inside(stage)
        wrong = read_expectations(self.recipe)[1]
        self.recipe.problems += [(self.recipe.root.place_of(problem.at), problem) for problem in wrong]
        texts = self.recipe.problem_texts()
        if texts:
            count = f"{len(texts)} problems" if len(texts) > 1 else "1 problem"
            raise UserError("\n".join([*texts, f"{count} in {self.recipe.source}; nothing was run"]))
        return Plan(self.recipe, [stage for stage in self.planned.values() if stage is not None])

    def _typed(self, name: str) -> PlannedStage | None:
        """The stage with its settings parsed; what is wrong with them is noted."""
        node = self.recipe.stages[name]
        kind = kind_of(node)
        part: Any = catalogue().find("stage", kind)
        if part is None:
            advice = catalogue().advice("stage", kind)
            found = unknown_name("stage kind", kind, catalogue().names("stage"), at=("kind",), advice=advice)
            self.recipe.stage_problem(name, found)
            return None
        data = {key: value for key, value in node.plain().items() if key != "kind"}
        owner = f"stage kind '{kind}'"
        settings, problems = parse(part.settings, data, owner=owner, provider=catalogue().provider("stage", kind))
        for problem in problems:
            self.recipe.stage_problem(name, problem)
        if settings is None:
            return None
        uses = self._ask(name, part.uses, settings=settings) if part.uses else []
        makes = self._ask(name, part.makes, settings=settings) if part.makes else None
        rows = [Use(at, reference, "dataset") for at, reference in references(settings)]
        return PlannedStage(name, part, settings, (*(_use(*use) for use in uses or []), *rows), makes)

    def _ask(self, stage: str, function: Callable[..., Any], **arguments: Any) -> Any:
        """Call a function of the stage's kind; a UserError of it becomes a problem, anything else names the plugin."""
        try:
            return call_named(function, **arguments)
        except UserError as error:
            first, *hints = str(error).splitlines()
            self.recipe.stage_problem(stage, Problem(first, (), tuple(hint.strip() for hint in hints)))
            return None
        except PluginError:
            raise
        except Exception as error:
            kind = kind_of(self.recipe.stages[stage])
            who = catalogue().provider("stage", kind)
            name = getattr(function, "__name__", "a function")
            raise PluginError(
                f"{who}: {name} of stage kind '{kind}' raised {type(error).__name__}: {error} (stage '{stage}')"
            ) from error

    # --- models ---

    def _check_base(self) -> None:
        """The recipe's own model, if a stage uses it."""
        used = [s for s in self.planned.values() if s is not None and any(u.reference == "base" for u in s.uses)]
        model, root = self.recipe.model, self.recipe.root
        if model is None:
            written = root.get("model")
            new = written.get("new") if written else None
            if new is not None and isinstance(new.value, dict):  # something else is wrong with `model`
                for problem in _configuration_problems(new.plain()):
                    self.recipe.problems.append((root.place_of(("model", *problem.at)), problem))
            if used and written is None:
                hint = "write `model: PATH`, a hub id, or `model: {new: {model_type: ...}, tokenizer: NAME}`"
                problem = Problem(f"the recipe needs `model`: stage '{used[0].name}' starts from it", (), (hint,))
                self.recipe.problems.append((root.place, problem))
            return
        problems = [p.under("model") for p in _model_problems(model, self.recipe.home)]
        for problem in problems:
            self.recipe.problems.append((root.place_of(problem.at), problem))
        self.base_is_sound = not problems
        self.base_kind = _kind_at(model.path, self.recipe.home) if model.path else "policy"

    def _check_use(self, stage: str, use: Use, earlier: list[str]) -> None:
        """One reference: it must lead to something that is there by then, of the kind that is needed."""
        reference, names = use.reference, list(self.recipe.stages)
        made: str | None = None
        problem: Problem | None = None
        if reference == "input":
            return
        if reference == "base":
            made = self.base_kind
        elif reference.startswith("stage:"):
            target = reference.removeprefix("stage:")
            other = self.planned.get(target)
            made = other.makes if other else None
            if target not in names:
                problem = missing_in_rounds(self.recipe.blocks, stage, target, use.at)
                problem = problem or unknown_name("stage", target, earlier, at=use.at)
            elif target == stage:
                problem = Problem(f"'{reference}' is this stage itself", use.at, _earlier_hint(earlier))
            elif target not in earlier:
                problem = Problem(
                    f"stage '{target}' comes later, so '{reference}' is not there yet", use.at, _earlier_hint(earlier)
                )
            elif other is not None and made is None:
                problem = Problem(
                    f"stage '{target}' makes no {'dataset' if use.kind == 'dataset' else 'model'}", use.at
                )
        else:
            problem = _path_problem(reference, self.recipe.home, use.at, names)
            made = None if problem else _kind_at(reference, self.recipe.home)
        fits = made == use.kind or (use.kind == "model" and made != "dataset")
        if problem is None and made and use.kind and not fits:
            problem = Problem(f"'{reference}' is {_WHAT.get(made, made)}, but {_WHAT[use.kind]} is needed here", use.at)
        if problem is not None:
            self.recipe.stage_problem(stage, problem)

    # --- what the stage kind itself knows ---

    def _check_inside(self, stage: PlannedStage) -> None:
        if stage.part.check is None:
            return
        self.tokenizers[stage.name] = tokenizer = self._tokenizer(stage)
        problems = self._ask(
            stage.name,
            stage.part.check,
            settings=stage.settings,
            home=self.recipe.home,
            seed=self.recipe.seed,
            tokenizer=tokenizer,
        )
        for problem in problems or []:
            self.recipe.stage_problem(stage.name, problem)

    def _tokenizer(self, stage: PlannedStage) -> Any:
        """The tokenizer that the stage's model will bring; None where it is not known yet."""
        models = [use for use in stage.uses if use.kind != "dataset"]
        own = next((use for use in models if use.at == ("model",)), models[0] if models else None)
        if own is None:
            return None
        if own.reference.startswith("stage:"):
            return self.tokenizers.get(own.reference.removeprefix("stage:"))
        if own.reference not in self.tokenizers:
            self.tokenizers[own.reference] = self._tokenizer_of(own.reference, stage.name, own.at)
        return self.tokenizers[own.reference]

    def _tokenizer_of(self, reference: str, stage: str, at: tuple[str | int, ...]) -> Any:
        if reference == "base" and not (self.base_is_sound and self.recipe.model):
            return None
        settings = self.recipe.model if reference == "base" else ModelSettings(path=reference, new=None, tokenizer=None)
        if settings is None or (reference != "base" and _path_problem(reference, self.recipe.home, at, [])):
            return None
        if settings.path is not None and not local_path(settings.path, self.recipe.home).exists():
            return None  # a hub id: nothing is fetched by a check
        from unified.models import base_context, base_tokenizer  # loads torch

        try:
            tokenizer = base_tokenizer(settings, self.recipe.home)
            tokenizer.context = base_context(settings, self.recipe.home)  # rows must fit; see training.check_rows
            return tokenizer
        except UserError as error:
            first, *hints = str(error).splitlines()
            problem = Problem(first, at, tuple(hint.strip() for hint in hints))
            if reference == "base":
                self.recipe.problems.append((self.recipe.root.place_of(("model",)), problem))
            else:
                self.recipe.stage_problem(stage, problem)
            return None


def _stage_references(node: Node, at: tuple[str | int, ...] = ()) -> list[Use]:
    """Every `stage:NAME` that is written anywhere in a stage."""
    if isinstance(node.value, str) and node.value.startswith("stage:"):
        return [Use(at, node.value, None)]
    inner = (
        node.items() if isinstance(node.value, dict) else enumerate(node.value if isinstance(node.value, list) else [])
    )
    return [use for key, child in inner for use in _stage_references(child, (*at, key))]


def _earlier_hint(earlier: list[str]) -> tuple[str, ...]:
    return (
        (f"earlier stages: {', '.join(earlier)}",)
        if earlier
        else ("no stage comes earlier; `base` is the recipe's model",)
    )


def local_path(reference: str, home: Path) -> Path:
    """A reference as a path, read against the folder of the recipe."""
    path = Path(reference).expanduser()
    return path if path.is_absolute() else home / path


def _path_problem(reference: str, home: Path, at: tuple[str | int, ...], stages: list[str]) -> Problem | None:
    """Whether a path or hub id cannot be a model: a folder that is not there or holds none."""
    path = local_path(reference, home)
    if path.is_dir():
        if (path / "config.json").is_file():
            return None
        inner = [f"{reference}/model"] if (path / "model" / "config.json").is_file() else []
        hints = [f"did you mean '{inner[0]}'?"] if inner else []
        return Problem(
            f"no model in {reference}", at, (*hints, "a model folder holds config.json, weights and a tokenizer")
        )
    if path.is_file():
        return Problem(f"{reference} is a file; a model is a folder", at)
    looks_local = reference.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(reference)
    first = reference.partition("/")[0]
    if not looks_local and not ("/" in reference and (home / first).is_dir()):
        if reference in stages:
            return Problem(f"there is no model {reference}", at, (f"did you mean 'stage:{reference}'?",))
        return None  # a hub id
    around = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
    near = did_you_mean(path.name, around)
    hints = [f"did you mean '{reference[: len(reference) - len(path.name)]}{near}'?"] if near else []
    return Problem(f"there is no folder {reference}", at, (*hints, f"relative paths start at {home}"))


def _kind_at(reference: str, home: Path) -> str | None:
    """The kind (policy or scalar) by the configuration of a local model; None where it is not known."""
    file = local_path(reference, home) / "config.json"
    if not file.is_file():
        return None
    try:
        names = json.loads(file.read_text(encoding="utf-8")).get("architectures") or []
    except (OSError, ValueError, AttributeError):
        return None
    return "scalar" if any("SequenceClassification" in str(name) for name in names) else "policy"


def _model_problems(model: ModelSettings, home: Path) -> list[Problem]:
    if (model.path is None) == (model.new is None):
        return [
            Problem(
                "model needs either `path` or `new`", (), ("a folder or hub id, or a configuration with model_type",)
            )
        ]
    if model.path is not None:
        problem = _path_problem(model.path, home, (), [])
        return [problem] if problem else []
    problems = (
        [] if model.tokenizer else [Problem("a new model needs `tokenizer`", ("new",), ("the dataset that makes one",))]
    )
    return problems + _configuration_problems(dict(model.new or {}))


def _configuration_problems(config: dict[str, Any]) -> list[Problem]:
    """A new model's configuration: transformers itself would keep a misspelt key and never use it."""
    name = config.pop("model_type", None)
    if not isinstance(name, str):
        hint = "for example {model_type: llama, hidden_size: 64, num_hidden_layers: 2, ...}"
        return [Problem("a new model needs `model_type`", ("new",), (hint,))]
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # slow to import

    known = list(CONFIG_MAPPING.keys())
    if name not in known:
        near = did_you_mean(name, known)
        hints = (f"did you mean '{near}'?",) if near else ("the model types are those of transformers",)
        return [Problem(f"transformers knows no model_type '{name}'", ("new", "model_type"), hints)]
    plain = CONFIG_MAPPING[name]()
    fields = [key for key in plain.to_dict() if not key.startswith("_")]
    problems = []
    for key in config:
        if not hasattr(plain, key):
            near = did_you_mean(key, fields)
            hints = (f"did you mean '{near}'?",) if near else (f"known: {', '.join(sorted(fields))}",)
            problems.append(Problem(f"no key '{key}' in the configuration of a {name}", ("new", key), hints))
    return problems


def _parts_named(settings: Settings) -> list[str]:
    """`field name` of every part that the settings choose in so many words, nested ones in brackets."""
    out = []
    for key in type(settings).model_fields:
        value = getattr(settings, key)
        if key not in settings.model_fields_set:
            continue
        if isinstance(value, Chosen):
            out.append(f"{key} {made_by(value) or value.name}")
        elif isinstance(value, list):
            inner = [
                v.name if isinstance(v, Chosen) else ", ".join(_parts_named(v))
                for v in value
                if isinstance(v, (Chosen, Settings))
            ]
            out += [f"{key} [{'; '.join(filter(None, inner))}]"] if any(inner) else []
    return out
