"""Installs Liger and Triton into an environment of its own, beside what is installed here, and runs the kernels.

With UNIFIED_TRITON set to the python of an environment that has them beside torch, nothing is installed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.docs.snippets import ROOT

TESTS = "tests/engine/test_fused_logprob_package.py"
#: Triton as torch 2.13 for GPUs has it; the CPU build has none
PACKAGES = ("liger-kernel==0.8.5", "triton==3.7.1")


def run(*command: str | Path) -> str:
    """What a command prints; it fails the test where it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [str(part) for part in command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture
def python(tmp_path: Path) -> str:
    """An interpreter with the packages; of what is installed here it replaces nothing."""
    if given := os.environ.get("UNIFIED_TRITON"):
        return given
    venv.create(tmp_path / "venv", with_pip=True)
    own = str(tmp_path / "venv" / "bin" / "python")
    packages = Path(run(own, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip())
    here = sysconfig.get_paths()["purelib"]
    (packages / "beside.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    run(own, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", *PACKAGES)
    made = run(own, "-m", "pip", "list", "--format=freeze", "--path", str(packages)).splitlines()
    own_tools = ("pip==", "setuptools==")
    assert {line for line in made if not line.startswith(own_tools)} == {"liger_kernel==0.8.5", "triton==3.7.1"}
    return own


@pytest.mark.slow
def test_the_kernels_of_the_pinned_package_give_our_log_probs_and_gradients(python: str) -> None:
    written = (ROOT / TESTS).read_text(encoding="utf-8")
    said = run(python, "-m", "pytest", "-o", "addopts=--import-mode=importlib", TESTS)
    passed = re.search(r"^=+ (\d+) passed(, \d+ warnings?)? in ", said, re.M)  # none was skipped
    assert passed is not None, said
    assert int(passed[1]) > len(re.findall(r"^def test_", written, re.M)) >= 3


def test_the_extra_has_the_version_that_the_kernels_are_run_in() -> None:
    assert 'gpu = ["liger-kernel>=0.8.5,<0.9; ' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert PACKAGES[0] in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
