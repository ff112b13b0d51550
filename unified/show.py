"""The pages of `unified list` and `unified show`: which parts there are, and all that is known of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from unified.errors import UserError, unknown_name
from unified.parts import KINDS, Algorithm, NoSettings, Part, StageKind
from unified.registry import catalogue
from unified.settings import Settings, describe_fields, nested_settings


def kind_named(word: str) -> str:
    """The kind of part that a person means: singular or plural. UserError with the known kinds otherwise."""
    kinds = sorted({*catalogue().kinds(), *(k for k in KINDS if k != "rule")})
    for kind in kinds:
        if word in (kind, plural(kind)):
            return kind
    found = unknown_name("kind of part", word, [plural(kind) for kind in kinds])
    raise UserError(found.message, *found.hints)


def plural(kind: str) -> str:
    """The word for several parts of a kind."""
    return kind if kind.endswith(("s", "kl")) else f"{kind}s"


def list_parts(console: Console, word: str | None = None) -> None:
    """Print every part (of one kind): its name, what it is in one line, and the plugin of those not built in."""
    kinds = [kind_named(word)] if word else catalogue().kinds()
    for kind in kinds:
        names = catalogue().names(kind)
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        for name in names:
            part = catalogue().get(kind, name)
            provider = catalogue().provider(kind, name)
            strange = "" if provider.startswith("plugin unified_plugins.") else f"  ({provider})"
            table.add_row(Text(f"  {name}"), Text(first_line(kind, part) + strange))
        console.print(Text(plural(kind), style="bold"))
        console.print(table if names else Text("  none installed"))
    if not word:
        console.print(Text("More of one: unified show NAME"))


def parts_listed(word: str | None = None) -> dict[str, list[dict[str, str]]]:
    """For a program: kind -> every part of it by name, with its first line and its plugin."""
    kinds = [kind_named(word)] if word else catalogue().kinds()
    return {kind: [_listed(kind, name) for name in catalogue().names(kind)] for kind in kinds}


def _listed(kind: str, name: str) -> dict[str, str]:
    provider = catalogue().provider(kind, name).removeprefix("plugin ")
    return {"name": name, "summary": first_line(kind, catalogue().get(kind, name)), "plugin": provider}


def doc_of(kind: str, part: Part) -> str:
    """What a part says of itself; where its settings are the engine's own, what its plugin says."""
    if part.settings.__module__.startswith("unified."):
        plugin = catalogue().manager.get_plugin(catalogue().provider(kind, part.name).removeprefix("plugin "))
        if plugin is not None and part.settings is not NoSettings:
            return (plugin.__doc__ or "").strip()
    return part.doc().strip()


def first_line(kind: str, part: Part) -> str:
    """The first line of what a part says of itself."""
    return next((line.strip() for line in doc_of(kind, part).splitlines() if line.strip()), "")


def find_part(name: str, kind: str | None = None) -> tuple[str, Part]:
    """(kind, part) of that name. UserError where there is none, or several kinds have one and none is named."""
    kinds = [kind_named(kind)] if kind else catalogue().kinds()
    found = [(k, part) for k in kinds if (part := catalogue().find(k, name)) is not None]
    if len(found) > 1:
        having = ", ".join(k for k, _ in found)
        raise UserError(
            f"several parts are called '{name}': {having}", f"say which: unified show {name} --kind {found[0][0]}"
        )
    if not found:
        known = sorted({n for k in kinds for n in catalogue().names(k)})
        problem = unknown_name(kinds[0] if kind else "part", name, known)
        raise UserError(problem.message, *problem.hints)
    return found[0]


def show_part(console: Console, name: str, kind: str | None = None) -> None:
    """Print the page of one part: what it is, its formula and source, how it weighs and reads, and its settings."""
    of, part = find_part(name, kind)
    console.print(Text(f"{of} {name}", style="bold"))
    console.print(Text(f"from {catalogue().provider(of, name)}", style="dim"))
    console.print()
    console.print(Text(doc_of(of, part) or "(its plugin says nothing about it)"))
    console.print()
    for label, value in facts(part):
        console.print(Text(f"{label}: {value}"))
    _print_settings(console, part.settings, f"settings of {of} {name}")


def part_shown(name: str, kind: str | None = None) -> dict[str, Any]:
    """For a program: the page of one part. Settings that hold settings have them under `settings`."""
    of, part = find_part(name, kind)
    about = {"kind": of, **_listed(of, name), "about": doc_of(of, part), "facts": dict(facts(part))}
    return {**about, "settings": _settings_shown(part.settings)}


def _settings_shown(cls: type[Settings]) -> list[dict[str, Any]]:
    nested = nested_fields(cls)
    return [
        {"name": key, "type": of, "default": default, "meaning": meaning}
        | ({"settings": _settings_shown(nested[key])} if key in nested else {})
        for key, of, default, meaning in describe_fields(cls)
    ]


def facts(part: Part) -> list[tuple[str, str]]:
    """What the declaration itself tells, in words; what depends on settings is told for the defaults."""
    if isinstance(part, StageKind):
        return [("used in a recipe as", f"kind: {part.name}")]
    if not isinstance(part, Algorithm):
        return []
    settings = _defaults(part.settings)
    given = ["coefficient" if part.coefficient else "", "loss" if part.loss else "", "credit" if part.credit else ""]
    given.append("distribution" if part.distribution else "")
    out = [("gives", ", ".join(filter(None, given)))]
    if settings is not None or not callable(part.scope):
        scope = part.scope_of(settings)  # type: ignore[arg-type]
        out.append(("scope", f"{scope} (how far an answer's coefficient looks)"))
    if settings is not None or not callable(part.aggregation):
        pushed = part.aggregations(settings)  # type: ignore[arg-type]
        out.append(("pushes", ", ".join(f"{head} weighed by {how}" for head, how in pushed.items())))
    for label, names in (("reads", part.reads), ("credit reads", part.credit_reads)):
        if callable(names) and settings is None:
            continue
        read = names(settings) if callable(names) else names
        if read:
            out.append((label, ", ".join(sorted(read))))
    out.append(("answers from", f"source {part.source}"))
    judged = "the recipe must name one" if part.reward == "required" else part.reward
    return [*out, ("reward", judged), ("answers per prompt", f"{part.answers} or more")]


def _defaults(cls: type[Settings]) -> Settings | None:
    """The settings with nothing set; None where some must be given."""
    try:
        return cls()
    except ValueError:
        return None


def _print_settings(console: Console, cls: type[Settings], title: str) -> None:
    """A table of settings; those of nested settings follow in tables of their own."""
    if cls is NoSettings or not cls.model_fields:
        console.print(Text("no settings"))
        return
    table = Table(title=Text(title), title_justify="left")
    table.add_column("setting", no_wrap=True)  # it is what a person types
    for heading in ("type", "default", "meaning"):
        table.add_column(heading)
    for row in describe_fields(cls):
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    for key, inner in nested_fields(cls).items():
        _print_settings(console, inner, f"{key}:")


def nested_fields(cls: type[Settings]) -> Mapping[str, type[Settings]]:
    """The fields of settings that hold settings, with their class."""
    found: dict[str, Any] = {key: nested_settings(cls, key)[0] for key in cls.model_fields}
    return {key: inner for key, inner in found.items() if inner is not None}
