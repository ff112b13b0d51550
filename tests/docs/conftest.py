"""The surroundings of a page: its files in a folder, its plugins beside the installed ones."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import pytest

from tests.docs.snippets import snippets, write_files
from unified.registry import Catalogue, using


def load(path: Path) -> ModuleType:
    """A file as a module of its own name, as an import would make it."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def at_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], Catalogue]]:
    """Go to the folder of a page; its plugins are in use until the test ends."""
    with ExitStack() as stack:
        before = set(sys.modules)

        def go(page: Path) -> Catalogue:
            monkeypatch.chdir(tmp_path)
            monkeypatch.setenv("COLUMNS", "80")
            write_files(page, tmp_path)
            names = [s.name for s in snippets(page) if s.is_plugin]
            return stack.enter_context(using(Catalogue({Path(n).stem: load(tmp_path / n) for n in names})))

        yield go
        for name in [n for n in sys.modules if n not in before and not n.startswith(("unified", "torch"))]:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
                del sys.modules[name]
