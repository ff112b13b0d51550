"""Runs the stages of a recipe in order, each in its folder; skips what is done, goes on with what was cut off."""

from __future__ import annotations

import json
import shutil
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unified.check import Plan, PlannedStage, check_recipe
from unified.console import RunConsole
from unified.disk import full_disk, is_full, space_for, sync, sync_tree
from unified.drafts import draft_of
from unified.edges import goes_back_to
from unified.errors import PluginError, UserError
from unified.interrupt import exit_code, stopped_by_signals
from unified.lock import RunLock
from unified.made import files_of, resolved
from unified.manifest import (
    FINGERPRINT,
    MANIFEST,
    Manifest,
    chosen_parts,
    drop_results,
    has_checkpoint,
    is_ours,
    links_out,
    outputs_of,
    read_manifest,
    stage_folder,
    versions,
    write_whole,
)
from unified.recipe import Recipe, after_stage
from unified.registry import call_named, catalogue
from unified.secret import masked
from unified.stage import ModelSettings, StageContext, StageResult, pushed_folder
from unified.team import LOST, Team
from unified.unverified import not_yet_verified

if TYPE_CHECKING:
    from unified.models import Artifact

RUN_FILE = "run.json"
#: in a run's folder, what may be computed again and is quicker read
CACHE = ".cache"


class StoppedError(Exception):
    """The user stopped the run in the stage that the message names. code: 130 after Ctrl-C, 143 after SIGTERM."""

    def __init__(self, stage: str, code: int = 130) -> None:
        super().__init__(stage)
        self.code = code


@dataclass(frozen=True)
class Outcome:
    """A stage that is done: `fresh` tells whether it ran now, or was there already."""

    manifest: Manifest
    folder: Path
    fresh: bool


def run_recipe(
    recipe: Recipe, output: Path | None = None, *, force: bool = False, console: RunConsole | None = None
) -> list[Outcome]:
    """Check a recipe and run its stages; `output` is the run folder (runs/NAME without).

    Configurations and tokenizers of models of the hub are fetched and checked before the first stage works. Raises
    UserError for mistakes (nothing is written for those that the check finds, there too), PluginError for a plugin that
    raised, StoppedError after Ctrl-C or SIGTERM.
    """
    plan = check_recipe(recipe)
    team = Team()
    console = console or RunConsole()
    console.silent = console.silent or not team.main
    runner = _Runner(plan, run_folder(recipe, output), team, console, force)
    runner.verify()
    runner.open_folder()
    with RunLock(runner.output) if team.main else nullcontext() as lock:
        if lock is not None and lock.note:
            console.say(lock.note)
        runner.describe()
        if recipe.threads is not None:
            import torch

            torch.set_num_threads(recipe.threads)
        with console, stopped_by_signals(), space_for("the run", runner.output):
            runner.run()
    team.close()
    return runner.outcomes


def run_folder(recipe: Recipe, output: Path | None) -> Path:
    """Where a run goes: the folder that was asked for, or one under runs/ by its name."""
    return output or Path("runs") / recipe.run_name


@dataclass
class _Runner:
    plan: Plan
    output: Path
    team: Team
    console: RunConsole
    force: bool
    outcomes: list[Outcome] = field(default_factory=list)

    def open_folder(self) -> None:
        """Make the run folder; UserError when it holds the run of another recipe."""
        file = self.output / RUN_FILE
        name = self.plan.recipe.run_name
        if self.output.exists() and not self.output.is_dir():
            raise UserError(f"{self.output} is a file; a run needs a folder", "give another one with --output")
        if file.is_file() and not self.force:
            other = _read_json(file).get("run")
            if other != name:
                raise UserError(
                    f"{self.output} holds the run of recipe '{other}', this is '{name}'",
                    "give another folder with --output, or --force to put this run in its place",
                )
        if outside := links_out(self.output):
            raise UserError(f"{outside[0]} is a link that leads out of the run folder", "remove it, or use --output")
        self.team.wait()
        if self.team.main:
            try:
                self.output.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"{self.output} cannot be made: {error.strerror}", "give another --output") from error
        self.team.wait()

    def verify(self) -> None:
        """Check what the hub holds, too, by configurations and tokenizers; not where every stage has a result."""
        stages, remote = self.plan.stages, any(what.startswith("model ") for what in not_yet_verified(self.plan))
        if remote and any(read_manifest(stage_folder(self.output, stage.name)) is None for stage in stages):
            self.plan = check_recipe(self.plan.recipe, fetch=True)

    def describe(self) -> None:
        """Write down which recipe this is the run of, as it is run."""
        if self.team.main:
            recipe = self.plan.recipe
            about: dict[str, Any] = {"run": recipe.run_name, "recipe": recipe.source, "home": str(recipe.home)}
            about |= {"profile": recipe.profile, "sets": list(recipe.overrides), "stages": list(recipe.stages)}
            about |= {"resolved": recipe.root.plain()}
            write_whole(self.output / RUN_FILE, masked(json.dumps(about, indent=2, default=str)) + "\n")
        self.team.wait()

    def run(self) -> None:
        """Every stage in order; a block ends early once its `until` holds."""
        number = 0
        while number < len(self.plan.stages):
            stage = self.plan.stages[number]
            number += 1
            self.stage(stage, number)
            self._end_block(stage.name)

    def _end_block(self, name: str) -> None:
        """Plan anew with fewer rounds where the stage ends one after which its block has nothing more to do."""
        summaries = {o.manifest.name: o.manifest.summary for o in self.outcomes}
        shorter = after_stage(self.plan.recipe, name, summaries)
        if shorter is None:
            return
        block, number, _ = name.split(".")
        of = self.plan.recipe.blocks[block].repeat
        self.console.say(f"{block}: its `until` holds after round {number} of {of}; no more rounds")
        self.plan = check_recipe(shorter)
        self.describe()

    def stage(self, stage: PlannedStage, number: int) -> None:
        """Reuse, resume or run one stage."""
        folder = stage_folder(self.output, stage.name)
        made = {o.manifest.name: (o.manifest, o.folder) for o in self.outcomes}
        draft = draft_of(self.plan.recipe, stage, made)
        done = read_manifest(folder)
        if done is not None and done.fingerprint == draft.fingerprint:
            if outputs_of(folder) == done.outputs:
                self.console.skipped(stage.name, "done already, nothing that it depends on has changed")
                self.outcomes.append(Outcome(done, folder, fresh=False))
                return
            self.console.say(f"{stage.name}: its result was changed or is incomplete; it is made again")
        resumes = done is None and _text(folder / FINGERPRINT) == draft.fingerprint
        went_on = resumes and has_checkpoint(folder)
        self.team.wait()  # nobody may look at the folder any more when the main process changes it
        if self.team.main:
            if resumes:
                drop_results(folder)  # what a run that was killed had begun to write
            else:
                self._clear(stage.name, folder, done)
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / FINGERPRINT, draft.fingerprint)
        self.team.wait()
        self.console.stage_begins(stage.name, number, len(self.plan.stages), stage.describe(), resumes=went_on)
        try:
            result = self._run(stage, folder, draft)
            self.team.wait()  # another process may still be writing, or ask an engine
        finally:
            if self.team.main:
                shutil.rmtree(pushed_folder(self.output / CACHE, stage.name), ignore_errors=True)
        if self.team.main:
            _finish(draft, result, folder)
        self.team.wait()
        if not self.team.main:
            draft = read_manifest(folder) or draft
        self.outcomes.append(Outcome(draft, folder, fresh=True))
        self._tell("stage_finished", {"stage": stage.name, "folder": str(folder), "summary": draft.summary})
        self.console.stage_ends(stage.name, draft.seconds)

    def _clear(self, name: str, folder: Path, done: Manifest | None) -> None:
        """Take away what an earlier run left. Files of unknown origin stop the run, unless it is forced."""
        if not folder.exists():
            return
        if not folder.is_dir():
            raise UserError(f"{folder} is a file; stage '{name}' needs a folder", "give another folder with --output")
        made = {path.partition("/")[0] for path in done.outputs} if done else set()
        foreign = [e.name for e in sorted(folder.iterdir()) if not is_ours(e.name) and e.name not in made]
        ours_at_all = (folder / FINGERPRINT).exists() or done is not None
        if not ours_at_all:
            foreign = [e.name for e in sorted(folder.iterdir())]
        if foreign and not self.force:
            raise UserError(
                f"{folder} holds files that no earlier run is known to have written: {', '.join(foreign[:5])}",
                "move them away, give another folder with --output, or --force to delete them",
            )
        if done is not None:
            self.console.say(f"{name}: its settings or inputs have changed; the earlier result is replaced")
        (folder / MANIFEST).unlink(missing_ok=True)  # first, so that a half-cleared folder never looks finished
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def _run(self, stage: PlannedStage, folder: Path, draft: Manifest) -> StageResult:
        recipe = self.plan.recipe
        at = {"step": 0}

        def progress(step: int, steps: int, metrics: Mapping[str, float]) -> None:
            at["step"] = step
            self.console.progress(step, steps, metrics)

        def notify(event: str, **told: Any) -> None:
            self._tell(event, told)

        told_how = (notify, progress, self.console.say)
        where = (folder, recipe.home, recipe.seed, self._artifact)
        context = StageContext(stage.name, *where, *told_how, cache=self.output / CACHE)
        algorithms = [c.name for c in chosen_parts(stage.settings) if c.part.kind == "algorithm"]
        told = {"kind": stage.part.name, "algorithms": algorithms, "steps": getattr(stage.settings, "max_steps", None)}
        draft.started = datetime.now(UTC).isoformat(timespec="seconds")
        begin = time.monotonic()
        with self._named(stage, folder, at):
            self._tell("stage_started", {"stage": stage.name, "folder": str(folder), "plan": told})
            result = call_named(stage.part.run, stage=context, settings=resolved(stage.settings, self._dataset))
            if not isinstance(result, StageResult):
                who = catalogue().provider("stage", stage.part.name)
                raise PluginError(f"{who}: stage kind '{stage.part.name}' must return a StageResult, not {result!r}")
        draft.seconds = round(time.monotonic() - begin, 3)
        draft.finished = datetime.now(UTC).isoformat(timespec="seconds")
        draft.summary = result.summary
        draft.versions = versions()
        artifact = result.artifact
        if artifact is not None and artifact.path is not None and Path(artifact.path).is_relative_to(folder):
            draft.model, draft.model_kind = str(Path(artifact.path).relative_to(folder)), artifact.kind
        draft.dataset = result.dataset
        return result

    @contextmanager
    def _named(self, stage: PlannedStage, folder: Path, at: Mapping[str, int]) -> Iterator[None]:
        """Say of whatever is raised in which stage and step; what is nobody's mistake is kept with its traceback."""
        where = f"stage '{stage.name}'"
        try:
            yield
        except KeyboardInterrupt as error:
            raise StoppedError(stage.name, exit_code(error)) from error
        except BrokenPipeError:  # whoever read the output has gone; nobody's mistake
            raise
        except UserError as error:
            raise error if str(error).startswith(where) else UserError(f"{where}: {error}") from error
        except Exception as error:
            full = is_full(error)
            if full is not None:
                raise full_disk(f"what {where} writes", full, folder) from error
            after = f", after step {at['step']}" if at["step"] else ""
            if self.team.lost_another(error):
                raise PluginError(f"{where}{after}: {LOST}") from error
            text = masked("".join(traceback.format_exception(error)))
            (folder / "error.log").write_text(text, encoding="utf-8")  # of several processes any may be the one
            who = catalogue().provider("stage", stage.part.name)
            what = str(error) if isinstance(error, PluginError) else f"{who} raised {type(error).__name__}: {error}"
            head = "" if what.startswith(f"{where}, step ") else f"{where}{after}: "
            what = head + what.removeprefix(f"{where}: ")
            raise PluginError(f"{what}\n    the traceback is in {folder / 'error.log'}") from error

    def _artifact(self, reference: str) -> Artifact:
        """The model behind a reference; a new one is built afresh each time, because a stage may train it in place."""
        from unified.models import artifact_at, base_artifact

        recipe = self.plan.recipe
        if reference.startswith("stage:"):
            name = reference.removeprefix("stage:")
            made = next((o for o in self.outcomes if o.manifest.name == name), None)
            if made is None or made.manifest.model is None:
                raise UserError(f"stage '{name}' has made no model")
            trusted = recipe.model is not None and recipe.model.trust_remote_code
            trusted = trusted and goes_back_to(reference, {s.name: s for s in self.plan.stages}) == "base"
            return artifact_at(made.folder / made.manifest.model, trusted=trusted)
        if reference == "base":
            if recipe.model is None:
                raise UserError("the recipe has no `model`")
            return base_artifact(recipe.model, recipe.home, recipe.seed)
        return base_artifact(ModelSettings(path=reference, new=None, tokenizer=None), recipe.home, recipe.seed)

    def _dataset(self, reference: str) -> dict[str, Any]:
        """How the dataset behind `stage:NAME` is read: settings of `files`, with paths that hold anywhere."""
        name = reference.removeprefix("stage:")
        made = next((o for o in self.outcomes if o.manifest.name == name), None)
        if made is None or made.manifest.dataset is None:
            raise UserError(f"stage '{name}' has made no dataset")
        return files_of(made.manifest.dataset, made.folder)

    def _tell(self, event: str, told: Mapping[str, Any]) -> None:
        """Tell every plugin; one that raises is named."""
        hook = getattr(catalogue().manager.hook, event)
        try:
            hook(**told)
        except Exception as error:
            frames = {frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)}
            names = [i.plugin_name for i in hook.get_hookimpls() if getattr(i.function, "__code__", None) in frames]
            step = f", step {told['step']}" if "step" in told else ""
            raise PluginError(
                f"plugin '{', '.join(names) or 'unknown'}' raised in {event} (stage '{told.get('stage')}'{step}): "
                f"{type(error).__name__}: {error}"
            ) from error


def _finish(draft: Manifest, result: StageResult, folder: Path) -> None:
    """Write the manifest once its files are on the disk, then drop the checkpoints that nobody will resume from."""
    draft.outputs = outputs_of(folder)
    for name in {path.partition("/")[0] for path in draft.outputs}:
        (sync_tree if (folder / name).is_dir() else sync)(folder / name)
    draft.write(folder)
    for entry in folder.glob("checkpoint*"):
        if entry.is_dir():
            shutil.rmtree(entry)


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
