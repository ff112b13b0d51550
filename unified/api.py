"""For notebooks and programs: train, run a recipe, look at coefficients, with Python values for settings.

    made = unified.train(ALGORITHM, model="folder", data=[{"prompt": ..., "completion": ...}], learning_rate=1e-5)
    made.summary, made.metrics(), made.load()

Everything goes the way of the command line: the same checks, run folders, manifests and lineage. Imports no torch
before something is trained or looked at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unified.errors import UserError

if TYPE_CHECKING:
    from unified.coefficient_tool import Examined

#: in a run's folder, what was handed over from memory
GIVEN = "given"


@dataclass(frozen=True)
class Made:
    """What a stage left behind.

    folder: of the stage. model: the folder of its model, a Hugging Face checkpoint; None where it makes none.
    summary: its numbers, those of held-out rows with `eval/` in front.
    """

    folder: Path
    model: Path | None
    summary: dict[str, Any]

    def metrics(self) -> list[dict[str, Any]]:
        """A mapping for each line of metrics.jsonl, in order; [] for a stage that writes none."""
        file = self.folder / "metrics.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        return [json.loads(line) for line in lines]

    def load(self) -> Any:
        """The model as a transformers module in float32. UserError where the stage makes none."""
        artifact = self._artifact()
        return artifact.load(artifact.kind)

    def tokenizer(self) -> Any:
        """The tokenizer that travels with the model. UserError where the stage makes none."""
        return self._artifact().tokenizer()

    def _artifact(self) -> Any:
        from unified.models import artifact_at

        if self.model is None:
            raise UserError(f"the stage in {self.folder} makes no model")
        return artifact_at(self.model)


def train(
    algorithm: str,
    *,
    model: Any,
    data: Any,
    tokenizer: Any = None,
    output: Path | str | None = None,
    quiet: bool = True,
    **settings: Any,
) -> Made:
    """Train a model with one algorithm, as `unified train` does.

    Args:
        algorithm: its name.
        model: a folder, a hub id, a mapping {"new": {...}, "tokenizer": NAME}, what `train` or `run` gave, or a
            transformers module, which is left as it is.
        data: rows as mappings (their columns are those of a format, see docs/data.md), or what a recipe may write: a
            name, a file, a mapping with `name`.
        tokenizer: of a module.
        output: the run folder; without, runs/train-ALGORITHM. What is done there with the same settings, model and
            rows is not done again.
        settings: of the stage (`learning_rate`, `max_steps`, `reward`, ...), of the algorithm, `seed`, `threads`;
            values as in a recipe.
    Returns:
        The trained model's folder and what was measured.
    Raises:
        UserError: whatever `unified check` finds, all of it in one message; nothing is trained then.
        PluginError: a plugin raised.
    """
    from unified.recipe import one_stage_recipe

    folder = Path(output) if output is not None else Path("runs") / f"train-{algorithm}"
    sets = [f"{key}={_text(value)}" for key, value in settings.items()]
    recipe = one_stage_recipe(algorithm, _text(_model(model, tokenizer, folder)), _text(_data(data, folder)), sets)
    (made,) = _run(recipe, folder, quiet).values()
    return made


def run(
    recipe: Path | str | Mapping[str, Any],
    *,
    sets: Sequence[str] = (),
    profile: str | None = None,
    output: Path | str | None = None,
    quiet: bool = True,
) -> dict[str, Made]:
    """Run a recipe: what each stage left behind, by name, in order.

    Args:
        recipe: a file, or a recipe as a mapping, whose relative paths start at the working folder.
        sets: KEY=VALUE texts as for `--set`. profile: laid over the recipe. output: the run folder; without, runs/NAME.
    Raises:
        UserError: whatever `unified check` finds, all of it in one message; nothing is run then.
        PluginError: a plugin raised.
    """
    from unified.recipe import assemble, load_recipe
    from unified.tree import Place, located

    if isinstance(recipe, Mapping):
        root = located(json.loads(_text(recipe)), Place("the recipe"))
        read = assemble(root, source="the recipe", home=Path.cwd(), overrides=sets, profile=profile)
    else:
        read = load_recipe(Path(recipe), sets, profile)
    return _run(read, Path(output) if output is not None else None, quiet)


def coefficients(algorithm: str, batch: Mapping[str, Any], **settings: Any) -> Examined:
    """What an algorithm does to each token of a batch of numbers; no model is needed.

    Args:
        algorithm: its name.
        batch: fields by name as lists or tensors: `logp` [batch, time] nats, `reward` [batch] or [batch, time], `group`
            [batch] int, `ref_logp`, `loss_mask`, ...
        settings: of the algorithm, or of its term: weight, on, aggregation, constant_length.
    Returns:
        `.coefficient` and `.weighted` per head, [batch, time]: GC, and weight · w · GC, which stands before the
        gradient of the head; `.weight` [batch], the weight of a token; `.loss`, NaN where the algorithm declares none.
    Raises:
        UserError: a batch that lacks what the algorithm reads, a setting that it has not.
    """
    from unified.coefficient_tool import examine

    return examine(algorithm, batch, [f"{key}={_text(value)}" for key, value in settings.items()])


def _run(recipe: Any, output: Path | None, quiet: bool) -> dict[str, Made]:
    from unified.console import RunConsole
    from unified.runner import run_recipe

    outcomes = run_recipe(recipe, output, console=RunConsole(silent=quiet))
    return {
        o.manifest.name: Made(o.folder, o.folder / o.manifest.model if o.manifest.model else None, o.manifest.summary)
        for o in outcomes
    }


def _text(value: Any) -> str:
    """A value as YAML, of which JSON is a part; a path as its text, what a stage made as its model."""

    def other(item: Any) -> Any:
        if isinstance(item, Made):
            return str(_model(item, None, Path()))
        if isinstance(item, Path):
            return str(item)
        raise UserError(f"{item!r} cannot stand in a recipe", "give numbers, texts, lists, mappings or paths")

    return json.dumps(value, ensure_ascii=False, default=other)


def _model(model: Any, tokenizer: Any, folder: Path) -> Any:
    """A model as a recipe names it; one in memory is written into the run folder first."""
    if isinstance(model, Made):
        if model.model is None:
            raise UserError(f"the stage in {model.folder} makes no model")
        return str(model.model.absolute())
    if isinstance(model, (str, Path, Mapping)):
        return model
    if not hasattr(model, "save_pretrained"):
        raise UserError(
            f"{type(model).__name__} is no model", "give a folder, a hub id, a mapping, or a transformers module"
        )
    if tokenizer is None:
        raise UserError("a model in memory needs its tokenizer", "give tokenizer=...")
    from unified.models import save_model

    place = (folder / GIVEN / "model").absolute()
    save_model(model, tokenizer, place)
    return str(place)


def _data(data: Any, folder: Path) -> Any:
    """Data as a recipe names it; rows in memory are written into the run folder first."""
    if isinstance(data, (str, Path, Mapping)):
        return data
    rows = list(data)
    wrong = next((row for row in rows if not isinstance(row, Mapping)), None)
    if wrong is not None or not rows:
        what = "there are no rows" if not rows else f"a row is a mapping of columns, not {wrong!r}"
        raise UserError(what, 'for example {"prompt": "1+1=", "completion": "2"}; docs/data.md lists the formats')
    from unified.manifest import write_whole

    file = (folder / GIVEN / "rows.jsonl").absolute()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, "".join(f"{_text(dict(row))}\n" for row in rows))
    return str(file)
