"""The page as one file: its style, its script and its data, and a policy that lets nothing else in."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from importlib import resources
from typing import Any

#: the beginning of every report, by which one is known
MARK = "<!doctype html>\n<!-- unified report -->"
#: scripts of the page, in order
SCRIPTS = ("curve.js", "chart.js", "parts.js", "page.js")


def page(data: dict[str, Any]) -> str:
    """The page for some data (`collect.page_data`)."""
    style, script = _file("page.css"), "\n".join(_file(name) for name in SCRIPTS)
    runs = data["runs"]
    title = " vs ".join(run["label"] for run in runs) if len(runs) > 1 else runs[0]["label"]
    filled = {
        "{{policy}}": policy(live=data["live"]),
        "{{title}}": text(f"{title} · unified report"),
        "{{style}}": style,
        "{{script}}": script,
        "{{data}}": embedded(data),
    }
    parts = re.split(r"(\{\{\w+\}\})", _file("page.html"))  # split once: what is filled in is not looked at again
    return "".join(filled.get(part, part) for part in parts)


def policy(*, live: bool) -> str:
    """The Content-Security-Policy: our own style and script by their hashes, and nothing from anywhere else.

    live: the page may ask the server that it came from for changes.
    """
    style, script = _file("page.css"), "\n".join(_file(name) for name in SCRIPTS)
    rules = ["default-src 'none'", f"style-src {_hash(style)}", f"script-src {_hash(script)}", "img-src data:"]
    rules += ["base-uri 'none'", "form-action 'none'", *(["connect-src 'self'"] if live else [])]
    return "; ".join(rules)


def embedded(data: Any) -> str:
    """Data as JSON that may stand in a script element: no `<` begins a tag or a comment there."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    text = text.encode("utf-8", errors="replace").decode("utf-8")  # halves of characters that some tokenizer left
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def text(value: str) -> str:
    """A text as HTML."""
    safe = value.encode("utf-8", errors="replace").decode("utf-8")
    return safe.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def _hash(content: str) -> str:
    digest = hashlib.sha256(content.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _file(name: str) -> str:
    return resources.files("unified.report").joinpath(name).read_text(encoding="utf-8")
