"""docs/example-plugin is a package: it installs without network, is found, trains, and its own tests pass."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.docs.snippets import ROOT

SOURCE = ROOT / "docs" / "example-plugin"


def can_build() -> bool:
    """Whether wheels can be made here without fetching anything: setuptools does it alone from 70.1 on."""
    if importlib.util.find_spec("setuptools") is None:
        return False
    newer = tuple(int(x) for x in version("setuptools").split(".")[:2]) >= (70, 1)
    return newer or importlib.util.find_spec("wheel") is not None


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as pip would leave it; the one place of a PYTHONPATH."""
    folder = tmp_path_factory.mktemp("installed")
    source = tmp_path_factory.mktemp("source") / "example-plugin"
    shutil.copytree(SOURCE, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    if can_build():
        pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation", "--quiet"]
        subprocess.run([*pip, "--target", str(folder), str(source)], check=True, capture_output=True, timeout=60)
        return folder
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    for module in tomllib.loads((source / "pyproject.toml").read_text())["tool"]["setuptools"]["py-modules"]:
        shutil.copy(source / f"{module}.py", folder)
    about = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    entries = [f"{name} = {module}\n" for name, module in project["entry-points"]["unified"].items()]
    (about / "entry_points.txt").write_text("".join(["[unified]\n", *entries]))
    return folder


def python(folder: Path, *arguments: str, at: Path) -> str:
    """What Python prints with the package installed; the test fails where Python does."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=at, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def said(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What `unified list algorithm`, `check` and `run` print, one after the other, and the run folder."""
    out = tmp_path_factory.mktemp("run") / "out"
    run = ["run", str(SOURCE / "recipe.yaml"), "--output", str(out), "--quiet"]
    commands = [["list", "algorithm"], ["check", "recipe.yaml"], run]
    code = f"from unified.cli import app\nfor command in {commands!r}:\n    app(command, standalone_mode=False)\n"
    return python(installed, "-c", code, at=SOURCE), out


def test_the_package_is_one_file_one_entry_point_and_tests() -> None:
    project = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]
    assert project["entry-points"] == {"unified": {"running_baseline": "running_baseline"}}
    assert [f.name for f in SOURCE.glob("*.py")] == ["running_baseline.py"]
    assert list((SOURCE / "tests").glob("test_*.py"))
    assert "from unified." not in (SOURCE / "running_baseline.py").read_text()


def test_an_installed_package_is_listed_with_its_name(said: tuple[str, Path]) -> None:
    line = next(line for line in said[0].splitlines() if line.startswith("  running_baseline"))
    assert "REINFORCE" in line
    assert "(plugin running_baseline)" in " ".join(said[0].split())


def test_its_recipe_passes_the_check_and_trains(said: tuple[str, Path]) -> None:
    printed, out = said
    assert "rl: train from stage:sft with algorithm running_baseline" in printed
    lines = (out / "rl" / "metrics.jsonl").read_text().splitlines()
    assert len([line for line in lines if '"mean_reward"' in line]) == 2  # of both steps: what `update` reads


def test_its_own_tests_pass(installed: Path, tmp_path: Path) -> None:
    shutil.copytree(SOURCE / "tests", tmp_path / "tests")
    options = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib", "--rootdir", str(tmp_path)]
    printed = python(installed, "-m", "pytest", *options, str(tmp_path / "tests"), at=tmp_path)
    assert "7 passed" in printed
