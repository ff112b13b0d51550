"""DeepSpeed, which nothing here depends on, in an environment of its own."""

from __future__ import annotations

import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def deepspeed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that sees what is installed here, and DeepSpeed."""
    home = tmp_path_factory.mktemp("deepspeed") / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    [packages] = (home / "lib").glob("python*/site-packages")
    (packages / "beside.pth").write_text(f"import site; site.addsitedir({sysconfig.get_paths()['purelib']!r})\n")
    install = [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", "deepspeed"]
    done = subprocess.run(install, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return python
