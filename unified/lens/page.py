"""The lens as one HTML file: its style, its script, its data, and a policy that lets nothing else in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unified.errors import UserError
from unified.manifest import write_whole
from unified.report.page import filled, own_files, policy_of, text

#: the beginning of every page, by which one is known
MARK = "<!doctype html>\n<!-- unified lens -->"


def page(data: dict[str, Any]) -> str:
    """The page for some data (`pack.page_data`). What a model wrote stands in it as data, and nowhere as HTML."""
    style, script = own_files("unified.lens", "lens.css", ("view.js", "lens.js"))
    about = {"{{mark}}": "unified lens", "{{title}}": text(f"{data['title']} · unified lens")}
    labels = {"{{controls}}": "What is shown", "{{what}}": "This page draws its tables"}
    return filled({**about, **labels}, data, style, script, policy_of(style, script))


def write_page(path: Path, data: dict[str, Any]) -> None:
    """Write the page. UserError where the file is something else than an earlier one, or cannot be written."""
    if path.is_dir():
        raise UserError(f"{path} is a folder", f"name a file in it: --output {path / 'lens.html'}")
    try:
        if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(MARK):
            raise UserError(f"{path} is there already and is no page of the lens", "give another file with --output")
        write_whole(path, page(data))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}", "give another file with --output") from error
