"""From nothing to a trained model of one's own algorithm: `unified plugin new`, an edit, an installation, a run."""

from __future__ import annotations

import difflib
import json
import os
import site
import subprocess
import sys
import sysconfig
import venv
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.docs.snippets import ROOT, snippets
from tests.docs.test_example_plugin import can_build
from unified.plugin_new import new_plugin

#: what issue and docs promise
MOST_COMMANDS, MOST_LINES = 10, 40

PAGE = ROOT / "docs" / "plugins.md"
#: file -> (as it was written, as the author wants it); the module is that of the docs
EDITS = {
    "tests/test_good_enough.py": [
        ("is_the_scaled_reward", "is_one_from_the_threshold_on"),
        ('["scale=2"]', '["threshold=0.75"]'),
        ("[[2.0, 2.0], [1.0, 1.0]]", "[[1.0, 1.0], [0.0, 0.0]]"),
    ],
    "recipe.yaml": [("scale: 1.0", "threshold: 0.0")],
}


class Shell:
    """A shell in an environment of its own that sees the packages of this one; counts what is typed."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder / "env")  # pip and setuptools are those of this environment
        self.bin, self.commands, self.folder = folder / "env" / "bin", 0, folder
        packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "env")}))
        ours = [p for p in (*site.getsitepackages(), sysconfig.get_path("purelib")) if Path(p).is_dir()]
        lines = [f"import site; site.addsitedir({path!r})\n" for path in dict.fromkeys(ours)]
        (packages / "as-here.pth").write_text("".join(lines))
        main = "import sys\nfrom unified.cli import main\nsys.exit(main())\n"
        (self.bin / "unified").write_text(f"#!{self.bin / 'python'}\n{main}")
        (self.bin / "unified").chmod(0o755)

    def __call__(self, command: str, *, at: Path) -> str:
        """What a command prints; the test fails where the command does."""
        self.commands += 1
        program, *arguments = command.split()
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON"))}
        environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "120", "XDG_CACHE_HOME": str(self.folder / "cache")}
        done = subprocess.run(
            [str(self.bin / program), *arguments], cwd=at, env=environment, capture_output=True, text=True, timeout=180
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def shown(name: str) -> str:
    """A block of the page."""
    (block,) = (s for s in snippets(PAGE) if s.name == name)
    return block.text


def edit(package: Path) -> int:
    """Make the edits; how many lines differ from what was written."""
    changed = 0
    for file in ("good_enough.py", *EDITS):
        before = text = (package / file).read_text()
        for old, new in EDITS.get(file, []):
            assert text.count(old) == 1, f"{file} has {text.count(old)} times: {old}"
            text = text.replace(old, new)
        text = text if file in EDITS else shown(file)
        (package / file).write_text(text)
        lines = difflib.ndiff(before.splitlines(), text.splitlines())
        changed += sum(line.startswith("+ ") for line in lines)
    return changed


def test_the_page_shows_the_package_as_it_is_after_the_edits_and_says_how_many_they_are(tmp_path: Path) -> None:
    package = new_plugin("good_enough", "algorithm", tmp_path)
    edited = edit(package)
    recipe = "".join((package / "recipe.yaml").read_text().splitlines(keepends=True)[1:])
    assert recipe == shown("try.yaml")
    assert edited == 8
    assert "Eight lines differ" in PAGE.read_text()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="an environment has its programs elsewhere there")
@pytest.mark.skipif(not can_build() or find_spec("pip") is None, reason="no pip, or no setuptools that makes wheels")
def test_a_stranger_trains_with_an_algorithm_of_their_own_after_ten_commands_and_forty_edited_lines(
    tmp_path: Path,
) -> None:
    shell = Shell(tmp_path)
    shell("unified plugin new good_enough --kind algorithm", at=tmp_path)
    package = tmp_path / "good-enough"
    edited = edit(package)
    pip = "python -m pip install --no-index --no-deps --no-build-isolation --quiet --disable-pip-version-check"
    shell(f"{pip} .", at=package)
    assert "3 passed" in shell("python -m pytest -p no:cacheprovider", at=package)
    assert "1 of 1 parts checked, 0 findings" in shell("unified plugin check good_enough", at=package)
    shell("unified run recipe.yaml --quiet", at=package)

    stage = package / "runs" / "try-good-enough" / "train"
    assert (stage / "model" / "model.safetensors").is_file()
    manifest = json.loads((stage / "manifest.json").read_text())
    assert manifest["settings"]["algorithm"] == {"name": "good_enough", "threshold": 0.0}
    assert manifest["versions"]["good-enough"] == "0.1.0"  # the package that it came from is written down
    steps = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    # every reward is 0 or more, the threshold 0: GC is 1 for all answers
    assert [step["gc/abs"] for step in steps if "gc/abs" in step] == pytest.approx([1.0, 1.0])

    listed = json.loads(shell("unified plugin list --json", at=tmp_path))
    (own,) = [one for one in listed if one["name"] == "good_enough"]
    assert (own["package"], own["parts"]) == ("good-enough", {"algorithm": ["good_enough"]})
    assert own["path"].startswith(str(tmp_path / "env"))
    assert 0 < edited <= MOST_LINES
    assert shell.commands <= MOST_COMMANDS
