"""A headless Chromium for tests of pages: the one that is installed, or one that this fetches."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PACKAGES = ("chromium", "fonts-dejavu-core")
#: what may bring one: playwright's own build, or the distribution's package
WAYS = (
    [sys.executable, "-m", "playwright", "install", "chromium"],
    ["apt-get", "update"],
    ["apt-get", "-o", "DPkg::Lock::Timeout=300", "install", "-y", "--no-install-recommends", *PACKAGES],
)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser. RuntimeError with what was tried where none can be had."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_executable(playwright), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def _executable(playwright: Any) -> str:
    """The path of a Chromium, after installing one where there is none."""
    tried = []
    for way in ([], *WAYS):
        if way:
            tried.append(_run(way))
        found = [path for name in NAMES if (path := shutil.which(name))]
        own = playwright.chromium.executable_path
        if Path(own).exists():
            found.insert(0, own)
        if found:
            return found[0]
    raise RuntimeError("no Chromium, and none could be installed:\n" + "\n".join(tried))


def _run(way: list[str]) -> str:
    if shutil.which(way[0]) is None:
        return f"{way[0]}: not there"
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(way, capture_output=True, text=True, timeout=600, env=env, check=False)
    except subprocess.TimeoutExpired:
        return f"{' '.join(way)}: took more than 10 minutes"
    return f"{' '.join(way)}: exit code {done.returncode}: {(done.stderr or done.stdout)[-300:].strip()}"
