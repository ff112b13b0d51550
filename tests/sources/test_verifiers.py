"""Environments of the package `verifiers`, as far as that goes without it: names, its absence, rubrics that fail."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.docs.snippets import ROOT, Snippet, all_snippets
from unified import UserError, call_named, catalogue, load_recipe
from unified.check import check_recipe
from unified.settings import parse
from unified_plugins.sources import _verifiers_package as package
from unified_plugins.sources._verifiers_guard import UNJUDGED, UNMEASURED, guard

HERE = Path(__file__).parent


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "find_spec", lambda name: None)


# --- names, and a package that is not there ---


@pytest.mark.parametrize(
    ("written", "function"),
    [
        ("word-count", "word_count:load_environment"),
        ("owner/word-count", "word_count:load_environment"),
        ("games.words:make", "games.words:make"),
        ("games.words.make", "games.words.make"),
    ],
)
def test_the_name_of_an_environment_is_read_as_the_package_does_or_as_a_function(written: str, function: str) -> None:
    assert package.function_of(written) == function


@pytest.mark.parametrize("kind", ["source", "dataset"])
@pytest.mark.parametrize("written", ["a b", "games.py:", "a.b:c:d", "", "owner/"])
def test_what_can_be_no_name_of_an_environment_is_refused(kind: str, written: str) -> None:
    _, problems = parse(catalogue().get(kind, "verifiers").settings, {"environment": written}, owner=kind)
    assert "environment is written as the name of an installed one, package.module:function" in problems[0].text()


@pytest.mark.parametrize("kind", ["source", "dataset"])
def test_a_function_in_a_file_is_a_file_of_the_stage_and_a_module_is_told_with_its_file(kind: str) -> None:
    part = catalogue().get(kind, "verifiers")
    made, problems = parse(part.settings, {"environment": "word_games.py:sums"}, owner=kind)
    assert not problems
    assert (made.file, made.environment) == ("word_games.py", "sums")  # type: ignore[union-attr]
    about = {"settings": parse(part.settings, {"environment": "word-games"}, owner=kind)[0], "home": HERE}
    assert call_named(part.files, **about) == {"module word_games": HERE / "word_games.py"}


@pytest.mark.usefixtures("no_package")
@pytest.mark.parametrize("kind", ["source", "dataset"])
def test_without_the_package_the_check_and_the_stage_say_once_what_to_install(kind: str) -> None:
    part = catalogue().get(kind, "verifiers")
    settings = parse(part.settings, {"environment": "word_games.py:sums"}, owner=kind)[0]
    (problem,) = call_named(part.check, settings=settings, home=HERE)
    said = "the package verifiers is not installed\n    pip install 'unified-post-training[verifiers]'"
    assert problem.text() == said
    run = {"prompts": [], "sample": None, "seed": 0} if kind == "source" else {"split": "train", "seed": 0}
    with pytest.raises(UserError) as caught:
        call_named(part.collect if kind == "source" else part.open, settings=settings, folder=HERE, **run)
    assert str(caught.value) == f"environment 'sums': {said}"


def test_a_version_without_such_environments_is_refused_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "find_spec", lambda name: object())
    for version, wrong in (("0.3.1", False), ("0.4.0", True), ("0.2.1", True)):
        monkeypatch.setattr(package.metadata, "version", lambda name, version=version: version)
        found = package.lacking()
        assert (found is not None) == wrong
        assert found is None or found[0].startswith(f"verifiers {version} is installed")


def test_the_extra_asks_for_the_versions_that_are_not_refused() -> None:
    wanted = (ROOT / "pyproject.toml").read_text()
    assert 'verifiers = ["verifiers>=0.3,<0.4"]' in wanted
    (pinned,) = (line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("verifiers="))
    assert pinned.removeprefix("verifiers==").startswith(package.VERSIONS)


def test_an_environment_that_is_not_there_is_found_by_the_check_without_running_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(package, "lacking", lambda: None)
    part = catalogue().get("source", "verifiers")
    said = {}
    for name in ("word_games.py:sum", "word-game", "word_games.py:sums"):
        settings = parse(part.settings, {"environment": name}, owner="source")[0]
        said[name] = [p.text() for p in call_named(part.check, settings=settings, home=HERE)]
    assert "did you mean 'sums'?" in said["word_games.py:sum"][0]
    assert "there is no module word_game" in said["word-game"][0]
    assert said["word_games.py:sums"] == []


# --- the recipe of the docs ---


def shown() -> tuple[Snippet, Snippet]:
    """The environment and the stage that docs/data.md shows."""
    (program,) = (s for s in all_snippets("python") if "def load_environment" in s.text)
    (stage,) = (s for s in all_snippets("text") if "name: verifiers" in s.text)
    return program, stage


@pytest.mark.usefixtures("no_package")
def test_the_recipe_of_the_docs_lacks_nothing_but_the_package(tmp_path: Path) -> None:
    program, stage = shown()
    (tmp_path / "sums.py").write_text(program.text)
    recipe = Snippet(stage.page, stage.line, "yaml", "stage", stage.text).recipe
    (tmp_path / "as-shown.yaml").write_text(recipe)
    with pytest.raises(UserError) as caught:
        check_recipe(load_recipe(tmp_path / "as-shown.yaml"))
    *problems, last = [line for line in str(caught.value).splitlines() if not line.startswith(" ")]
    assert [line.rpartition(": ")[2] for line in problems] == ["the package verifiers is not installed"] * 2
    assert last.startswith("2 problems")  # that of the data and that of the source


# --- rubrics ---


def score(function: Any, states: list[dict[str, Any]], *, weight: float = 1.0) -> Any:
    """What the package is given when it asks a guarded function of a rubric."""
    rubric = SimpleNamespace(funcs=[function], weights=[weight])
    guard(SimpleNamespace(rubrics=[rubric]))
    guard(rubric)  # a second time changes nothing
    (made,) = rubric.funcs
    named = inspect.signature(made).parameters
    offered = {"completion": "abc", "state": states[0], "states": states, "completions": ["abc"] * len(states)}
    takes_all = any(p.kind is p.VAR_KEYWORD for p in named.values())
    return asyncio.run(made(**{k: v for k, v in offered.items() if takes_all or k in named}))


def raises(completion: str) -> float:
    raise LookupError("no key")


async def later(completion: str, **_: Any) -> None:
    return None


def of_group(completions: list[str]) -> list[float]:
    return [1.0, float("inf")]


def short(completions: list[str]) -> list[float]:
    return [1.0]


@pytest.mark.parametrize(
    ("function", "reasons"),
    [
        (raises, ["raises raised LookupError: no key", None]),
        (later, ["later gave None", None]),
        (of_group, [None, "of_group gave inf"]),
        (short, ["short raised ValueError: gave 1 numbers for 2 rollouts"] * 2),
        (lambda completion: "much", ["<lambda> gave 'much', which is no number", None]),
    ],
)
def test_a_function_of_a_rubric_that_fails_is_noted_with_the_rollouts_it_failed_for(
    function: Any, reasons: list[str | None]
) -> None:
    states: list[dict[str, Any]] = [{}, {}]
    score(function, states)
    assert [state.get(UNJUDGED) for state in states] == reasons
    measured: list[dict[str, Any]] = [{}, {}]
    score(function, measured, weight=0.0)
    assert [state.get(UNMEASURED) for state in measured] == [r and [function.__name__] for r in reasons]
    assert not any(UNJUDGED in state for state in measured)


def test_a_function_that_works_gives_what_it_gave_under_its_name_and_is_not_noted() -> None:
    def length(completion: str, state: dict[str, Any]) -> float:
        return len(completion) + state["more"]

    states = [{"more": 4}]
    assert score(length, states) == 7.0
    assert states == [{"more": 4}]
    rubric = SimpleNamespace(funcs=[length, of_group], weights=[])
    guard(SimpleNamespace(env_map={"a": SimpleNamespace(rubric=rubric)}))
    assert [f.__name__ for f in rubric.funcs] == ["length", "of_group"]
    assert list(inspect.signature(rubric.funcs[0]).parameters) == ["completion", "state"]
    assert list(inspect.signature(rubric.funcs[1]).parameters) == ["completions", "states"]
