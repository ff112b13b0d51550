"""What parts find wrong with themselves before anything runs, and the files that they say decide what they do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.workshop import Workshop, write_base
from unified import Chosen, Dataset, Example, Field, PluginError, Problem, Reward, Settings, UserError, choice, hookimpl
from unified.check import check_recipe
from unified.drafts import draft_of
from unified.recipe import load_recipe
from unified.registry import Catalogue, using


class TasteSettings(Settings):
    """A stranger's reward, or one around another."""

    column: str = Field("salt", description="what is tasted")
    of: Chosen | None = choice("reward", None, description="another one")


class RowSettings(Settings):
    """A stranger's rows."""

    names: list[str] = Field([], description="columns; of two rows one has the first, one the others")


class KitchenSettings(Settings):
    """A stage with rows of its own, and a second helping."""

    model: str = Field("base", description="what is served")
    data: Chosen | None = choice("dataset", None, description="rows")
    reward: Chosen | None = choice("reward", None, description="judges")
    rewards: list[Chosen] = choice("reward", [], description="more of them")


class Kitchen(Workshop):
    """Parts with checks. `opened`: how often rows were read; `asked`: what each check was told."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = 0
        self.asked: list[tuple[str, Any]] = []

    def rows(self, settings: RowSettings) -> list[Example]:
        self.opened += 1
        first, *others = settings.names
        return [Example("a", columns={first: 1, "empty": None}), Example("b", columns=dict.fromkeys(others, 2))]

    def check(self, settings: TasteSettings, columns: frozenset[str] | None) -> list[Problem]:
        self.asked.append((settings.column, columns))
        if settings.column == "poison":
            raise RuntimeError("ill")
        if settings.column == "refused":
            raise UserError("nobody eats this", "cook something else")
        lacks = columns is not None and settings.column not in columns
        return [Problem(f"no {settings.column}", ("column",), ("buy some",))] if lacks else []

    @hookimpl
    def unified_rewards(self) -> list[Reward]:
        files = lambda settings, home: {"module cook": home / "cook.py", "module gone": home / "gone.py"}  # noqa: E731
        return [Reward("taste", TasteSettings, check=self.check, files=files), Reward("plain", TasteSettings)]

    @hookimpl
    def unified_datasets(self) -> list[Dataset]:
        return [
            Dataset("pantry", RowSettings, open=self.rows),
            Dataset("shop", RowSettings, open=self.rows, remote=True),
            Dataset("files", RowSettings),
        ]

    @hookimpl
    def unified_stages(self) -> list[Any]:
        from unified import StageKind

        return [StageKind("cook", KitchenSettings, uses=lambda settings: [(("model",), settings.model, "any")])]


@pytest.fixture
def kitchen() -> Iterator[Kitchen]:
    made = Kitchen()
    with using(Catalogue({"kitchen": made}, installed=False)):
        yield made


def said(folder: Path, *lines: str) -> str:
    """What the check says of one stage; the first line is the recipe's fifth."""
    write_base(folder / "iron")
    head = "name: a\nmodel: ./iron\nstages:\n  dish:\n    kind: cook\n"
    (folder / "r.yaml").write_text(head + "".join(f"    {line}\n" for line in lines))
    try:
        check_recipe(load_recipe(folder / "r.yaml"))
    except UserError as error:
        return str(error).replace(f"{folder}/", "").partition("\n1 problem")[0]
    return ""


def test_a_problem_that_a_part_finds_stands_at_the_line_of_its_setting(kitchen: Kitchen, tmp_path: Path) -> None:
    told = said(tmp_path, "data: {name: pantry, names: [sugar, oil]}", "reward:", "  name: taste", "  column: salt")
    assert told == "r.yaml:9: stage 'dish': no salt\n    buy some"


def test_parts_inside_parts_and_in_lists_are_asked_as_well(kitchen: Kitchen, tmp_path: Path) -> None:
    inner = "{name: plain, of: {name: taste, column: deep}}"
    said(tmp_path, "data: {name: pantry, names: [a]}", f"reward: {inner}", "rewards: [taste, plain]")
    assert [column for column, _ in kitchen.asked] == ["deep", "salt"]


def test_a_column_is_there_if_any_row_has_something_in_it(kitchen: Kitchen, tmp_path: Path) -> None:
    assert said(tmp_path, "data: {name: pantry, names: [sugar, oil]}", "reward: {name: taste, column: oil}") == ""
    assert kitchen.asked == [("oil", frozenset({"sugar", "oil"}))]  # not `empty`


def test_rows_are_read_once_for_all_parts_and_not_at_all_where_nobody_asks(kitchen: Kitchen, tmp_path: Path) -> None:
    said(tmp_path, "data: {name: pantry, names: [salt]}", "reward: taste", "rewards: [taste, taste]")
    assert kitchen.opened == 1
    said(tmp_path, "data: {name: pantry, names: [salt]}", "reward: plain")
    assert kitchen.opened == 1


@pytest.mark.parametrize("data", ["{name: shop, names: [a]}", "{name: pantry, names: []}"])
def test_rows_that_are_not_here_or_cannot_be_read_leave_the_columns_unknown(
    kitchen: Kitchen, tmp_path: Path, data: str
) -> None:
    assert said(tmp_path, f"data: {data}", "reward: taste") == ""
    assert kitchen.asked == [("salt", None)]


def test_a_check_that_raises_a_mistake_of_the_user_is_a_problem(kitchen: Kitchen, tmp_path: Path) -> None:
    told = said(tmp_path, "reward: {name: taste, column: refused}")
    assert told == "r.yaml:6: stage 'dish': nobody eats this\n    cook something else"


def test_a_check_that_breaks_names_the_plugin_and_the_part(kitchen: Kitchen, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="plugin kitchen: check of reward 'taste' raised RuntimeError: ill"):
        said(tmp_path, "reward: {name: taste, column: poison}")


def test_a_check_that_asks_for_something_else_is_refused_when_its_plugin_is_loaded() -> None:
    class Stranger:
        @hookimpl
        def unified_rewards(self) -> list[Reward]:
            return [Reward("bad", check=lambda weather: [])]

    with pytest.raises(UserError, match=r"(?s)check of reward 'bad' asks for 'weather'.*settings, home, columns"):
        Catalogue({"stranger": Stranger()}, installed=False)


def test_a_file_that_a_part_tells_to_be_its_own_is_an_input_of_the_stage(kitchen: Kitchen, tmp_path: Path) -> None:
    def print_of() -> tuple[str, dict[str, str]]:
        assert said(tmp_path, "reward: taste") == ""
        plan = check_recipe(load_recipe(tmp_path / "r.yaml"))
        draft = draft_of(plan.recipe, plan.stages[0], {})
        return draft.fingerprint, draft.files

    (tmp_path / "cook.py").write_text("x = 1")
    first, files = print_of()
    assert list(files) == ["module cook"]  # what is not there is left out
    assert print_of()[0] == first
    (tmp_path / "cook.py").write_text("x = 2")
    assert print_of()[0] != first
