"""The engine's tests run with the built-in plugins absent, on a stranger's plugin."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.strangers import Plugin
from unified.registry import Catalogue, using


@pytest.fixture(autouse=True)
def only_strangers() -> Iterator[Catalogue]:
    """A catalogue without any built-in part."""
    with using(Catalogue({"stranger": Plugin()}, installed=False)) as catalogue:
        yield catalogue
