"""The lens as one HTML file: its style, its script, its data, and a policy that lets nothing else in."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources
from pathlib import Path
from typing import Any

from unified.errors import UserError
from unified.manifest import write_whole
from unified.report.page import embedded, text

#: the beginning of every page, by which one is known
MARK = "<!doctype html>\n<!-- unified lens -->"


def page(data: dict[str, Any]) -> str:
    """The page for some data (`pack.page_data`). What a model wrote stands in it as data, and nowhere as HTML."""
    style, script = _file("lens.css"), "\n".join(_file(name) for name in ("view.js", "lens.js"))
    rules = ["default-src 'none'", f"style-src {_hash(style)}", f"script-src {_hash(script)}", "img-src data:"]
    filled = {
        "{{policy}}": "; ".join([*rules, "base-uri 'none'", "form-action 'none'"]),
        "{{title}}": text(f"{data['title']} · unified lens"),
        "{{style}}": style,
        "{{script}}": script,
        "{{data}}": embedded(data),
    }
    parts = re.split(r"(\{\{\w+\}\})", _file("lens.html"))  # split once: what is filled in is not looked at again
    return "".join(filled.get(part, part) for part in parts)


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


def _hash(content: str) -> str:
    digest = hashlib.sha256(content.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _file(name: str) -> str:
    return resources.files("unified.lens").joinpath(name).read_text(encoding="utf-8")
