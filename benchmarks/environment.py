"""The peer's environment, and what a result must say of where it was measured. Imports no torch."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".bench"
RESULTS = ROOT / "benchmarks" / "results"
#: of the peer; the rest of its environment follows the project's constraints, so that both run on the same libraries
PEER = ("torch==2.13.0", "trl==1.16.0")
SHARED = ("transformers", "accelerate", "datasets", "tokenizers", "numpy")
#: not part of a comparison: changing them does not make results old
ASIDE = ("report.py", "rollout.py", "tokenise.py", "predictions.py", "__main__.py")


def peer_python() -> Path:
    """The interpreter of the peer's environment, which is made first where it is missing (minutes, once).

    Options for pip (another index for torch, say) are read from PIP_ARGS, as the Makefile has them.
    """
    home = CACHE / "venv"
    python, done = home / "bin" / "python", home / ".installed"
    wanted = " ".join([*PEER, *constrained()])
    if not done.is_file() or done.read_text() != wanted:
        if not python.is_file():
            subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        options = ["--quiet", "--disable-pip-version-check", *shlex.split(os.environ.get("PIP_ARGS", ""))]
        subprocess.run([str(python), "-m", "pip", "install", *options, *wanted.split()], check=True)
        done.write_text(wanted)
    return python


def constrained() -> list[str]:
    """The project's pinned versions of what both sides run on."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line.partition("==")[0] in SHARED]


def code_version(root: Path = ROOT) -> str:
    """A hash of everything that a comparison runs on this side: the engine, the plugins, and the benchmarks."""
    digest = hashlib.sha256()
    for folder in ("unified", "plugins", "benchmarks"):
        for path in sorted((root / folder).rglob("*.py")):
            if folder != "benchmarks" or path.name not in ASIDE:
                digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def machine() -> str:
    """Processor, cores and memory."""
    model, flags = platform.machine(), ""
    if (info := Path("/proc/cpuinfo")).is_file():
        lines = [line.partition(":") for line in info.read_text().splitlines()]
        known = {key.strip(): value.strip() for key, _, value in reversed(lines)}
        model, flags = known.get("model name", model), known.get("flags", "")
    bf16 = [name for name in ("avx512_bf16", "amx_bf16") if name in flags.split()]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return ", ".join([model, f"{os.cpu_count()} cores", f"{memory:.0f} GiB", *bf16])


def versions() -> dict[str, str]:
    """Of Python and of the libraries that both sides run on; of the peer, what it is installed by."""
    found = {name: metadata.version(name) for name in ("torch", "transformers", "accelerate")}
    return {"python": platform.python_version(), **found, "trl": PEER[1].partition("==")[2]}


def load() -> float:
    """Processes that wanted to run in the last minute, on average."""
    return os.getloadavg()[0]
