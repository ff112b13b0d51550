"""The reference in docs/ names every hook, every function of every part, every kind of rule, and nothing else."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import fields
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import yaml

from tests.docs.snippets import ROOT, Snippet, snippets
from tests.docs.tables import rule_kinds, said_of_rules
from unified import Batch, call_named, catalogue
from unified.aggregation import CONSTANT_IN_GROUP, Counts, normaliser
from unified.batch import Here
from unified.hookspecs import API_VERSION
from unified.parts import AGGREGATIONS, HEADS, KINDS, NoSettings, Part
from unified.registry import PART_HOOKS

DOCS = ROOT / "docs"


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def hooks() -> dict[str, str]:
    """Name and signature of every hook that is declared."""
    from unified import hookspecs

    found = {n: f for n, f in vars(hookspecs).items() if hasattr(f, "unified_spec")}
    return {n: f"{n}{str(inspect.signature(f)).replace(chr(39), '')}" for n, f in found.items()}


def sections(text: str, level: str = "### ") -> Iterator[tuple[str, str]]:
    """(heading, what stands below it) of a page."""
    for part in re.split(rf"^{level}", text, flags=re.M)[1:]:
        heading, _, body = part.partition("\n")
        yield heading.strip(), re.split(r"^##? ", body, flags=re.M)[0]


def rows(text: str) -> list[list[str]]:
    """The cells of the tables in a text, without headings and rules."""
    lines = [line.strip().strip("|").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines if not set(line[0]) <= set("-|")]


def test_plugins_md_has_a_section_for_every_hook_with_its_signature_and_no_other() -> None:
    said = {heading.strip("`") for heading, _ in sections(page("plugins.md"))}
    assert said == set(hooks().values())


def test_every_hook_has_an_example_that_implements_it() -> None:
    examples = "\n".join(s.text for s in snippets(DOCS / "plugins.md") if s.language == "python" and s.name)
    assert [name for name in hooks() if not re.search(rf"^@hookimpl\ndef {name}\(", examples, re.M)] == []


@pytest.mark.parametrize(("hook", "kind"), PART_HOOKS.items())
def test_the_section_of_a_part_tells_the_arguments_of_each_of_its_functions(hook: str, kind: str) -> None:
    (text,) = (body for heading, body in sections(page("plugins.md")) if heading.startswith(f"`{hook}("))
    offers = KINDS[kind].offers
    said = told(text)
    assert said == {name: ", ".join(names) for name, names in offers.items() if names is not None}
    for name in offers:
        assert f"`{name}" in text


def told(text: str) -> dict[str, str]:
    """Function -> its arguments, in the tables of a text."""
    return dict(re.findall(r"^\| `(\w+)\(([^)]*)\)` \|", text, re.M))


def test_what_every_part_may_give_is_told_before_the_hooks() -> None:
    before = page("plugins.md").partition("## Parts")[2].partition("### ")[0]
    assert told(before) == {name: ", ".join(names) for name, names in Part.always.items()}


@pytest.mark.parametrize("kind", ["algorithm", "rule"])
def test_the_section_of_algorithms_and_rules_tells_every_declaration(kind: str) -> None:
    hook = next(h for h, k in PART_HOOKS.items() if k == kind)
    (text,) = (body for heading, body in sections(page("plugins.md")) if heading.startswith(f"`{hook}("))
    own = [f.name for f in fields(KINDS[kind]) if f.name not in Part.always]
    missing = [name for name in own if f"`{name}" not in text]
    assert missing in ([], ["name", "settings"])  # of a rule both are those of every part


def test_the_api_version_of_the_docs_is_that_of_the_contract() -> None:
    assert f"`unified_api = {API_VERSION}`" in page("plugins.md")


@pytest.mark.parametrize("kind", rule_kinds())
def test_the_plugin_of_a_kind_of_rule_says_every_tensor_that_its_rules_name(kind: str) -> None:
    _, text = said_of_rules(kind)
    unsaid = []
    for name in catalogue().names(kind):
        rule = catalogue().get(kind, name)
        try:
            own = rule.names_read(rule.settings()) | set(rule.settings.model_fields)
        except ValueError:  # a rule with settings that must be given
            continue
        for function in (rule.value, rule.coefficient):
            named = inspect.signature(function).parameters.values() if function else ()
            wanted = {p.name for p in named if p.kind is not p.VAR_KEYWORD} - own - {"statistics"}
            unsaid += [(name, n) for n in sorted(wanted) if not re.search(rf"\b{n}\b", text)]
    assert unsaid == []


def test_the_heads_and_the_aggregations_of_concepts_md_are_those_of_the_engine() -> None:
    text = page("concepts.md")
    heads = re.search(r"^\| head .*?\n\n", text, re.M | re.S)
    assert heads is not None
    assert [row[0].strip("`") for row in rows(heads[0])[1:]] == list(HEADS)
    assert [row[0].split()[0].strip("`") for row in worked_table()] == list(AGGREGATIONS)


def worked_table() -> list[list[str]]:
    table = re.search(r"^\| aggregation .*?\n\n", page("concepts.md"), re.M | re.S)
    assert table is not None
    return rows(table[0])[1:]


@pytest.mark.parametrize("row", worked_table(), ids=lambda row: row[0].split()[0].strip("`"))
def test_the_worked_example_of_the_normaliser_is_what_the_engine_computes(row: list[str]) -> None:
    how, _, weights, pushes, coupled = row
    batch = Batch({"loss_mask": torch.tensor([[1, 0, 0], [1, 1, 1]]), "group": torch.tensor([0, 0])})
    on = torch.ones(2, dtype=torch.bool)
    name = how.split()[0].strip("`")
    length = re.search(r"L = (\d+)", how)
    counts = Counts.of(batch, on, Here())
    w = normaliser(batch, on, name, counts, length=int(length[1]) if length else None)
    assert w.tolist() == pytest.approx([float(Fraction(x)) for x in weights.split(", ")])
    whole = (w * batch.lengths * torch.tensor([1.0, -1.0])).tolist()
    assert whole == pytest.approx([float(Fraction(x.replace("−", "-"))) for x in pushes.split(", ")])
    assert (name in CONSTANT_IN_GROUP) == (coupled == "yes")


@pytest.mark.parametrize("row", [r for r in rows(page("data.md")) if r[1].startswith("`{")], ids=lambda row: row[0])
def test_a_row_shown_for_a_format_is_recognised_and_gives_the_answers_and_rewards_that_are_said(
    row: list[str],
) -> None:
    name, shown, answers, rewards = row
    fields_ = json.loads(shown.strip("`"))
    known = [catalogue().get("format", n) for n in catalogue().names("format")]
    about = {"columns": frozenset(fields_), "row": fields_}
    fits = [part for part in known if part.recognises and call_named(part.recognises, **about)]
    assert [part.name for part in fits] == [name.strip("`")]
    settings = None if fits[0].settings is NoSettings else fits[0].settings()
    made = call_named(fits[0].convert, row=fields_, settings=settings)
    (example,) = made if isinstance(made, list) else [made]
    assert len(example.answers) == int(answers)
    said = None if rewards == "–" else [float(x) for x in rewards.split(", ")]
    assert example.rewards == said


def test_data_md_shows_a_row_of_every_built_in_format() -> None:
    shown = {r[0].strip("`") for r in rows(page("data.md")) if r[1].startswith("`{")}
    built_in = {n for n in catalogue().names("format") if "unified_plugins." in catalogue().provider("format", n)}
    assert shown == built_in


def readme(language: str) -> list[Snippet]:
    return [s for s in snippets(ROOT / "README.md") if s.language == language]


def test_the_plugin_of_the_readme_has_at_most_thirty_lines() -> None:
    (plugin,) = (s for s in readme("python") if s.name)
    assert len(plugin.text.splitlines()) <= 30


def test_the_readme_counts_the_algorithms_that_are_built_in() -> None:
    readme = (ROOT / "README.md").read_text()
    [row] = [line for line in readme.splitlines() if line.startswith("| gradient coefficient GC")]
    named = set(re.findall(r"`(\w+)`", row))
    built_in = set(catalogue().names("algorithm"))
    assert named <= built_in
    assert f"and {len(built_in - named)} more" in row


def test_the_readme_says_in_at_most_five_lines_what_the_project_is() -> None:
    first = (ROOT / "README.md").read_text(encoding="utf-8").split("\n\n")[1]
    assert len(first.splitlines()) <= 5


def test_the_readme_begins_with_the_two_commands() -> None:
    assert [command for command, _ in readme("bash")[0].commands] == ["make quickstart", "make test"]


def test_the_table_of_the_readme_has_the_stages_and_columns_that_the_quickstart_prints() -> None:
    from unified import console

    recipe = yaml.safe_load((ROOT / "recipes" / "quickstart.yaml").read_text())
    (table,) = readme("text")
    cells = [
        [c.strip() for c in line.strip("│┃").split(line[0])] for line in table.text.splitlines() if line[0] in "│┃"
    ]
    algorithms = [
        s["algorithm"]["name"] if isinstance(s["algorithm"], dict) else s["algorithm"]
        for s in recipe["stages"].values()
    ]
    assert [row[0] for row in cells[1:]] == list(recipe["stages"])
    assert [row[1] for row in cells[1:]] == algorithms
    for heading in cells[0]:
        assert f'"{heading}"' in Path(console.__file__).read_text(encoding="utf-8")


def test_the_commands_of_the_readme_are_all_there_are() -> None:
    import typer.main

    from unified.cli import app

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    said = re.findall(r"^\| `unified (\w+)", text, re.M)
    assert sorted(said) == sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
