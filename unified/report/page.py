"""The page as one file: its style, its script and its data, and a policy that lets nothing else in."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

#: the beginning of every report, by which one is known
MARK = "<!doctype html>\n<!-- unified report -->"
#: scripts of the page, in order
SCRIPTS = ("curve.js", "chart.js", "parts.js", "coefficients.js", "page.js")


def page(data: dict[str, Any]) -> str:
    """The page for some data (`collect.page_data`)."""
    runs = data["runs"]
    title = " vs ".join(run["label"] for run in runs) if len(runs) > 1 else runs[0]["label"]
    style, script = own_files("unified.report", "page.css", SCRIPTS)
    about = {"{{mark}}": "unified report", "{{title}}": text(f"{title} · unified report")}
    labels = {"{{controls}}": "How the curves are shown", "{{what}}": "This report draws its curves"}
    return filled({**about, **labels}, data, style, script, policy(live=data["live"]))


def policy(*, live: bool) -> str:
    """The Content-Security-Policy of the report; live: it may ask the server that it came from for changes."""
    return policy_of(*own_files("unified.report", "page.css", SCRIPTS), live=live)


def own_files(package: str, style: str, scripts: Sequence[str]) -> tuple[str, str]:
    """The style and all scripts, one behind the other, that lie in a package."""
    read = [resources.files(package).joinpath(name).read_text(encoding="utf-8") for name in (style, *scripts)]
    return read[0], "\n".join(read[1:])


def filled(words: Mapping[str, str], data: dict[str, Any], style: str, script: str, rules: str) -> str:
    """The page that report and lens have in common, with its words, data, style and script, and its policy."""
    values = {
        **words, "{{policy}}": rules, "{{style}}": style, "{{script}}": script, "{{data}}": embedded(data),
    }  # fmt: skip
    template = resources.files("unified.report").joinpath("page.html").read_text(encoding="utf-8")
    parts = re.split(r"(\{\{\w+\}\})", template)  # split once: what is filled in is not looked at again
    return "".join(values.get(part, part) for part in parts)


def policy_of(style: str, script: str, *, live: bool = False) -> str:
    """A Content-Security-Policy: this style and script by their hashes, and nothing from anywhere else.

    live: the page may ask the server that it came from.
    """
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
