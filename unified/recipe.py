"""Recipes: a YAML file with a model and named stages in order; profiles and `--set` lay changes over it.

name: tiny            description: optional
model: PATH, hub id, or {new: {model_type: ...}, tokenizer: DATASET}
seed: 0               threads: optional
defaults: {...}       laid under every stage, where its kind knows the key
stages: {NAME: {kind: train, ...}}, or {NAME: {repeat: 3, stages: {...}}}, see rounds.py
profiles: {NAME: {...}}   laid over the recipe with `--profile NAME`
expect: kept as it is
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unified.edges import KEY as ALLOW
from unified.errors import Problem, UserError, did_you_mean, shown, unknown_name
from unified.made import STAGE
from unified.registry import catalogue
from unified.rounds import Block, expand, is_block
from unified.secret import MASK, masked, secrets_in
from unified.settings import Field, Settings, choice_kind, nested_settings, parse
from unified.stage import ModelSettings
from unified.tree import Node, Place, located, merge, parse_override, read_yaml

#: names of stages and recipes are names of folders, too
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_NAME_ADVICE = ("use letters, digits, - and _, beginning with a letter or digit",)
#: words that a model reference may be, so that no stage may be called so
RESERVED = ("base", "input")
DEFAULT_KIND = "train"


class RecipeFile(Settings):
    """The keys of a recipe file."""

    name: str = Field(description="of the run; its folder is called so")
    description: str | None = Field(None, description="what the recipe shows, for readers")
    model: ModelSettings | None = Field(
        None, description="what `base` is: a folder, a hub id, or {new: ..., tokenizer: ...}"
    )
    seed: int = Field(0, ge=0, description="of everything random in the run")
    threads: int | None = Field(None, ge=1, description="CPU threads of torch; without, torch decides")
    defaults: dict[str, Any] = Field({}, description="settings laid under those of every stage")
    stages: dict[str, dict[str, Any]] = Field(
        description="stages by name, in the order in which they run, or blocks of stages with `repeat`"
    )
    profiles: dict[str, dict[str, Any]] = Field({}, description="changes by name, chosen with --profile")
    expect: Any = Field(None, description="what the results must be, for tests")

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        """A model may be written as a path or hub id alone."""
        model = data.get("model")
        return {**data, "model": {"path": model}} if isinstance(model, str) else data


@dataclass
class Recipe:
    """A recipe as read: overrides and defaults are merged in, stages are not yet typed.

    source: how messages call the recipe; home: the folder against which relative paths are read; stages: the settings
    of each stage with their places, those of rounds one by one; blocks: what these were written as; problems: what is
    already known to be wrong; overrides: the `--set` texts; secrets: texts that no message may hold.
    """

    source: str
    home: Path
    root: Node
    name: str = "recipe"
    profile: str | None = None
    model: ModelSettings | None = None
    seed: int = 0
    threads: int | None = None
    expect: Any = None
    stages: dict[str, Node] = field(default_factory=dict)
    blocks: dict[str, Block] = field(default_factory=dict)
    problems: list[tuple[Place, Problem]] = field(default_factory=list)
    overrides: tuple[str, ...] = ()
    secrets: frozenset[str] = frozenset()

    @property
    def run_name(self) -> str:
        """What the run is called: the recipe's name, with the profile's where one was chosen."""
        return f"{self.name}-{self.profile}" if self.profile else self.name

    def stage_problem(self, stage: str, problem: Problem) -> None:
        """Note a problem whose path of keys starts in a stage."""
        said = Problem(f"stage '{stage}': {problem.message}", problem.at, problem.hints)
        self.problems.append((self.stages[stage].place_of(problem.at), said))

    def problem_texts(self) -> list[str]:
        """Every problem once, by line, without secrets; one under `defaults` is not repeated for every stage."""
        seen: dict[tuple[Place, str], str] = {}
        for place, problem in sorted(self.problems, key=lambda item: (item[0].line == 0, item[0].line)):
            same = (place, re.sub(r"^stage '[^']*': ", "", problem.message))
            seen.setdefault(same, problem.text(str(place)))
        return [self._without_secrets(text) for text in seen.values()]

    def problem_list(self) -> list[dict[str, Any]]:
        """The same problems for a program: {"file", "line", "message", "hints"}; line from 1, None where unknown."""
        seen: dict[tuple[Place, str], dict[str, Any]] = {}
        for place, problem in sorted(self.problems, key=lambda item: (item[0].line == 0, item[0].line)):
            same = (place, re.sub(r"^stage '[^']*': ", "", problem.message))
            hints = [self._without_secrets(hint) for hint in problem.hints]
            about = {"message": self._without_secrets(problem.message), "hints": hints}
            seen.setdefault(same, {"file": place.source, "line": place.line or None, **about})
        return list(seen.values())

    def _without_secrets(self, text: str) -> str:
        for secret in sorted(self.secrets, key=len, reverse=True):
            text = text.replace(secret, MASK)
        return masked(text)


def load_recipe(path: Path, overrides: Iterable[str] = (), profile: str | None = None) -> Recipe:
    """Read a recipe file and lay the profile and the `--set` texts over it.

    What is wrong inside the recipe is in `problems`; UserError is raised for a file that cannot be read at all.
    """
    problems: list[tuple[Place, Problem]] = []
    root = read_yaml(_text_of(path), str(path), problems)
    if not isinstance(root.value, dict):
        raise UserError(f"{root.place}: a recipe is a mapping with `name`, `model` and `stages`")
    return assemble(
        root, source=str(path), home=path.absolute().parent, overrides=overrides, profile=profile, problems=problems
    )


def assemble(
    root: Node,
    *,
    source: str,
    home: Path,
    overrides: Iterable[str] = (),
    profile: str | None = None,
    problems: list[tuple[Place, Problem]] | None = None,
) -> Recipe:
    """A Recipe from its tree; `problems` are those that reading it has already shown."""
    problems, overrides = [] if problems is None else problems, list(overrides)
    written, secret = root.get("profiles"), list(secrets_in(root))
    profiles = {
        n: _clean_overlay(root, node, f"profile '{n}': ", problems) for n, node in (written.items() if written else ())
    }
    problems += [
        (node.place, Problem(f"'{name}' cannot be the name of a profile", (), _NAME_ADVICE))
        for name, node in (written.items() if written else ())
        if not NAME.fullmatch(name)
    ]
    if profile is not None and profile not in profiles:
        problems.append((Place(f"--profile {profile}"), unknown_name("profile", profile, profiles)))
    elif profile is not None:
        root = merge(root, profiles[profile], is_part=False)
    for text in overrides:
        overlay = _clean_overlay(root, parse_override(text, problems), "", problems)
        secret += secrets_in(overlay)
        root = merge(root, overlay, is_part=False)
    problems += [(place, problem) for place, _, problem in secret]
    recipe = Recipe(source, home, root, profile=profile, problems=problems, overrides=tuple(overrides))
    recipe.secrets = frozenset(text for _, text, _ in secret)
    _read_head(recipe)
    _read_stages(recipe)
    return recipe


def shortened(recipe: Recipe, block: str, rounds: int) -> Recipe:
    """The same recipe with fewer rounds of a block: what is left to do when the block has ended early."""
    place = recipe.root.place_of(("stages", block))
    fewer = located({"stages": {block: {"repeat": rounds}}}, place)
    root = merge(recipe.root, fewer, is_part=False)
    made = Recipe(recipe.source, recipe.home, root, profile=recipe.profile, overrides=recipe.overrides)
    _read_head(made)
    _read_stages(made)
    return made


def after_stage(recipe: Recipe, name: str, summaries: Mapping[str, Mapping[str, Any]]) -> Recipe | None:
    """The recipe that is left to run where the block that this stage ends has nothing more to do; None otherwise.

    summaries: of the stages that are done, by full name. UserError for a metric that was not measured.
    """
    for block in recipe.blocks.values():
        last = block.round_ended_by(name)
        if last is not None and last < block.repeat and block.is_met(last, summaries):
            return shortened(recipe, block.name, last)
    return None


def one_stage_recipe(algorithm: str, model: str, data: str, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe of `unified train`: one training stage, without a file; paths are read against the working folder.

    `overrides` are KEY=VALUE of the stage, of its algorithm, or of the recipe (seed, threads).
    """
    part: Any = catalogue().get("algorithm", algorithm)
    kind: Any = catalogue().get("stage", DEFAULT_KIND)
    problems: list[tuple[Place, Problem]] = []
    name = re.sub(r"[^A-Za-z0-9_-]", "-", algorithm)
    place = Place(f"unified train {algorithm}")
    stage = {
        "algorithm": Node({"name": Node(algorithm, place)}, place),
        "data": read_yaml(data, f"--data {data}", problems, lines=False),
    }
    root = located({"name": f"train-{name}", "stages": {}}, place)
    root.value["model"] = read_yaml(model, f"--model {model}", problems, lines=False)
    root.value["stages"] = Node({name: Node(stage, place)}, place)
    for text in overrides:
        change = parse_override(text, problems)
        key = next(iter(change.value))
        of_stage, of_part = set(kind.settings.model_fields), set(part.settings.model_fields)
        if key in ("seed", "threads"):
            root = merge(root, change, is_part=False)
            continue
        if key not in of_stage and did_you_mean(key, of_stage | of_part) in of_part - of_stage:
            change = Node({"algorithm": change}, change.place)
        root = merge(root, Node({"stages": Node({name: change}, change.place)}, change.place), is_part=False)
    return assemble(root, source=f"unified train {algorithm}", home=Path.cwd(), problems=problems)


def _text_of(path: Path) -> str:
    if path.is_dir():
        inside = sorted(p.name for p in path.glob("*.y*ml"))
        raise UserError(f"{path} is a folder, not a recipe", f"recipes in it: {', '.join(inside) or 'none'}")
    if not path.exists():
        around = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        near = did_you_mean(path.name, around)
        where = "recipes are YAML files; relative paths start at"
        hint = f"did you mean '{path.parent / near}'?" if near else f"{where} {Path.cwd()}"
        raise UserError(f"there is no recipe {path}", hint)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _clean_overlay(root: Node, overlay: Node, what: str, problems: list[tuple[Place, Problem]]) -> Node:
    """The changes without those that are refused: new stages (a misspelt name would make one), and profiles."""
    if not isinstance(overlay.value, dict):
        problems.append((overlay.place, Problem(f"{what}must be a mapping of changes, not {shown(overlay.plain())}")))
        return replace(overlay, value={})
    clean = dict(overlay.value)
    stages, changed = root.get("stages"), overlay.get("stages")
    if changed is not None and isinstance(changed.value, dict):
        clean["stages"] = _known_stages(stages, changed, what, "the recipe", problems)
    if "profiles" in clean:
        place = clean.pop("profiles").place
        problems.append((place, Problem(f"{what}profiles cannot be changed here", (), ("change the recipe",))))
    return replace(overlay, value=clean)


def _known_stages(
    stages: Node | None, changed: Node, what: str, owner: str, problems: list[tuple[Place, Problem]]
) -> Node:
    """The changes to stages that are there, also to those in blocks; the others are problems."""
    kept = {}
    for name, node in changed.items():
        written = stages.get(name) if stages else None
        if written is None:
            found = unknown_name("stage", name, [known for known, _ in stages.items()] if stages else [])
            problems.append((node.place, Problem(f"{what}{found.message} in {owner}", (), found.hints)))
            continue
        inner = node.get("stages")
        if is_block(written) and inner is not None and isinstance(inner.value, dict):
            below = _known_stages(written.get("stages"), inner, what, f"block '{name}'", problems)
            node = replace(node, value={**node.value, "stages": below})
        kept[name] = node
    return replace(changed, value=kept)


def _read_head(recipe: Recipe) -> None:
    """Everything but the stages: name, model, seed, threads."""
    data = recipe.root.plain()
    made, found = parse(RecipeFile, data, owner="the recipe")
    recipe.problems += [(recipe.root.place_of(p.at), p) for p in found]
    name = data.get("name")
    if isinstance(name, str) and not NAME.fullmatch(name):
        recipe.problems.append(
            (recipe.root.place_of(("name",)), Problem(f"'{name}' cannot be the name of a run", (), _NAME_ADVICE))
        )
    if made is None:  # nothing will run; the model is still wanted to check the stages against
        model = RecipeFile.prepare(data).get("model")
        recipe.model = parse(ModelSettings, model, owner="model")[0] if isinstance(model, Mapping) else None
        recipe.seed = data["seed"] if isinstance(data.get("seed"), int) else 0
        return
    recipe.name, recipe.model, recipe.seed = made.name, made.model, made.seed
    recipe.threads, recipe.expect = made.threads, made.expect


def _read_stages(recipe: Recipe) -> None:
    """Each stage's settings with the defaults under them; bad names are noted."""
    stages = recipe.root.get("stages")
    if stages is not None and stages.value in ({}, None):
        recipe.problems.append((stages.place, Problem("the recipe has no stages")))
    for name, node in stages.items() if stages else ():
        inner = node.get("stages") if is_block(node) else None
        for each, place in [
            (name, node.place),
            *((key, child.place) for key, child in (inner.items() if inner else ())),
        ]:
            _check_stage_name(recipe, each, place)
    nodes, recipe.blocks = expand(stages, recipe.problems)
    defaults = recipe.root.get("defaults") or located({}, recipe.root.place)
    known = {name: _keys_of_kind(kind_of(node, defaults)) for name, node in nodes.items()}
    _check_defaults(recipe, defaults, known)
    for name, node in nodes.items():
        under = {key: value for key, value in defaults.items() if key in known[name]}
        merged = replace(merge(Node(under, node.place), node, is_part=False), place=node.place)
        part: Any = catalogue().find("stage", kind_of(merged, defaults))
        recipe.stages[name] = paths_as_files(merged, part.settings, recipe.home) if part else merged


def _check_stage_name(recipe: Recipe, name: str, place: Place) -> None:
    if name in RESERVED:
        why = f"a stage cannot be called '{name}': in a model reference the word has a meaning of its own"
        recipe.problems.append((place, Problem(why)))
    elif not NAME.fullmatch(name):
        recipe.problems.append((place, Problem(f"'{name}' cannot be the name of a stage", (), _NAME_ADVICE)))


def kind_of(stage: Node, defaults: Node | None = None) -> str:
    """The kind of stage that a stage's settings name."""
    written = stage.get("kind") or (defaults.get("kind") if defaults else None)
    return str(written.plain()) if written else DEFAULT_KIND


def _keys_of_kind(kind: str) -> set[str]:
    part = catalogue().find("stage", kind)
    return {"kind", ALLOW, *part.settings.model_fields} if part else {"kind"}


def _check_defaults(recipe: Recipe, defaults: Node, known: dict[str, set[str]]) -> None:
    """A default that no stage of the recipe knows is a mistake, said once."""
    keys = set().union(*known.values())
    if any(names == {"kind"} for names in known.values()):
        return  # a stage of an unknown kind might know it; that kind is reported by the check
    for key, node in defaults.items():
        if key not in keys:
            found = unknown_name("setting in defaults", key, keys)
            problem = Problem(
                f"no setting '{key}' in any stage kind of this recipe, so not in `defaults`", (), found.hints
            )
            recipe.problems.append((node.place, problem))


def paths_as_files(node: Node, cls: type[Settings], home: Path) -> Node:
    """The same settings with `data: rows.jsonl` written out as `data: {name: files, path: rows.jsonl}`."""
    if not isinstance(node.value, dict):
        return node
    out = dict(node.value)
    for key, child in node.value.items():
        if key not in cls.model_fields:
            continue
        kind, many = choice_kind(cls, key)
        nested, many_nested = nested_settings(cls, key)
        if (many or many_nested) and isinstance(child.value, list):
            out[key] = replace(child, value=[_value_with_files(item, kind, nested, home) for item in child.value])
        else:
            out[key] = _value_with_files(child, kind, nested, home)
    return replace(node, value=out)


def _value_with_files(node: Node, kind: str | None, nested: type[Settings] | None, home: Path) -> Node:
    if kind == "dataset" and isinstance(node.value, str):
        known = catalogue().find("dataset", node.value) is not None
        of_stage = node.value.startswith(STAGE)  # what a stage makes is a file as well
        looks_like_path = of_stage or "/" in node.value or Path(node.value).suffix != "" or (home / node.value).exists()
        return node if known or not looks_like_path else located({"name": "files", "path": node.value}, node.place)
    if nested is not None:
        return paths_as_files(node, nested, home)
    name = node.get("name") if kind else None
    part = catalogue().find(kind, str(name.value)) if kind and name else None
    return paths_as_files(node, part.settings, home) if part else node
