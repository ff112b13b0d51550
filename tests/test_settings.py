"""Settings: what a person wrote becomes typed values, or problems with their paths; nested settings as well."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import pytest

from tests.workshop import ForgeSettings, Hammer, Workshop
from unified import Chosen, Field, Settings
from unified.registry import using
from unified.settings import choice, describe_fields, parse


@pytest.fixture(autouse=True)
def _workshop() -> Iterator[None]:
    with using(Workshop().catalogue()):
        yield


class Inner(Settings):
    count: int = Field(1, ge=1, description="how many")
    algorithm: Chosen | None = choice("algorithm", None, description="a part")


class Outer(Settings):
    name: str = Field(description="who it is")
    rate: float | dict[str, float] = Field(0.5, description="one or several")
    flag: bool = Field(False, description="yes or no")
    size: int | None = Field(None, description="a number")
    way: Literal["padded", "packed"] = Field("padded", description="how")
    inner: Inner = Field(Inner(), description="nested")
    maybe: Inner | None = Field(None, description="nested, or nothing")
    inners: list[Inner] = Field([], description="several")


def problems_of(**written: Any) -> dict[tuple[str | int, ...], str]:
    settings, problems = parse(Outer, {"name": "x", **written}, owner="the thing")
    assert (settings is None) == bool(problems)
    return {p.at: p.text() for p in problems}


def test_nested_settings_and_choices_inside_them_are_built() -> None:
    written = {"name": "x", "inner": {"count": 2}, "maybe": {"algorithm": "anneal"}, "inners": [{"count": 3}, {}]}
    settings, problems = parse(Outer, written, owner="the thing")
    assert not problems
    assert (settings.inner.count, [i.count for i in settings.inners]) == (2, [3, 1])
    assert settings.maybe.algorithm.settings.degrees == 20.0


def test_an_unknown_nested_key_gets_its_path_and_the_nearest_name() -> None:
    found = problems_of(inner={"cuont": 2}, inners=[{}, {"cunt": 2}])
    assert found[("inner", "cuont")].startswith("no setting 'cuont' in 'inner' of the thing\n    did you mean 'count'?")
    assert found[("inners", 1, "cunt")].startswith(
        "no setting 'cunt' in inners[1] of the thing\n    did you mean 'count'?"
    )


def test_a_problem_inside_a_nested_choice_keeps_its_whole_path() -> None:
    found = problems_of(maybe={"algorithm": {"name": "anneal", "degres": 3}}, inners=[{"algorithm": "aneal"}])
    assert "did you mean 'degrees'?" in found[("maybe", "algorithm", "degres")]
    assert "did you mean 'anneal'?" in found[("inners", 0, "algorithm")]


def test_all_mistakes_are_found_at_once() -> None:
    found = problems_of(inner={"count": 0}, nme=1, way="packd", rate="fast", size="big")
    assert set(found) == {("inner", "count"), ("nme",), ("way",), ("rate",), ("size",)}
    assert "did you mean 'packed'?" in found[("way",)]


def test_members_of_a_union_that_all_refuse_are_one_problem() -> None:
    assert problems_of(rate="fast") == {
        ("rate",): "'rate' of the thing: input should be a valid number, unable to parse string as a number"
        " or a valid dictionary, got 'fast'"
    }
    # the member that came furthest tells the most
    assert list(problems_of(rate={"policy": "fast"})) == [("rate", "policy")]


def test_true_is_no_number() -> None:
    # pydantic alone would read true as 1
    assert problems_of(size=True) == {("size",): "'size' of the thing: must not be true or false, got true"}
    assert problems_of(inner={"count": True}) == {
        ("inner", "count"): "'count' of 'inner' of the thing: must not be true or false, got true"
    }
    assert problems_of(flag=True) == {}


def test_a_nested_mapping_of_the_wrong_type_is_refused_and_nothing_is_allowed_where_it_may_be() -> None:
    assert set(problems_of(inner=3, inners=4)) == {("inner",), ("inners",)}
    assert problems_of(maybe=None) == {}


def test_a_missing_setting_is_told_with_what_it_is() -> None:
    _, problems = parse(Outer, {}, owner="the thing")
    assert [p.text() for p in problems] == ["the thing needs 'name'\n    what it is: who it is"]


def test_the_table_of_settings_tells_nested_ones_apart() -> None:
    types = {name: kind for name, kind, _, _ in describe_fields(ForgeSettings)}
    assert (types["hammers"], types["algorithm"], types["mark"]) == ("list of settings", "algorithm name", "str")
    assert describe_fields(Hammer) == [("weight", "int", "1", "in kilograms")]
