"""Writes the tables of settings and parts in docs/ from the code: `python -m tests.docs.tables`; a test compares them.

A table stands between `<!-- table: WHAT -->` and `<!-- end -->`, with WHAT one of
    settings recipe | settings recipe FIELD           the keys of a recipe file, or those nested in one of them
    settings block | settings block FIELD             those of a block of stages
    settings expectation                              those of an entry of `expect`
    settings KIND NAME | settings KIND NAME FIELD     the settings of a part, or those nested in one of them
    parts KIND                                        the built-in parts of a kind, with their settings
    rules                                             for every kind of rule what it may name, as its plugin says, and
                                                      the built-in ones
    speed                                             how many times as fast as TRL, as `make bench` found it
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

from tests.docs.snippets import PAGES, ROOT
from unified.expect import Expectation
from unified.parts import KINDS
from unified.recipe import RecipeFile
from unified.registry import catalogue
from unified.rounds import BlockSettings
from unified.settings import Settings, describe_fields, nested_settings
from unified.show import first_line

TABLE = re.compile(r"(<!-- table: (?P<what>[^>]+?) -->\n).*?(<!-- end -->)", re.S)


def settings_table(cls: type[Settings]) -> str:
    """One row per setting: name, type, default, meaning."""
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, kind, default, meaning in describe_fields(cls):
        if nested_settings(cls, name)[0] is not None:
            kind, default = kind.replace("settings", "mapping"), "[]" if default == "[]" else "see below"
        kind = re.sub(r"Literal\[(.*?)\]", lambda m: m[1].replace("'", "`"), kind)
        kind = kind.replace(" | None", "").replace(" | ", " or ").replace("typing.", "")
        default = "–" if default == "None" else default or '""'
        rows.append(f"| `{name}` | {kind} | {default} | {meaning} |".replace("<", "&lt;"))
    return "\n".join(rows)


def parts_table(kind: str) -> str:
    """One row per built-in part of a kind: name, what it is, settings with their defaults."""
    rows = [f"| {kind} | what it is | settings |", "|---|---|---|"]
    for name in catalogue().names(kind):
        if not catalogue().provider(kind, name).startswith("plugin unified_plugins."):
            continue
        part: Any = catalogue().get(kind, name)
        about = first_line(kind, part).replace("|", "\\|")
        settings = ", ".join(
            f"`{n}`"
            if default in ("None", "required") or len(default) > 60
            else f"`{n}: {default!s}`".replace("\n", "\\n")
            for n, _, default, _ in describe_fields(part.settings)
        )
        rows.append(f"| `{name}` | {about} | {settings or '–'} |")
    return "\n".join(rows)


def rule_kinds() -> list[str]:
    """The kinds of rules of which there is one."""
    return [kind for kind in catalogue().kinds() if kind not in KINDS]


def said_of_rules(kind: str) -> tuple[str, str]:
    """What the built-in plugins say of a kind of rule: in one line, and the paragraph on what it may name.

    KeyError where no module of a rule of that kind has a paragraph that begins `A rule of kind "KIND" may name`.
    """
    for name in catalogue().names(kind):
        plugin = catalogue().manager.get_plugin(catalogue().provider(kind, name).removeprefix("plugin "))
        for paragraph in re.split(r"\n\s*\n", inspect.getdoc(plugin) or ""):
            at = paragraph.find(f'A rule of kind "{kind}" may name')
            if at >= 0:
                return (inspect.getdoc(plugin) or "").partition("\n")[0], paragraph[at:]
    raise KeyError(f"no plugin says what a rule of kind '{kind}' may name")


def rules() -> str:
    """A section for every kind of rule."""
    parts = []
    for kind in rule_kinds():
        title, names = said_of_rules(kind)
        parts.append(f"### {kind}\n\n{title}\n\n{names}\n\n{parts_table(kind)}\n")
    return "\n" + "\n".join(parts)


#: (case of the benchmarks, what it is called on a page)
SPEED = (
    ("sft", "SFT"), ("rm", "reward model"), ("dpo-128-128", "DPO, 128 tokens to prompts of 128"),
    ("dpo-256-64", "DPO, 64 tokens to prompts of 256"), ("grpo-64", "GRPO, 8 x 64 tokens to prompts of 64"),
    ("grpo-256", "GRPO, 8 x 64 tokens to prompts of 256"), ("rollout", "sampling alone, 8 x 64 tokens"),
)  # fmt: skip


def speed() -> str:
    """One row per case: how many times as fast as TRL with 5M and 30M weights, and the memory of a step beside it."""
    rows = ["| | 5M weights | 30M weights | memory of a step, 30M |", "|---|---:|---:|---:|"]
    for case, name in SPEED:
        small, large = (
            json.loads((ROOT / "benchmarks" / "results" / f"{case}-{model}.json").read_text())
            for model in ("5m", "30m")
        )
        times = [f"{found['ratios']['trl']['cpu']['median']:.1f}" for found in (small, large)]
        rows.append(f"| {name} | {times[0]} | {times[1]} | {large['peak']['ours'] / large['peak']['trl']:.2f} |")
    return "\n".join(rows)


def made(what: str) -> str:
    """The table that WHAT names. KeyError or UserError where it names nothing."""
    words = what.split()
    if what in ("rules", "speed"):
        return {"rules": rules, "speed": speed}[what]()
    if words[0] == "parts":
        return parts_table(words[1])
    named = {"recipe": RecipeFile, "block": BlockSettings, "expectation": Expectation}
    if words[1] in named:
        cls: Any = named[words[1]]
        rest = words[2:]
    else:
        cls, rest = catalogue().get(words[1], words[2]).settings, words[3:]
    for field in rest:
        cls = nested_settings(cls, field)[0]
    return settings_table(cls)


def renewed(text: str) -> str:
    """The page with its tables as they should be."""
    return TABLE.sub(lambda m: f"{m[1]}{made(m['what'])}\n{m[3]}", text)


def tables(page: Path) -> list[str]:
    """What the tables of a page are of."""
    return [m["what"] for m in TABLE.finditer(page.read_text(encoding="utf-8"))]


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")
