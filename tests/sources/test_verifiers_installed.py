"""Installs the package `verifiers` into an environment of its own, beside what is installed here, and plays with it."""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.docs.snippets import ROOT

TESTS = "tests/sources/test_verifiers_package.py"


def run(*command: str | Path) -> str:
    """What a command prints; it fails the test where it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [str(part) for part in command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.slow
def test_with_the_pinned_package_beside_what_is_installed_its_environments_are_played_and_trained_on(
    tmp_path: Path,
) -> None:
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip())
    here = sysconfig.get_paths()["purelib"]
    (packages / "beside.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    before = run(python, "-m", "pip", "list", "--format=freeze", "--path", here)
    run(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", "verifiers")
    changed = {
        line.partition("==")[0]: line
        for line in run(python, "-m", "pip", "list", "--format=freeze", "--path", str(packages)).splitlines()
    }
    assert "verifiers" in changed
    shadowed = [line for line in before.splitlines() if line.partition("==")[0] in changed]
    assert [line for line in shadowed if not line.startswith(("pip==", "setuptools=="))] == []  # nothing is replaced
    written = (ROOT / TESTS).read_text(encoding="utf-8")
    said = run(python, "-m", "pytest", "-o", "addopts=--import-mode=importlib", TESTS)
    passed = re.search(r"^=+ (\d+) passed(, \d+ warnings?)? in ", said, re.M)  # none was skipped
    assert passed is not None, said
    assert int(passed[1]) >= len(re.findall(r"^def test_", written, re.M)) > 10
