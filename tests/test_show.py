"""The pages of `list` and `show`: what a part is, where it comes from, what may be set."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from rich.console import Console

from tests.workshop import Workshop
from unified import UserError
from unified.registry import using
from unified.show import list_parts, show_part


@pytest.fixture(autouse=True)
def _workshop() -> Iterator[None]:
    with using(Workshop().catalogue()):
        yield


def page(name: str, kind: str | None = None) -> str:
    out = io.StringIO()
    show_part(Console(file=out, width=200), name, kind)
    return out.getvalue()


def listing(kind: str | None = None) -> str:
    out = io.StringIO()
    list_parts(Console(file=out, width=200), kind)
    return out.getvalue()


def test_the_page_of_an_algorithm_tells_its_provider_contract_and_settings() -> None:
    text = page("anneal")
    assert text.startswith("algorithm anneal\nfrom plugin workshop\n")
    assert "A stranger's stage kind that writes a small file" in text  # the docstring of the module of its settings
    for fact in ("gives: coefficient", "scope: answer", "pushes: logp weighed by sequence", "reward: given"):
        assert fact in text
    [row] = [line for line in text.splitlines() if "degrees" in line and "│" in line]
    assert [cell.strip() for cell in row.split("│")[1:-1]] == [
        "degrees",
        "float",
        "20.0",
        "temperature of the iron, in degrees",
    ]


def test_nested_settings_have_a_table_of_their_own() -> None:
    text = page("train")
    assert "hammers:" in text
    assert "in kilograms" in text
    assert "used in a recipe as: kind: train" in text


def test_a_list_holds_every_kind_or_one_named_in_singular_or_plural() -> None:
    assert listing("dataset") == listing("datasets")
    assert "ore" in listing("datasets")
    assert "anneal" not in listing("datasets")
    for name in ("anneal", "ore", "melt"):
        assert name in listing()


def test_a_part_of_a_strangers_plugin_is_listed_with_the_plugin() -> None:
    assert "(plugin workshop)" in listing("algorithms")


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("aneal", None, "no part 'aneal'\n    did you mean 'anneal'?"),
        ("anneal", "dataset", "no dataset 'anneal'"),
        ("anneal", "algoritm", "no kind of part 'algoritm'\n    did you mean 'algorithms'?"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, kind: str | None, expected: str) -> None:
    with pytest.raises(UserError) as raised:
        page(name, kind)
    assert str(raised.value).startswith(expected)


def test_a_kind_without_a_part_says_so() -> None:
    assert "none installed" in listing("rewards")
