"""The command `lens`. Imports no torch before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unified.names import completes
from unified.saying import said_plainly


def lens(
    model: Annotated[
        str | None, typer.Argument(help="A run (its last model), a stage, a model folder, or a hub id.")
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="Rows: a file, a name, or {name: ..., ...}.")] = None,
    example: Annotated[str | None, typer.Option("--example", help="Rows that come with it: credit.")] = None,
    algorithm: Annotated[
        list[str] | None,
        typer.Option(
            "--algorithm",
            help="A name, or {name: ..., SETTING: ...}; again for more.",
            autocompletion=completes("algorithm"),
        ),
    ] = None,
    reference: Annotated[str | None, typer.Option("--reference", help="Without: the run's, or the model.")] = None,
    old: Annotated[str | None, typer.Option("--old", help="The model that sampled the answers.")] = None,
    teacher: Annotated[str | None, typer.Option("--teacher", help="The model that is distilled.")] = None,
    reward: Annotated[
        str | None, typer.Option("--reward", help="Judges; without: the rows'.", autocompletion=completes("reward"))
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="The first so many.")] = 4,
    split: Annotated[str, typer.Option("--split", help="train or held_out.")] = "train",
    samples: Annotated[int, typer.Option("--samples", min=1, help="Answers to a row without any.")] = 4,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Of these, the longest.")] = 64,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page.")] = Path("lens.html"),
    trust: Annotated[bool, typer.Option("--trust-remote-code", help="Run Python beside the weights.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers; no page.")] = False,
) -> None:
    """See what training does to each token: one HTML page, algorithms side by side, and a view at the terminal.

    Of a run alone: the pictures it kept while it trained (`lens_steps`), with a slider over the steps.

    Example: unified lens --example credit
    """
    with said_plainly():
        from rich.console import Console

        from unified.lens.command import Wish, find
        from unified.lens.terminal import show

        found = find(
            Wish(model, data, example, algorithm or (), reference, old, teacher, reward, rows, split, samples,
                 max_tokens, trust, lambda line: typer.echo(line, err=True))
        )  # fmt: skip
        if as_json:
            typer.echo(found.as_json())
            return
        found.write(output)
        console = Console(highlight=False)
        for name, pictures in found.strips.items():
            if name:
                console.print(f"{name}, step {pictures[-1].step}, the last of {len(pictures)} pictures", markup=False)
            show(console, pictures[-1])
        typer.echo(output)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(lens)
