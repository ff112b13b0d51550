"""Writes the pages of docs/ that come from the code: `python -m tests.docs.site`; a test compares them.

docs/algorithms/NAME.md      one page per built-in algorithm, from its plugin and its curve (`tests.docs.curves`)
docs/algorithms/index.md     the list of them
docs/papers.md               what papers call our settings (`tests.docs.papers`)
docs/api.md                  the public names of `unified`, which mkdocstrings fills from their docstrings
"""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

from tests.docs import curves, papers
from tests.docs.picture import figure
from tests.docs.snippets import ROOT
from tests.docs.tables import settings_table
from unified import UserError, examine
from unified.errors import PluginError
from unified.parts import Algorithm
from unified.registry import catalogue
from unified.show import doc_of

DOCS = ROOT / "docs"
MADE = "<!-- made from the code by `python -m tests.docs.site`: edit the plugin, not this page -->\n"
FAMILIES = {
    "Imitation": "Answers are given; each token of theirs is raised, some more than others.",
    "Preferences": "Two answers or more to a prompt, of which some are better.",
    "Answers judged one by one": "Good and bad answers, without pairs.",
    "Policy gradients": "Answers are sampled from the policy as it is now, and judged.",
    "Distillation": "A teacher's distribution in the place of a reward.",
    "Scalar models": "Reward models and verifiers: the score is trained, not the probability.",
}
#: DESIGN 5.1, as docs/concepts.md has it
WEIGHTS = {
    "token": "1 / all tokens of the step",
    "sequence": "1 / answers · 1 / length of the answer",
    "sequence-sum": "1 / answers",
    "group": "1 / prompts",
    "group-token": "1 / prompts · 1 / tokens of the prompt's answers",
    "constant": "1 / (answers · L), L = `constant_length`",
}
HEADS = {
    "logp": "log π_θ(o_t | q, o_<t)",
    "entropy": "H(π_θ(· | q, o_<t))",
    "value": "V(q, o_<t)",
    "score": "s(q, o_≤t)",
    "logits": "(−divergence of π_θ from the teacher at t)",
}
#: two answers of 2 and 3 tokens, the first right: what an algorithm does to it stands on its page
EXAMPLE: dict[str, Any] = {
    "logp": [[-1.0, -0.5, 0.0], [-0.4, -1.2, -0.3]],
    "old_logp": [[-1.1, -0.5, 0.0], [-0.4, -1.0, -0.3]],
    "ref_logp": [[-1.2, -0.6, 0.0], [-0.5, -0.9, -0.4]],
    "value": [[0.5, 0.6, 0.0], [0.5, 0.4, 0.3]],
    "old_value": [[0.5, 0.6, 0.0], [0.5, 0.4, 0.3]],
    "score": [[0.1, 0.4, 0.0], [0.2, 0.1, -0.2]],
    "loss_mask": [[1, 1, 0], [1, 1, 1]],
    "group": [0, 0],
    "reward": [1, 0],
}
GREEK = {
    "beta": "β", "gamma": "γ", "lambda": "λ", "alpha": "α", "tau": "τ", "delta": "δ", "sigmoid": "σ",
}  # fmt: skip


def names() -> list[str]:
    """The built-in algorithms."""
    found = catalogue().names("algorithm")
    return [n for n in found if catalogue().provider("algorithm", n).startswith("plugin unified_plugins.")]


def family(name: str) -> str:
    """Which of FAMILIES an algorithm belongs to, by what it declares."""
    part: Algorithm = catalogue().get("algorithm", name)
    settings = part.settings()
    pushed = set(part.aggregations(settings))
    if "score" in pushed:
        return "Scalar models"
    online = bool(catalogue().get("source", part.source).online)
    if "logits" in pushed or (online and part.reward == "constant"):
        return "Distillation"
    if online:
        return "Policy gradients"
    if part.answers > 1:
        return "Preferences"
    return "Answers judged one by one" if "ref_logp" in part.names_read(settings) else "Imitation"


def said(name: str) -> dict[str, str]:
    """What the plugin says, by piece: title, formula, Use, Watch, Source. KeyError for a piece that is not there."""
    title, _, rest = doc_of("algorithm", catalogue().get("algorithm", name)).partition("\n")
    pieces = re.split(r"^(Use|Watch|Source): ", rest.strip(), flags=re.M)
    found = {"title": title.strip(), "formula": pieces[0].strip()}
    found |= {key: " ".join(text.split()) for key, text in zip(pieces[1::2], pieces[2::2], strict=True)}
    missing = {"formula", "Use", "Watch", "Source"} - {key for key, text in found.items() if text}
    if missing:
        raise KeyError(f"the docstring of algorithm '{name}' has no {', '.join(sorted(missing))}")
    return found


def page(name: str, measured: dict[str, Any]) -> str:
    """The page of one algorithm."""
    part: Algorithm = catalogue().get("algorithm", name)
    about = said(name)
    what, _, meaning = about["title"].partition(": ")
    parts = [
        MADE,
        f"# {name}\n\n**{what}**{': ' + meaning if meaning else ''}\n",
        f"## Formula\n\n{formula(part, about['formula'])}",
        example(name),
        f"## When to use it\n\n{sentence(about['Use'])}\n\n{needs(part)}",
        f"## What to watch\n\n{sentence(about['Watch'])}\n\nThe names that trackers give them: "
        "[trackers](../trackers.md).\n",
        f"## Settings\n\n{settings(part)}",
        f"## Source\n\n{linked(about['Source'])}\n\nThe plugin: `{file_of(name)}`. What the paper calls its settings: "
        "[papers](../papers.md).\n",
        mini(name, measured),
    ]
    return "\n".join(parts)


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    text = text[0].upper() + text[1:] if text[0] != "`" else text
    return linked(text if text.endswith(".") else f"{text}.")


def linked(text: str) -> str:
    """arXiv numbers as links, and no line over the width of a page."""
    text = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text.replace("<", "&lt;"))
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def formula(part: Algorithm, text: str) -> str:
    """The equation with this algorithm's heads and normalisers, and what the plugin says of GC and loss."""
    lines = []
    for head, how in part.aggregations(part.settings()).items():
        lines.append(f"∇J = Σ_o Σ_t  w · GC · ∇ {HEADS[head]},   w = {WEIGHTS[how].replace('`', '')}")
    body = " ".join(text.split())
    for word, letter in GREEK.items():
        body = re.sub(rf"\b{word}\b", letter, body)
    body = re.sub(r"(?<=[\s(])\+-(?=\w)", "±", body)
    body = re.sub(r"(?<=[\s(])-(?=[\w(])|(?<=\s)-(?=\s)", "−", body)
    clauses = re.split(r"(?<=[a-z0-9)\]])\. (?=[A-Z])|; (?=loss|GC)|(?<=\.) (?=GC)", body.replace("<", "&lt;"))
    rows = "\n".join(f"<p>{code(c.strip())}</p>" for c in clauses if c.strip())
    equations = "\n".join(f'<p class="equation">{line.replace("<", "&lt;")}</p>' for line in lines)
    return f'<div class="formula">\n{equations}\n{rows}\n</div>\n'


def code(text: str) -> str:
    """Back-quoted names as HTML: Markdown does not look into the block."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text)


def example(name: str) -> str:
    """GC of two answers; "" for an algorithm that needs more than such numbers."""
    try:
        shown = examine(name, EXAMPLE)
    except (UserError, PluginError):
        return ""
    rows = ["| head | answer | reward | token 1 | token 2 | token 3 |", "|---|---|---|---|---|---|"]
    for head, gc in shown.coefficient.items():
        for k, line in enumerate(gc.tolist()):
            cells = [
                f"{x + 0.0:+.3f}".replace("-", "−") if EXAMPLE["loss_mask"][k][t] else "" for t, x in enumerate(line)
            ]
            which = "first" if k == 0 else "second"
            rows.append(f"| {head} | {which} | {EXAMPLE['reward'][k]} | " + " | ".join(cells) + " |")
    return (
        "GC of two answers to one prompt, of 2 and 3 tokens, with the settings below; the same numbers for every "
        "algorithm\n(`EXAMPLE` in `tests/docs/site.py`), so that pages can be compared:\n\n" + "\n".join(rows) + "\n"
    )


def needs(part: Algorithm) -> str:
    """What a stage must have for it, as declared."""
    settings = part.settings()
    read = part.names_read(settings) | part.names_credited(settings)
    online = bool(catalogue().get("source", part.source).online)
    rows = [
        f"- Answers: source `{part.source}`" + (f", {part.answers} or more to a prompt." if part.answers > 1 else "."),
        "- Reward: " + ("the recipe must name one." if part.reward == "required" else f"`{part.reward}`."),
        "- Reference: " + ("a frozen copy of what the stage was handed." if "ref_logp" in read else "none."),
    ]
    if "value" in part.aggregations(settings):
        rows.append("- Critic: one is trained beside the policy.")
    if "teacher_logp" in read or "logits" in part.aggregations(settings):
        rows.append("- Teacher: `teacher:` names it.")
    if online:
        rows.append("- Sampling: the answers of each step are the policy's own, so most of the time goes there.")
    far = {"answer": "each answer by itself", "group": "all answers to a prompt together", "step": "the whole step"}
    rows.append(f"- Scope: `{part.scope_of(settings)}`, {far[part.scope_of(settings)]}.")
    return "\n".join(rows) + "\n"


def settings(part: Algorithm) -> str:
    """The table of settings."""
    if not part.settings.model_fields:
        return "It has none.\n"
    table = re.sub(r"\| (\{'name'.*?\}) \|", lambda m: f"| {written(m[1])} |", settings_table(part.settings))
    return f"{table}\n\nRules that a setting may name: [rules](../rules.md).\n"


def written(chosen: str) -> str:
    """A rule with its settings as a recipe has it, without those that are off."""
    words = chosen.replace("'", "").replace("True", "true").replace("False", "false")
    words = re.sub(r", \w+: (?:None|false|none)(?=[,}])", "", words)
    return f"`{words}`" if "," in words else f"`{words.removeprefix('{name: ').removesuffix('}')}`"


def file_of(name: str) -> str:
    """The file of the plugin, from the root of the repository."""
    provider = catalogue().provider("algorithm", name).removeprefix("plugin unified_plugins.")
    return f"plugins/{provider.replace('.', '/')}.py"


def mini(name: str, measured: dict[str, Any]) -> str:
    """The mini recipe and its curve."""
    if name in curves.WITHOUT:
        return f"## Mini recipe\n\nThere is none: {curves.WITHOUT[name]}.\n"
    found = measured[name]
    return (
        "## Mini recipe\n\nOn the embedded task, from random weights, in seconds on one core; "
        f"`unified run mini-{name}.yaml`:\n\n```yaml mini-{name}.yaml\n{curves.written(name)}```\n\n"
        f"{figure(name, found)}\n"
        f"Measured with seed {curves.SEED} by `python -m tests.docs.curves {name}`, and kept in "
        "`docs/algorithms/curves.json`. Another\nprocessor rounds otherwise: its curve differs by about the standard "
        "error, which is 0.02 to 0.03.\n"
    )


def index() -> str:
    """docs/algorithms/index.md."""
    parts = [
        MADE,
        "# Algorithms\n\nEach page is made from its plugin: formula, what it does to two answers, when to use it, what "
        "to watch, settings,\nsource, and a recipe of seconds with its measured curve. `unified show NAME` prints most "
        "of it at the terminal.\nAn algorithm of your own: [plugins](../plugins.md).\n",
    ]
    for title, about in FAMILIES.items():
        rows = ["| algorithm | what it is |", "|---|---|"]
        rows += [f"| [`{n}`]({n}.md) | {_cell(said(n)['title'])} |" for n in names() if family(n) == title]
        parts.append(f"## {title}\n\n{about}\n\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


#: the module of a public name -> the section of docs/api.md where it stands; others stand in the last one
SECTIONS = {
    "Run": ["api", "training", "recipe", "check", "runner", "coefficient_tool", "registry"],
    "Offer parts": ["hookspecs", "parts", "settings", "testing", "bench"],
    "Batches and data": ["batch", "data", "render", "judges", "attention", "precision"],
    "Stages": ["stage", "models", "work"],
    "Errors": ["errors", "secret"],
    "Further": [],
}


def api() -> str:
    """docs/api.md: one line per public name, which the site fills from the docstring."""
    import unified

    homes: dict[str, str] = {n: unified._HOME.get(n, n) for n in unified.__all__ if n != "__version__"}
    listed = {module for modules in SECTIONS.values() for module in modules}
    parts = [
        MADE,
        "# Python reference\n\nThe public names of `unified`, from their docstrings; what is not here may change "
        "without notice. Plugins import these\nand no others. Hooks are on the page [plugins](plugins.md).\n",
    ]
    for title, modules in SECTIONS.items():
        inside = [n for n, home in homes.items() if home in modules or (title == "Further" and home not in listed)]
        if inside:
            parts.append(f"## {title}\n")
        parts += [entry(n, homes[n]) for n in inside]
    return "\n".join(parts)


def entry(name: str, home: str) -> str:
    """The line that stands for a public name; one that is another package's is told by hand."""
    import unified

    found = getattr(unified, name)
    origin = found.__module__ if inspect.isfunction(found) or inspect.isclass(found) else "unified"
    if not origin.startswith("unified"):
        return f"### {name}\n\n`{name}` of the package `{origin.partition('.')[0]}`, as it is.\n"
    return f"::: unified.{home}{'.' + name if home != name else ''}\n"


def pages() -> dict[Path, str]:
    """Every page that is made, by its file."""
    measured = curves.stored()
    found = {DOCS / "algorithms" / f"{name}.md": page(name, measured) for name in names()}
    found[DOCS / "algorithms" / "index.md"] = index()
    found[DOCS / "papers.md"] = MADE + papers.page(names())
    found[DOCS / "api.md"] = api()
    return found


def main() -> None:
    """Write all pages, and remove those of algorithms that are gone."""
    made = pages()
    for old in (DOCS / "algorithms").glob("*.md"):
        if old not in made:
            old.unlink()
    for file, text in made.items():
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
