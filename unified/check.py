"""Everything that can be known to be wrong with a recipe before a model is loaded, all at once. Writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from unified.configurations import configuration_problems
from unified.edges import ASPECTS, KEY, TOKENS, Models, read_allowed
from unified.errors import PluginError, Problem, UserError, first_of, unknown_name
from unified.expect import read_expectations
from unified.made import made_by, references
from unified.measured import metric_problems
from unified.named_models import as_problem, kind_at, model_problems, path_problem
from unified.own_checks import OwnChecks
from unified.recipe import Recipe, kind_of
from unified.registry import call_named, catalogue
from unified.rounds import missing_in_rounds
from unified.settings import Chosen, Settings, parse
from unified.tree import Node

_WHAT = {
    "policy": "a policy (a causal language model)",
    "scalar": "a scalar model (one number per token)",
    "model": "a model",
    "dataset": "a dataset",
}


@dataclass(frozen=True)
class Use:
    """What a stage uses of another: the key path of the reference, the reference, and the kind that is needed.

    kind: "policy", "scalar", "model" (either of the two), "dataset", or None where it is not known. agree: what it must
    have in common with the model that the stage goes on from.
    """

    at: tuple[str | int, ...]
    reference: str
    kind: str | None
    agree: frozenset[str] = frozenset()


def _use(at: tuple[str | int, ...], reference: str, kind: str, agree: Iterable[str] | None = None) -> Use:
    """A use as a stage kind tells it; "any" is no particular kind of model. Scalar models read the policy's tokens."""
    common = frozenset(agree) if agree is not None else TOKENS if kind == "scalar" else frozenset()
    if common - ASPECTS:
        raise ValueError(f"models cannot agree in {sorted(common - ASPECTS)}; known: {', '.join(sorted(ASPECTS))}")
    return Use(tuple(at), reference, "model" if kind == "any" else kind, common)


@dataclass(frozen=True)
class PlannedStage:
    """A stage ready to run: its kind, typed settings, and the models that it uses and makes.

    allowed: what its models need not have in common, because the recipe says so.
    """

    name: str
    part: Any  # a StageKind
    settings: Settings
    uses: tuple[Use, ...] = ()
    makes: str | None = None
    allowed: frozenset[str] = frozenset()

    @property
    def own(self) -> Use | None:
        """The model that the stage goes on from: its `model`, else the first that it names."""
        models = [use for use in self.uses if use.kind != "dataset"]
        return next((use for use in models if use.at == ("model",)), models[0] if models else None)

    def written(self) -> dict[str, Any]:
        """All settings as JSON has them, with what the engine itself reads of the stage."""
        allowed = {KEY: sorted(self.allowed)} if self.allowed else {}
        return {**self.settings.model_dump(mode="json"), **allowed}

    def describe(self) -> str:
        """One line: what the stage does, from what model, with what parts."""
        words = ", ".join(_parts_named(self.settings)) or "no parts of its own"
        models = ", ".join(dict.fromkeys(use.reference for use in self.uses if use.kind != "dataset"))
        allowed = f", another {' and '.join(sorted(self.allowed))} allowed" if self.allowed else ""
        return f"{self.name}: {self.part.name}{f' from {models}' if models else ''} with {words}{allowed}"


@dataclass
class Plan:
    """A recipe without mistakes."""

    recipe: Recipe
    stages: list[PlannedStage] = field(default_factory=list)


def check_recipe(recipe: Recipe, *, fetch: bool = False) -> Plan:
    """The typed plan of a recipe.

    fetch: whether configuration and tokenizer of models of the hub are fetched, and checked like those that are here.
    Raises UserError with every problem found, each with its place; PluginError when a stage kind's own check raises.
    """
    return _Check(recipe, fetch=fetch).run()


def typed_plan(recipe: Recipe) -> Plan:
    """The stages by their settings alone; models and data are not looked at, stages with mistakes are left out."""
    check = _Check(recipe)
    return Plan(recipe, [stage for name in recipe.stages if (stage := check._typed(name)) is not None])


class _Check:
    def __init__(self, recipe: Recipe, *, fetch: bool = False) -> None:
        self.recipe, self.fetch = recipe, fetch
        self.planned: dict[str, PlannedStage | None] = {}  # None: its settings are wrong
        self.models = Models(recipe, self.planned, fetch=fetch)
        self.own = OwnChecks(recipe.home, recipe.seed)
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
            sound = [self._check_use(name, use, names[:i]) for use in stage.uses]
            self._check_inside(stage)
            if all(sound) and self._is_known(stage):
                for problem in self.models.problems(stage):
                    self.recipe.stage_problem(name, problem)
        wrong = read_expectations(self.recipe)[1]
        self.recipe.problems += [(self.recipe.root.place_of(problem.at), problem) for problem in wrong]
        self.recipe.problems += metric_problems(self.recipe, self.planned)
        texts = self.recipe.problem_texts()
        if texts:
            count = f"{len(texts)} problems" if len(texts) > 1 else "1 problem"
            raise UserError("\n".join([*first_of(texts), f"{count} in {self.recipe.source}; nothing was run"]))
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
        data = {key: value for key, value in node.plain().items() if key not in ("kind", KEY)}
        owner = f"stage kind '{kind}'"
        settings, problems = parse(part.settings, data, owner=owner, provider=catalogue().provider("stage", kind))
        allow = node.get(KEY)
        allowed, wrong = read_allowed(allow.plain() if allow is not None else None)
        for problem in [*problems, *wrong]:
            self.recipe.stage_problem(name, problem)
        if settings is None:
            return None
        uses = self._ask(name, part.uses, settings=settings) if part.uses else []
        makes = self._ask(name, part.makes, settings=settings) if part.makes else None
        rows = [Use(at, reference, "dataset") for at, reference in references(settings)]
        named = self._ask(name, _uses, uses=uses) if uses else ()
        return PlannedStage(name, part, settings, (*(named or ()), *rows), makes, allowed)

    def _ask(self, stage: str, function: Callable[..., Any], **arguments: Any) -> Any:
        """Call a function of the stage's kind; a UserError of it becomes a problem, anything else names the plugin."""
        try:
            return call_named(function, **arguments)
        except UserError as error:
            self.recipe.stage_problem(stage, as_problem(error))
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
                for problem in configuration_problems(new.plain()):
                    self.recipe.problems.append((root.place_of(("model", *problem.at)), problem))
            if used and written is None:
                hint = "write `model: PATH`, a hub id, or `model: {new: {model_type: ...}, tokenizer: NAME}`"
                problem = Problem(f"the recipe needs `model`: stage '{used[0].name}' starts from it", (), (hint,))
                self.recipe.problems.append((root.place, problem))
            return
        problems = [p.under("model") for p in model_problems(model, self.recipe.home)]
        for problem in problems:
            self.recipe.problems.append((root.place_of(problem.at), problem))
        self.base_is_sound = not problems
        self.base_kind = "policy"
        if model.path is not None and not problems:
            try:
                trusted = model.trust_remote_code
                self.base_kind = kind_at(model.path, self.recipe.home, fetch=self.fetch, trusted=trusted)
            except UserError as error:
                self.recipe.problems.append((root.place_of(("model",)), as_problem(error)))
                self.base_kind, self.base_is_sound = None, False

    def _check_use(self, stage: str, use: Use, earlier: list[str]) -> bool:
        """One reference: it must lead to something that is there by then, of the kind that is needed. Tells if so."""
        reference, names = use.reference, list(self.recipe.stages)
        made: str | None = None
        problem: Problem | None = None
        if reference == "input":
            return True
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
            problem = path_problem(reference, self.recipe.home, use.at, names)
            try:
                made = None if problem else kind_at(reference, self.recipe.home, fetch=self.fetch)
            except UserError as error:
                problem = as_problem(error, use.at)
        fits = made == use.kind or (use.kind == "model" and made != "dataset")
        if problem is None and made and use.kind and not fits:
            problem = Problem(f"'{reference}' is {_WHAT.get(made, made)}, but {_WHAT[use.kind]} is needed here", use.at)
        if problem is not None:
            at = _written_at(self.recipe.stages[stage], use)
            self.recipe.stage_problem(stage, Problem(problem.message, at, problem.hints))
        return problem is None

    # --- what the stage kind itself knows ---

    def _check_inside(self, stage: PlannedStage) -> None:
        for problem in self.own.problems(stage.settings):
            self.recipe.stage_problem(stage.name, problem)
        if stage.part.check is None:
            return
        tokenizer = self._tokenizer(stage)
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

    def _is_known(self, stage: PlannedStage) -> bool:
        """Whether what the stage goes on from can be looked at: a base model with mistakes is told once."""
        root = self.models.root(stage.own.reference) if stage.own else None
        return root is not None and (root != "base" or (self.base_is_sound and self.recipe.model is not None))

    def _tokenizer(self, stage: PlannedStage) -> Any:
        """The tokenizer that the stage's model will bring; None where it is not known yet."""
        own = stage.own
        root = self.models.root(own.reference) if own else None
        if own is None or root is None or not self._is_known(stage):
            return None
        if root != "base" and path_problem(root, self.recipe.home, own.at, []):
            return None
        try:
            return self.models.tokenizer(root)
        except UserError as error:
            if root == "base":
                self.recipe.problems.append((self.recipe.root.place_of(("model",)), as_problem(error)))
            elif own.reference == root:
                self.recipe.stage_problem(stage.name, as_problem(error, own.at))
            return None


def _uses(uses: Iterable[Iterable[Any]]) -> tuple[Use, ...]:
    """What a stage kind says that it uses."""
    return tuple(_use(*use) for use in uses)


def _stage_references(node: Node, at: tuple[str | int, ...] = ()) -> list[Use]:
    """Every `stage:NAME` that is written anywhere in a stage."""
    return [Use(path, text, None) for path, text in _texts(node, at) if text.startswith("stage:")]


def _written_at(node: Node, use: Use) -> tuple[str | int, ...]:
    """Where the reference itself stands, of a part that names it somewhere in its settings."""
    part = node
    for key in use.at:
        inner = part.get(key) if isinstance(key, str) else part.entry(key)
        if inner is None:
            return use.at
        part = inner
    return next((at for at, text in _texts(part, use.at) if text == use.reference), use.at)


def _texts(node: Node, at: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """(path of keys, text) of every text below a node."""
    if isinstance(node.value, str):
        yield at, node.value
    elif isinstance(node.value, (dict, list)):
        for key, child in node.items() if isinstance(node.value, dict) else enumerate(node.value):
            yield from _texts(child, (*at, key))


def _earlier_hint(earlier: list[str]) -> tuple[str, ...]:
    return (
        (f"earlier stages: {', '.join(earlier)}",)
        if earlier
        else ("no stage comes earlier; `base` is the recipe's model",)
    )


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
