"""Completion in the shell: from names that were written down when plugins were loaded, quickly and without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.strangers import Plugin
from unified.names import completes, completes_kinds, index_file, known, remember
from unified.registry import Catalogue, catalogue


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_names_that_were_remembered_are_known_by_kind(cache: Path) -> None:
    assert known() == {}
    assert completes("algorithm")("s") == []  # nothing was loaded yet: nothing is completed, and nothing fails
    remember(Catalogue({"stranger": Plugin()}, installed=False))
    names = known()
    assert names.keys() >= {"algorithm", "reward", "stage"}
    first = names["algorithm"][0]
    assert first in completes("algorithm")(first[:2])
    assert first not in completes("reward")(first[:2])
    assert completes()("") == sorted({name for each in names.values() for name in each})
    assert completes_kinds("alg") == ["algorithm"]


def test_the_file_is_written_only_when_names_have_changed(cache: Path) -> None:
    remember(Catalogue({"stranger": Plugin()}, installed=False))
    before = index_file().stat()
    remember(Catalogue({"stranger": Plugin()}, installed=False))
    after = index_file().stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)  # it is replaced when written
    remember(Catalogue(installed=False))
    assert known() == {}


def test_a_damaged_file_and_a_folder_that_cannot_be_written_are_no_trouble(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index_file().parent.mkdir(parents=True)
    for damaged in ("{", "[1]", '{"algorithm": 1}'):
        index_file().write_text(damaged)
        assert known() == {}
    (cache / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "file"))
    remember(Catalogue(installed=False))
    assert known() == {}


def completed(words: str, cache: Path) -> tuple[list[str], float, str]:
    """What bash would be offered for the last word, the seconds that took, and the modules that were loaded."""
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print(*(m for m in ('torch', 'transformers', 'unified_plugins') if m in sys.modules),"
        " file=sys.stderr))\n"
        "from unified.cli import main\nmain()\n"
    )
    asked = {"_UNIFIED_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
        env={**os.environ, **asked, "XDG_CACHE_HOME": str(cache)},
    )  # fmt: skip
    return done.stdout.split(), time.monotonic() - begin, done.stderr.strip()


def test_the_shell_is_offered_the_installed_names_in_less_than_half_a_second_and_without_torch(cache: Path) -> None:
    remember(catalogue())
    offered, _, loaded = completed("unified show dp", cache)
    assert loaded == ""
    assert "dpo" in offered
    assert all(name.startswith("dp") for name in offered)
    assert min(completed("unified train gr", cache)[1] for _ in range(4)) < 0.5  # other work here is not its fault
    assert completed("unified plug", cache)[0] == ["plugin"]


def test_the_installed_plugins_are_remembered_when_they_are_loaded(cache: Path) -> None:
    code = "from unified import catalogue\ncatalogue()\n"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "XDG_CACHE_HOME": str(cache)}, check=True)
    (file,) = (cache / "unified").iterdir()
    assert json.loads(file.read_text())["algorithm"] == catalogue().names("algorithm")
