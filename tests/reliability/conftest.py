"""A run of stages that are a stranger's, for tests of what it writes and says."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.workshop import Workshop, write_base
from unified import load_recipe, run_recipe
from unified.console import RunConsole
from unified.registry import using


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Any]:
    """run(text of a recipe, *sets): runs it with a stranger's stages into tmp_path/out."""
    write_base(tmp_path / "iron")
    workshop = Workshop()

    def start(text: str, *sets: str) -> Workshop:
        (tmp_path / "r.yaml").write_text(text)
        console = RunConsole(Console(file=io.StringIO()), silent=True)
        run_recipe(load_recipe(tmp_path / "r.yaml", sets), tmp_path / "out", console=console)
        return workshop

    start.workshop = workshop  # type: ignore[attr-defined]
    with using(workshop.catalogue()):
        yield start
