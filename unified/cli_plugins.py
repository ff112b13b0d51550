"""The commands for people who write plugins: `unified plugin new`, `check`, `list`, and `unified schema`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from unified.names import completes
from unified.saying import said_plainly

plugin = typer.Typer(help="Write, check and list plugins.", no_args_is_help=True, rich_markup_mode=None)

Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; may be given again.")
]


@plugin.command("new")
def plugin_new(
    name: Annotated[str, typer.Argument(help="The part's name in recipes, and the module's: small letters, _.")],
    kind: Annotated[
        str, typer.Option("--kind", help="algorithm, dataset, engine, filter, format, reward, source or stage.")
    ],
    into: Annotated[Path, typer.Option("--into", help="The folder that the package is put in.")] = Path(),
) -> None:
    """Write an installable package with one part that works: a module, its tests, pyproject.toml, a README.

    Example: unified plugin new my_algorithm --kind algorithm
    """
    with said_plainly():
        from unified.plugin_new import new_plugin

        folder = new_plugin(name, kind, into)
        module = name.replace("-", "_")
        typer.echo(f"{folder} is a package with the {kind} '{name}': change {module}.py and tests/test_{module}.py")
        typer.echo(f"Next: cd {folder} && pip install -e . && python -m pytest && unified plugin check {name}")


@plugin.command("check")
def plugin_check(
    name: Annotated[
        str,
        typer.Argument(
            help="A part that `unified list` shows, or a plugin: all of its parts.", autocompletion=completes()
        ),
    ],
    sets: Sets = None,
) -> None:
    """Run parts through the contract that every plugin keeps; exit code 1 when something breaks it.

    Example: unified plugin check my_algorithm --set scale=2
    """
    with said_plainly():
        from rich.console import Console

        from unified.plugin_tool import check_parts

        if not check_parts(Console(highlight=False), name, sets or ()):
            raise typer.Exit(1)


@plugin.command("list")
def plugin_list(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the installed plugins: package, version, where it lies, and what it offers.

    Example: unified plugin list --json
    """
    with said_plainly():
        from unified.as_json import print_json
        from unified.plugin_tool import origins, print_origins

        found = origins()
        if as_json:
            print_json([origin.as_dict() for origin in found])
        else:
            from rich.console import Console

            print_origins(Console(highlight=False), found)


def schema() -> None:
    """Print the JSON schema of recipes, complete with the installed plugins, for editors.

    Example: unified schema > recipe.schema.json
    """
    with said_plainly():
        from unified.json_schema import recipe_schema

        typer.echo(json.dumps(recipe_schema(), indent=2, ensure_ascii=False))
