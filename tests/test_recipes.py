"""Every recipe passes the check at full scale and in its mini profile; the mini run meets what the recipe expects."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
import torch

from unified import check_recipe, load_recipe, run_recipe
from unified.console import RunConsole
from unified.expect import check_expectations
from unified.unverified import not_yet_verified

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
#: no published pipeline and no profile: it is small as it stands, and tests/test_quickstart.py runs it
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"
PUBLISHED = [path for path in RECIPES if path != QUICKSTART]


def name(path: Path) -> str:
    return path.stem


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a check has opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_there_are_recipes_and_the_quickstart_is_one_of_them() -> None:
    assert QUICKSTART in RECIPES
    assert len(PUBLISHED) >= 1


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_passes_the_check_at_full_scale_and_fetches_nothing(path: Path, no_network: None) -> None:
    plan = check_recipe(load_recipe(path))
    assert plan.recipe.name == path.stem.replace(".", "-")
    assert bool(not_yet_verified(plan)) == (path != QUICKSTART)  # a published one names a model or data of the hub


@pytest.mark.parametrize("path", PUBLISHED, ids=name)
def test_a_mini_profile_has_the_stages_of_the_recipe_needs_nothing_from_elsewhere_and_expects_something(
    path: Path, no_network: None
) -> None:
    full, mini = load_recipe(path), load_recipe(path, profile="mini")
    plan = check_recipe(mini)
    assert not_yet_verified(plan) == []
    chains = [{_short(n): _algorithms(s.plain()) for n, s in r.stages.items()} for r in (full, mini)]
    assert list(chains[0].items()) == list(chains[1].items())  # rounds may be fewer, but the chain is the same
    assert mini.expect, "a recipe says what its mini run shows"
    assert any(one.get("than") for one in mini.expect), "one stage is compared with another"


@pytest.mark.parametrize("path", PUBLISHED, ids=name)
def test_every_number_of_a_published_recipe_has_its_source_beside_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8").split("\nprofiles:")[0]
    number = re.compile(r"^\s+(?:[a-z_]*(?:rate|size|epochs|steps|weight|beta|length|tokens)):\s*[0-9.e+-]+\s*$")
    bare = [line for line in text.splitlines() if number.match(line)]
    assert bare == []
    assert "arXiv:" in text or "http" in text


def test_the_table_of_the_readme_names_every_recipe_and_no_other() -> None:
    rows = re.findall(r"^\| \[`([\w.-]+)`\]\(([\w.-]+)\)", (ROOT / "recipes" / "README.md").read_text(), flags=re.M)
    assert [shown for shown, _ in rows] == [linked for _, linked in rows]
    assert sorted(shown for shown, _ in rows) == [path.name for path in RECIPES]


@pytest.mark.slow
@pytest.mark.parametrize("path", PUBLISHED, ids=name)
def test_the_mini_run_of_a_recipe_meets_what_it_expects(path: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        recipe = load_recipe(path, profile="mini")
        run_recipe(recipe, tmp_path / "run", console=RunConsole(silent=True))
        found = check_expectations(recipe, tmp_path / "run")
    finally:
        torch.set_num_threads(before)
    assert found
    assert all(one.held for one in found), "\n".join(one.text() for one in found)


def _short(stage: str) -> str:
    """`loop.2.tune` as `loop.tune`."""
    return re.sub(r"\.\d+\.", ".", stage)


def _algorithms(stage: dict[str, object]) -> list[object]:
    """The names of the algorithms of a stage, or its kind."""
    one, terms = stage.get("algorithm"), stage.get("terms")
    written = [one] if one else [t["algorithm"] for t in terms] if isinstance(terms, list) else [stage.get("kind")]
    return [w["name"] if isinstance(w, dict) else w for w in written]
