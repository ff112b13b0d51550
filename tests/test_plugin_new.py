"""`unified plugin new`: what it writes is a package whose tests pass, for every kind, and it writes over nothing."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from unified import UserError
from unified.cli import app
from unified.parts import KINDS
from unified.plugin_new import new_plugin
from unified.plugin_templates import TEMPLATES
from unified.registry import Catalogue, using
from unified.testing import CHECKS, check_plugin

Load = Callable[[Path], ModuleType]


@pytest.fixture
def load() -> Iterator[Load]:
    """Loads a file as a module of its own name; none of them is known any more afterwards."""
    before = set(sys.modules)

    def loaded(path: Path) -> ModuleType:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[path.stem] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield loaded
    for name in [n for n in sys.modules if n not in before and n.endswith("brand_new")]:
        del sys.modules[name]


def unified(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def test_there_is_a_template_for_every_kind_of_part_and_for_filters_among_the_rules() -> None:
    assert set(TEMPLATES) == {*KINDS} - {"rule"} | {"filter"}
    assert set(TEMPLATES) == set(CHECKS)


@pytest.mark.parametrize("kind", sorted(TEMPLATES))
def test_the_tests_of_a_new_package_pass_as_they_are(kind: str, tmp_path: Path, load: Load) -> None:
    folder = new_plugin("brand_new", kind, tmp_path)
    assert folder == tmp_path / "brand-new"
    load(folder / "brand_new.py")
    tests = load(folder / "tests" / "test_brand_new.py")
    found = [value for name, value in vars(tests).items() if name.startswith("test_")]
    assert len(found) == 3  # the contract, the entry point, and one on numbers
    for test in found:
        test(**({"tmp_path": tmp_path} if "tmp_path" in test.__annotations__ else {}))


@pytest.mark.parametrize("kind", sorted(TEMPLATES))
def test_a_new_part_is_checked_by_the_suite_and_nothing_is_found(kind: str, tmp_path: Path, load: Load) -> None:
    folder = new_plugin("brand-new", kind, tmp_path)
    module = load(folder / "brand_new.py")
    with using(Catalogue({"brand_new": module})):
        found = check_plugin("brand-new", dict(TEMPLATES[kind].needs))
        assert found == {(kind, "brand-new"): []}


@pytest.mark.parametrize("kind", sorted(TEMPLATES))
def test_a_new_package_has_one_module_one_entry_point_tests_and_a_readme(kind: str, tmp_path: Path) -> None:
    folder = new_plugin("brand_new", kind, tmp_path)
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == "brand-new"
    assert project["entry-points"] == {"unified": {"brand_new": "brand_new"}}
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    own = {"recipe.yaml"} if kind == "algorithm" else set()
    assert files == {"pyproject.toml", "README.md", "brand_new.py", "tests/test_brand_new.py"} | own
    texts = [(folder / file).read_text() for file in files]
    assert not any(re.search(r"\$[A-Z{]", text) for text in texts)  # everything was filled in
    assert not any(re.search(r"(from|import) unified\.(?!testing)", text) for text in texts)
    assert "brand_new" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Brand New", "did you mean 'brand_new'?"),
        ("../away", "did you mean 'away'?"),
        ("9lives", "use small letters"),
        ("class", "Python itself has a 'class'"),
        ("json", "Python itself has a 'json'"),
        ("torch", "there is a module 'torch' already"),
        ("", "use small letters"),
    ],
)
def test_a_name_that_cannot_be_a_module_is_refused_and_nothing_is_written(name: str, said: str, tmp_path: Path) -> None:
    result = unified("plugin", "new", name, "--kind", "reward", "--into", str(tmp_path / "here"))
    assert result.exit_code == 2
    assert said in result.output
    assert not (tmp_path / "here").exists()


def test_a_name_that_a_part_of_the_kind_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is a reward 'constant' already, of plugin unified_plugins"):
        new_plugin("constant", "reward", tmp_path)


def test_a_kind_that_is_none_is_refused_with_the_one_that_was_meant() -> None:
    result = unified("plugin", "new", "brand_new", "--kind", "rewards")
    assert result.exit_code == 2
    assert "did you mean 'reward'?" in result.output


def test_a_folder_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "brand-new").mkdir()
    (tmp_path / "brand-new" / "mine.txt").write_text("mine")
    result = unified("plugin", "new", "brand_new", "--kind", "reward", "--into", str(tmp_path))
    assert result.exit_code == 2
    assert "is there already" in result.output
    assert [p.name for p in tmp_path.rglob("*")] == ["brand-new", "mine.txt"]


def test_the_list_of_plugins_says_package_version_place_and_parts() -> None:
    import json

    found = json.loads(unified("plugin", "list", "--json").stdout)
    (built_in,) = [one for one in found if one["name"] == "builtin"]
    assert built_in["package"] == "unified-post-training"
    assert re.fullmatch(r"\d+\.\d+\.\d+", built_in["version"])
    assert Path(built_in["path"]).is_dir()
    assert {"sft", "dpo"} <= set(built_in["parts"]["algorithm"])
    lines = unified("plugin", "list").stdout.splitlines()
    assert lines[0].startswith("builtin  (unified-post-training ")


def broken(kind: str, **functions: Any) -> list[str]:
    """The checks that find something in a part with these functions."""
    from unified.testing import check_part

    part = KINDS["rule" if kind == "filter" else kind]("odd", **functions)
    return [finding.check for finding in check_part(kind, part) or []]


def test_the_suite_finds_what_breaks_the_contract_of_a_format_filter_engine_or_stage() -> None:
    from unified import Answer

    assert broken("format", recognises=lambda columns: True, convert=lambda row: []) == ["recognises_its_own"] * 2
    assert broken("format", convert=lambda row: row["prompt"]) == ["refuses_with_a_reason"] * 2
    assert broken("filter", of="filter", value=lambda groups: groups[::-1]) == ["keeps_in_order"]
    assert broken("filter", of="filter", value=_drops_answers) == ["filters_without_a_trace"]
    shared = iter(range(3, 100))

    def once(seeds: Any) -> Any:  # depends on what was sampled before
        return [[Answer([next(shared) % 9], "x", sampling_logp=[-1.0]) for _ in own] for own in seeds]

    assert broken("engine", generate=once) == ["draws_from_the_seed_alone"] * 2
    assert broken("engine", generate=lambda seeds: [[] for _ in seeds]) == ["samples"]
    assert broken("stage", run=lambda stage: None, makes=lambda: "porridge") == ["tells_of_itself"]


def _drops_answers(groups: Any) -> Any:
    groups[0].answers.pop()
    return groups


@pytest.mark.parametrize(("kind", "least"), [("format", 10), ("filter", 2), ("engine", 1), ("stage", 1)])
def test_every_installed_part_of_these_kinds_keeps_its_contract(kind: str, least: int) -> None:
    from unified import catalogue

    found = {name: check_plugin(name).get((kind, name)) for name in catalogue().names(kind)}
    assert {name: broken for name, broken in found.items() if broken} == {}
    assert sum(broken is not None for broken in found.values()) >= least
