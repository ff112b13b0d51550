"""What `unified lens` does: pictures that a run has kept, or of rows, or of the built-in example, for a page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unified.errors import Problem, UserError
from unified.lens.pack import page_data
from unified.lens.page import write_page
from unified.lens.picture import Picture
from unified.recipe import paths_as_files
from unified.settings import Chosen, Settings, choice, parse
from unified.tree import Node, Place, read_yaml

if TYPE_CHECKING:
    from unified.models import Artifact

PAGE = "lens.html"


@dataclass
class Wish:
    """What a person wants to see; texts as they were written. See `unified lens --help`."""

    model: str | None = None
    data: str | None = None
    example: str | None = None
    algorithms: Sequence[str] = ()
    reference: str | None = None
    old: str | None = None
    teacher: str | None = None
    reward: str | None = None
    rows: int = 4
    split: str = "train"
    samples: int = 4
    max_tokens: int = 64
    trusted: bool = False
    say: Callable[[str], None] = field(default=lambda _: None)


class _Parts(Settings):
    """What the command line names, as a recipe would."""

    data: Chosen | None = choice("dataset", None, description="rows")
    reward: Chosen | None = choice("reward", None, description="judges the answers")
    algorithms: list[Chosen] = choice("algorithm", [], description="looked at")


@dataclass
class Found:
    """Pictures by stage ("" for those of a command), and what stands above them."""

    strips: dict[str, list[Picture]]
    title: str
    about: list[str] = field(default_factory=list)

    def as_json(self) -> str:
        """All numbers, with all their digits."""
        strips = {name: [picture.as_dict() for picture in pictures] for name, pictures in self.strips.items()}
        return json.dumps({"title": self.title, "about": self.about, "pictures": strips}, ensure_ascii=False)

    def write(self, path: Path) -> None:
        """The page."""
        write_page(path, page_data(self.strips, self.title, self.about))


def find(wish: Wish) -> Found:
    """The pictures. UserError with what is wrong, and what to do."""
    if wish.data is not None and wish.example is not None:
        raise UserError("give --data or --example, not both")
    if wish.data is None and wish.example is None:
        return _kept(wish)
    return _looked(wish)


def _kept(wish: Wish) -> Found:
    """The pictures that a run has kept while it trained."""
    from unified.lens.read import pictures_of_run

    if wish.model is None:
        raise UserError("there is nothing to look at", "give a run, or a model with --data, or --example credit")
    if wish.algorithms:
        raise UserError("which rows?", "give --data FILE beside --algorithm, or --example credit")
    folder = Path(wish.model)
    if not folder.is_dir():
        raise UserError(f"there is no folder {wish.model}", "of a model with a hub id, give --data and --algorithm")
    if not any((folder / name).is_file() for name in ("run.json", "lens.jsonl")):
        raise UserError(f"{folder} is no run", "of a model, give --data FILE and --algorithm NAME")
    strips, about = {}, []
    for name, (pictures, unreadable) in pictures_of_run(folder).items():
        strips[name] = pictures
        about.append(f"{name}: {len(pictures)} pictures, of steps {pictures[0].step} to {pictures[-1].step}")
        if unreadable:
            about[-1] += f"; {unreadable} lines of lens.jsonl could not be read"
    return Found(strips, str(folder), about)


def _looked(wish: Wish) -> Found:
    """Algorithms on rows."""
    from unified.lens.compare import Asked, all_algorithms, answered, compare, in_memory
    from unified.lens.example import example_rows, tiny_model
    from unified.lens.of_run import Standing, standing

    parts = _parts(wish)
    if wish.model is not None:
        stands = standing(wish.model, trusted=wish.trusted)
    elif wish.example is not None:
        stands = Standing(tiny_model(wish.example))
    else:
        raise UserError("which model?", "give a run, a model folder or a hub id in front of --data")
    algorithms = parts.algorithms or _of_stage(stands.settings)
    if not algorithms and wish.example is None:
        raise UserError("which algorithms?", "give --algorithm NAME once or more; `unified list algorithms` shows them")
    data = parts.data or in_memory(example_rows(str(wish.example)))
    reward = parts.reward or (stands.settings.reward if stands.settings and wish.example is None else None)
    given = stands.reference if wish.reference is None else _model(wish.reference, wish)
    asked = Asked(
        stands.model, algorithms or all_algorithms(), given, _model(wish.old, wish), _model(wish.teacher, wish), reward,
        models=lambda name: standing(name, trusted=wish.trusted).model, say=wish.say,
    )  # fmt: skip
    how: dict[str, Any] = {"rows": wish.rows, "samples": wish.samples, "max_tokens": wish.max_tokens}
    groups, tokenizer, notes = answered(asked, data, split=wish.split, **how)
    picture = compare(asked, groups, tokenizer)
    picture.notes[:0] = notes
    named = wish.reference or (stands.reference_name and f"{stands.reference_name} (of the run)")
    models: Mapping[str, str | None] = {"model": wish.model or "tiny, with random weights", "reference": named,
                                        "old policy": wish.old, "teacher": wish.teacher, "rows": wish.data,
                                        "example": wish.example}  # fmt: skip
    about = [", ".join(f"{what}: {name}" for what, name in models.items() if name)]
    return Found({"": [picture]}, f"{wish.example or Path(str(wish.data)).name}: what each token is given", about)


def _of_stage(settings: Any) -> list[Chosen]:
    """The algorithms of a training stage."""
    if settings is None:
        return []
    return [t.algorithm for t in settings.terms] or [settings.algorithm]


def _model(reference: str | None, wish: Wish) -> Artifact | None:
    from unified.found_model import find_model

    return None if reference is None else find_model(reference).artifact(trusted=wish.trusted)


def _parts(wish: Wish) -> _Parts:
    """The parts that were named, with every mistake at once."""
    problems: list[tuple[Place, Problem]] = []

    def node(option: str, text: str) -> Node:
        return read_yaml(text, f"{option} {text}", problems, lines=False)

    place = Place("unified lens")
    root: dict[str, Node] = {}
    if wish.data is not None:
        root["data"] = node("--data", wish.data)
    if wish.reward is not None:
        root["reward"] = node("--reward", wish.reward)
    root["algorithms"] = Node([node("--algorithm", text) for text in wish.algorithms], place)
    tree = paths_as_files(Node(root, place), _Parts, Path.cwd())
    parts, found = parse(_Parts, tree.plain(), owner="the command")
    problems += [(tree.place_of(p.at), p) for p in found]
    if problems:
        raise UserError("\n".join(problem.text(str(at)) for at, problem in problems))
    assert isinstance(parts, _Parts)
    return parts
