"""The command line: run, check, train, list, show, data, plugin, ... Imports no torch before a command needs it."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unified import __version__, cli_lens, cli_models, cli_plugins, cli_report
from unified.collection import no_collection
from unified.names import completes, completes_kinds
from unified.saying import leave, said_plainly

if TYPE_CHECKING:
    from unified.recipe import Recipe

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(cli_plugins.plugin, name="plugin")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"unified {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Post-training of language models: recipes of stages, algorithms as plugins."""


Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; may be given again.")
]
Output = Annotated[Path | None, typer.Option("--output", help="The run folder. Without: runs/NAME.")]
Profile = Annotated[str | None, typer.Option("--profile", help="Lay this profile of the recipe over it.")]
Force = Annotated[bool, typer.Option("--force", help="Use a run folder that holds another run.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but the table at the end.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Launch = Annotated[
    str | None,
    typer.Option("--launch", metavar="CONFIG", help="Processes: gpus, fsdp2, zero3, cpu, ... or an accelerate file."),
]


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe file (YAML).")],
    output: Output = None,
    sets: Sets = None,
    profile: Profile = None,
    force: Force = False,
    quiet: Quiet = False,
    launch: Launch = None,
) -> None:
    """Run the stages of a recipe; go on where it was cut off.

    Stages that are done, and whose settings and inputs have not changed, are skipped.

    Example: unified run recipes/quickstart.yaml --set seed=1
    """
    with said_plainly():
        if launch is not None:
            from unified.launch import launch as start
            from unified.launch import written

            given = {"--output": output, "--set": sets, "--profile": profile, "--force": force, "--quiet": quiet}
            raise typer.Exit(start(launch, ["run", *written(given), "--", str(recipe)]))
        from unified.recipe import load_recipe

        _run(load_recipe(recipe, sets or (), profile), output, force=force, quiet=quiet)


@app.command()
def check(
    recipe: Annotated[Path, typer.Argument(help="A recipe file (YAML).")],
    sets: Sets = None,
    profile: Profile = None,
    as_json: Json = False,
) -> None:
    """Find everything that is wrong with a recipe.

    No model is loaded and no file is written.

    Example: unified check recipes/quickstart.yaml
    """
    with said_plainly(), no_collection():
        from unified.as_json import of_check, of_problems, print_json
        from unified.check import check_recipe
        from unified.errors import UserError
        from unified.recipe import load_recipe
        from unified.unverified import not_yet_verified

        read = load_recipe(recipe, sets or (), profile)
        try:
            plan = check_recipe(read)
        except UserError:
            if as_json and read.problems:
                print_json(of_problems(read))
            raise
        if as_json:
            print_json(of_check(plan, not_yet_verified(plan)))
            return
        for stage in plan.stages:
            typer.echo(stage.describe())
        for what in not_yet_verified(plan):
            typer.echo(f"not yet verified: {what} (on the hub; a check fetches nothing)")
        typer.echo("recipe is fine")


@app.command()
def train(
    algorithm: Annotated[
        str, typer.Argument(help="See: unified list algorithms", autocompletion=completes("algorithm"))
    ],
    model: Annotated[str, typer.Option("--model", help="A model folder, a hub id, or {new: ..., tokenizer: ...}.")],
    data: Annotated[str, typer.Option("--data", help="A dataset by name, a file, or {name: ..., SETTING: ...}.")],
    output: Output = None,
    sets: Sets = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Run one training stage without a recipe file.

    --set takes settings of the stage or of the algorithm.

    Example: unified train ALGORITHM --model runs/quickstart/first/model --data rows.jsonl --set learning_rate=1e-5
    """
    with said_plainly():
        from unified.recipe import one_stage_recipe

        _run(one_stage_recipe(algorithm, model, data, sets or ()), output, force=force, quiet=quiet)


@app.command()
def status(run: Annotated[Path, typer.Argument(help="The folder of a run.")], as_json: Json = False) -> None:
    """Tell how far a run is: which stages are done, running, cut off, or no longer fit the recipe; and its warnings.

    Example: unified status runs/quickstart
    """
    with said_plainly():
        from rich.console import Console

        from unified.as_json import of_status, print_json
        from unified.status import print_status, status_of

        if as_json:
            print_json(of_status(status_of(run)))
        else:
            print_status(Console(highlight=False), status_of(run))


@app.command()
def plan(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe file (YAML); none with --scaling.")] = None,
    output: Output = None,
    sets: Sets = None,
    profile: Profile = None,
    hardware: Annotated[
        str | None, typer.Option("--hardware", help="For example 8xH100, or 8xFILE.yaml; adds times.")
    ] = None,
    launch: Annotated[
        str | None, typer.Option("--launch", help="With --hardware: how state is shared, as in run; fsdp2, zero3, ...")
    ] = None,
    servers: Annotated[
        str | None, typer.Option("--servers", help="With --hardware: devices that sample apart, 4xH100.")
    ] = None,
    scaling: Annotated[
        str | None,
        typer.Option("--scaling", help="Ask the scaling law of pretraining: data, model, budget or loss."),
    ] = None,
    parameters: Annotated[str | None, typer.Option("--parameters", help="With --scaling: a model, 7B.")] = None,
    tokens: Annotated[str | None, typer.Option("--tokens", help="With --scaling: training tokens, 1.4T.")] = None,
    larger: Annotated[str | None, typer.Option("--larger", help="With --scaling loss: another model, 70B.")] = None,
    gpu_days: Annotated[float | None, typer.Option("--gpu-days", help="With --scaling budget, and --hardware.")] = None,
    as_json: Json = False,
) -> None:
    """Tell what a recipe would run, why, and what it costs.

    Steps, tokens, operations, memory by part; on --hardware time, where it goes, and how many servers would sample for
    the trainer. Nothing is run and no weights are loaded.

    Example: unified plan recipes/quickstart.yaml --hardware 8xH100 --launch fsdp2
    """
    with said_plainly():
        from unified.plan import tell

        law = {"parameters": parameters, "tokens": tokens, "larger": larger, "gpu_days": gpu_days}
        where = {"hardware": hardware, "launch": launch, "servers": servers}
        tell(recipe, sets or (), profile, output, **where, scaling=scaling, law=law, as_json=as_json)


@app.command()
def lineage(
    path: Annotated[Path, typer.Argument(metavar="RUN_OR_MODEL", help="A run, one of its stages, or a model.")],
    as_json: Json = False,
) -> None:
    """Tell where a model came from: every stage back to the start, with data, seeds, versions and hashes.

    Example: unified lineage runs/quickstart
    """
    with said_plainly():
        from unified.as_json import of_lineage, print_json
        from unified.lineage import lineage as found
        from unified.lineage import render

        ancestors = found(path)
        if as_json:
            print_json(of_lineage(ancestors))
            return
        for line in render(ancestors):
            typer.echo(line)


@app.command("list")
def list_(
    kind: Annotated[
        str | None, typer.Argument(help="algorithms, datasets, rewards, stages, ...", autocompletion=completes_kinds)
    ] = None,
    as_json: Json = False,
) -> None:
    """List the parts that are installed, by kind.

    Example: unified list rewards
    """
    with said_plainly():
        from rich.console import Console

        from unified.as_json import print_json
        from unified.show import list_parts, parts_listed

        if as_json:
            print_json(parts_listed(kind))
        else:
            list_parts(Console(highlight=False), kind)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A part that `unified list` shows.", autocompletion=completes())],
    kind: Annotated[str | None, typer.Option("--kind", help="Where several kinds have a part of that name.")] = None,
    as_json: Json = False,
) -> None:
    """Show one part: formula, source, settings with defaults.

    Example: unified show constant --kind reward
    """
    with said_plainly():
        from rich.console import Console

        from unified.as_json import print_json
        from unified.show import part_shown, show_part

        if as_json:
            print_json(part_shown(name, kind))
        else:
            show_part(Console(highlight=False), name, kind)


@app.command()
def coefficients(
    algorithm: Annotated[
        str, typer.Argument(help="See: unified list algorithms", autocompletion=completes("algorithm"))
    ],
    batch: Annotated[Path, typer.Option("--batch", help="A JSON file with logp, loss_mask, reward, ... as tables.")],
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Compute what an algorithm does to each token of numbers.

    Printed are the coefficient per head, the weight of each token, and the named loss. No model is loaded.

    Example: unified coefficients ALGORITHM --batch pair.json --set beta=1
    """
    with said_plainly():
        from unified.as_json import print_json
        from unified.coefficient_tool import as_text, examine, read_batch

        examined = examine(algorithm, read_batch(batch), sets or ())
        if as_json:
            print_json(examined.as_dict())
        else:
            typer.echo(as_text(examined))


@app.command()
def data(
    file: Annotated[str, typer.Argument(help="A file, a folder, a hub id, or {name: ..., SETTING: ...}.")],
    format: Annotated[str | None, typer.Option("--format", help="How a row is read. Without: by its columns.")] = None,
    columns: Annotated[
        list[str] | None, typer.Option("--columns", metavar="WANTED=COLUMN", help="Rename one; may be given again.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="A model folder or hub id, for its tokenizer.")] = None,
    max_length: Annotated[int | None, typer.Option("--max-length", min=1, help="Tokens; without: the model's.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="train or held_out, as a stage; without: all.")] = None,
    rows: Annotated[int, typer.Option("--rows", min=0, help="How many rows are shown.")] = 3,
    as_json: Json = False,
) -> None:
    """Tell what a dataset is taken for, what is in it, and how its rows look to a model.

    Format and columns, rows that would be left out or cut, lengths, repeated rows. Nothing is trained.

    Example: unified data rows.jsonl --model runs/quickstart/first/model
    """
    with said_plainly():
        from rich.console import Console

        from unified.as_json import print_json
        from unified.data_page import show as show_page
        from unified.data_tool import look

        found = look(
            file, format=format, columns=columns or (), model=model, max_length=max_length, split=split, rows=rows
        )
        if as_json:
            print_json(found)
        else:
            show_page(Console(highlight=False), found)


app.command()(cli_plugins.schema)
cli_models.register(app)
cli_report.register(app)
cli_lens.register(app)


def _run(recipe: Recipe, output: Path | None, *, force: bool, quiet: bool) -> None:
    from unified.console import RunConsole
    from unified.errors import PluginError
    from unified.report.command import after_run
    from unified.runner import StoppedError, run_folder, run_recipe
    from unified.team import Team

    console = RunConsole(silent=quiet)
    try:
        outcomes = run_recipe(recipe, output, force=force, console=console)
    except StoppedError as error:
        if not Team().main:
            raise typer.Exit(error.code) from None
        after_run(run_folder(recipe, output), console.say)
        leave(f"stopped in stage {error}; run the same command again to go on", error.code)
    except PluginError:
        if Team().main:
            after_run(run_folder(recipe, output), console.say)
        raise
    if Team().main:
        console.table(outcomes, run_folder(recipe, output))
        after_run(run_folder(recipe, output), console.say)
        if recipe.expect is not None:
            from unified.expect import check_expectations

            for finding in check_expectations(recipe, run_folder(recipe, output)):
                typer.echo(finding.text())


def main(arguments: list[str] | None = None) -> Any:
    """Entry point of the commands `unified` and `python -m unified`."""
    # transformers imports bitsandbytes wherever it is installed, which then says what it lacks, asked for or not
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return app(args=arguments, prog_name="unified")
    try:  # one of several: a thread of their group that is not done yet aborts the interpreter as it cleans up
        app(args=arguments, prog_name="unified")
        code = 0
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else int(done.code is not None)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
