"""What mkdocs must be told to make a site of pages that are also read in the repository; named in mkdocs.yml.

Pages beside docs/ (the list of recipes, CONTRIBUTING, SECURITY) become pages of the site, and files that a page links
to (a recipe, a plugin) lie in files/. Links between them are turned accordingly. The first line of a code block may
name a file for the tests (see `tests.docs.snippets`); here it becomes its title.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
#: file of the repository -> page of the site
PAGES = {
    "README.md": "index.md",
    "recipes/README.md": "published.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
MADE = {name: page for name, page in PAGES.items() if page != "index.md"}
_LINK = re.compile(r"(?<=\]\()(?P<to>[^)#:\s]+)(?=(#[^)]*)?\))")
_FENCE = re.compile(r"^```(\w+) +(\S+) *$", re.M)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Complete the navigation."""
    complete(config.nav or [])
    return config


def complete(nav: list[Any]) -> None:
    """Add a page for each algorithm, by family, and to the guides the pages of docs/ that are named nowhere."""
    unnamed = sorted({file.name for file in (ROOT / "docs").glob("*.md")} - set(named(nav)))
    for entry in nav:
        if "Algorithms" in entry:
            entry["Algorithms"] = ["algorithms/index.md", *algorithms()]
        if "Guides" in entry:
            entry["Guides"] += unnamed


def named(nav: Any) -> Iterator[str]:
    """The pages of a navigation."""
    if isinstance(nav, str):
        yield nav
    for entry in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from named(entry)


def algorithms() -> list[dict[str, list[dict[str, str]]]]:
    """The families of docs/algorithms/index.md with their pages."""
    text = (ROOT / "docs" / "algorithms" / "index.md").read_text(encoding="utf-8")
    found = []
    for section in re.split(r"^## ", text, flags=re.M)[1:]:
        title, _, body = section.partition("\n")
        names = re.findall(r"^\| \[`(\w+)`\]\(\1\.md\)", body, re.M)
        found.append({title: [{name: f"algorithms/{name}.md"} for name in names]})
    return found


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages beside docs/, and the files of the repository that pages link to."""
    from mkdocs.structure.files import File

    for name, page in MADE.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    sources = [*(ROOT / "docs").rglob("*.md"), *(ROOT / name for name in MADE)]
    linked = {target for source in sources for target in targets(source)}
    for target in sorted(linked):
        files.append(File.generated(config, f"files/{target}", content=(ROOT / target).read_text(encoding="utf-8")))
    return files


def targets(source: Path) -> set[str]:
    """The files of the repository outside docs/, and no pages of the site, that a page links to."""
    found = {
        posixpath.normpath(posixpath.join(source.parent.relative_to(ROOT).as_posix(), match["to"]))
        for match in _LINK.finditer(source.read_text(encoding="utf-8"))
    }
    return {t for t in found if not t.startswith("docs/") and t not in PAGES and (ROOT / t).is_file()}


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links and the first lines of code blocks."""
    at = page.file.src_uri
    origin = next((name for name, made in MADE.items() if made == at), f"docs/{at}")
    turned = _LINK.sub(lambda match: link(match["to"], origin, at), markdown)
    return _FENCE.sub(lambda m: fence(m[1], m[2]), turned)


def link(to: str, origin: str, at: str) -> str:
    """A link of the file `origin` of the repository, as the page `at` of the site must have it; others stay."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), to))
    if not (ROOT / target).exists():
        return to
    if (ROOT / target).is_dir():
        target += "/README.md"
    inside = target.startswith("docs/")
    site = target.removeprefix("docs/") if inside else PAGES.get(target, f"files/{target}")
    return posixpath.relpath(site, posixpath.dirname(at) or ".")


def fence(language: str, name: str) -> str:
    """The first line of a code block for the site."""
    if name == "stage":
        return f"```{language}"
    return f'```{language} title="{name.removeprefix("./").removeprefix("broken-")}"'
