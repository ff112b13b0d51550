"""Reads the code blocks of the README and of docs/. A block's first line says how it is tested.

```yaml                 a whole recipe: it passes `unified check`
```yaml NAME            the same, and later commands of the page find it under that name
```yaml stage           stages, put behind the stages `start` and `scorer` of FRAME, then the same
```yaml broken-NAME     a recipe with mistakes, for the page that shows their messages
```json NAME            a file for later commands and recipes of the page
```toml NAME            a file that is valid TOML
```python               a program: it runs; `unified` is used from its public names only
```python ./NAME.py     a file for recipes of the page, which also runs by itself
```python NAME.py       a plugin: it registers, and every part that it offers is in the catalogue of the page
```console              lines with `$ ` run; what stands under them is compared, see CHEAP in test_snippets.py
```bash                 commands alone, tested as those of console blocks
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "migration").glob("*.md")),
]
FRAME = """\
name: frame
model:
  new: {model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2}
  tokenizer: random_walks
stages:
  start: {algorithm: sft, data: random_walks}
  scorer: {algorithm: reward_model, model: stage:start, data: {name: random_walks, view: ranked}}
"""
_BLOCK = re.compile(r"^```(?P<language>\w+)(?: +(?P<name>\S+))?[ ]*\n(?P<text>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Snippet:
    """One code block: its page, the line of its first line of code, its language, its name ("" for none)."""

    page: Path
    line: int
    language: str
    name: str
    text: str

    @property
    def label(self) -> str:
        """How a test calls it."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_plugin(self) -> bool:
        """Whether it is a plugin: a Python file that is none of a recipe."""
        return self.language == "python" and bool(self.name) and not self.name.startswith("./")

    @property
    def commands(self) -> list[tuple[str, str]]:
        """(command, what is printed below it) of a console or bash block; a line that ends in \\ goes on."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "bash":
            return [(line.strip(), "") for line in lines if line.strip() and not line.startswith("#")]
        found: list[tuple[str, str]] = []
        for line in lines:
            if line.startswith("$ "):
                found.append((line[2:].strip(), ""))
            elif found:
                command, shown = found[-1]
                found[-1] = (command, f"{shown}{line}\n")
        return found

    @property
    def recipe(self) -> str:
        """The recipe that a yaml block is, or stands for."""
        if self.name != "stage":
            return self.text
        return FRAME + "".join(f"  {line}" if line.strip() else line for line in self.text.splitlines(keepends=True))


def snippets(page: Path) -> list[Snippet]:
    """The code blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Snippet(page, text.count("\n", 0, m.start()) + 2, m["language"], m["name"] or "", m["text"])
        for m in _BLOCK.finditer(text)
    ]


def all_snippets(*languages: str) -> list[Snippet]:
    """The code blocks of all pages in any of these languages."""
    return [s for page in PAGES for s in snippets(page) if s.language in languages]


def write_files(page: Path, folder: Path) -> None:
    """Put the named files of a page, and the repository's recipes, where its commands expect them."""
    for s in snippets(page):
        if s.name and s.name != "stage":
            (folder / s.name).parent.mkdir(parents=True, exist_ok=True)
            (folder / s.name).write_text(s.text, encoding="utf-8")
    (folder / "recipes").symlink_to(ROOT / "recipes")
