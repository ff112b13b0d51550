"""docs/papers.md: what a paper calls a setting, what it is called here, and the value it has; see `tests.docs.site`.

The symbols are kept here; values come from the plugins and, with the place where each is published, from the recipes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.docs.snippets import ROOT
from unified import Chosen
from unified.parts import Algorithm
from unified.registry import catalogue
from unified.settings import Settings

_PAIR = {"beta": "β"}
_CLIP = {"ratio.low": "ε, downwards", "ratio.high": "ε, upwards"}
_CRITIC = {
    "advantage.gamma": "γ, discount",
    "advantage.lam": "λ",
    **_CLIP,
    "kl_weight": "β, coefficient of the KL",
    "value_weight": "c₁, coefficient of the value loss",
    "value_clip": "ε of the value function",
}
_UNPAIRED = {**_PAIR, "desirable_weight": "λ_D", "undesirable_weight": "λ_U"}
#: algorithm -> our setting, dotted -> the paper's name of it
SYMBOLS: dict[str, dict[str, str]] = {
    "alphapo": {"beta": "β", "gap": "γ", "transform.alpha": "α"},
    "aot": _PAIR,
    "aot_unpaired": _PAIR,
    "apo_down": _PAIR,
    "apo_zero": _PAIR,
    "apo_zero_unpaired": _PAIR,
    "bco": _PAIR,
    "cispo": {"ratio.high": "ε_high^IS, the cap less 1", "ratio.low": "ε_low^IS"},
    "clip_cov": {"ratio.share": "r, share of tokens", "ratio.floor": "ω_low", "ratio.ceiling": "ω_high"},
    "cpo": {"beta": "β", "nll_weight": "weight of L_NLL"},
    "dapo": {"ratio.low": "ε_low", "ratio.high": "ε_high"},
    "discopop": {"beta": "β", "link.tau": "τ"},
    "distill_forward": {"temperature": "T"},
    "dpo": _PAIR,
    "dpo_norm": _PAIR,
    "dpo_pl": _PAIR,
    "dr_grpo": {"ratio.low": "ε", "ratio.high": "ε", "constant_length": "the constant L in the place of the length"},
    "exo": {"beta": "β", "link.label_smoothing": "ε, smoothing of the label"},
    "gkd": {"divergence.beta": "β of JSD(β)", "temperature": "temperature γ"},
    "gmpo": {"ratio.low": "-log ε₁", "ratio.high": "log ε₂"},
    "grpo": {**_CLIP, "kl_weight": "β"},
    "gspo": {"ratio.low": "left clipping range", "ratio.high": "right clipping range"},
    "ipo": {"beta": "τ"},
    "kl_cov": {"ratio.share": "k, share of tokens", "ratio.weight": "β, coefficient of the KL"},
    "kto": _UNPAIRED,
    "ld_dpo": {"beta": "β", "margin.alpha": "α"},
    "minillm": {"ratio.low": "ε", "ratio.high": "ε"},
    "nash_md": {"beta": "τ"},
    "nca": _PAIR,
    "orpo": {"comparison_weight": "λ"},
    "ppo": _CRITIC,
    "reinforce_pp": {**_CLIP, "kl_weight": "β", "advantage.gamma": "γ"},
    "reinforce_pp_baseline": {**_CLIP, "kl_weight": "λ, coefficient of the KL loss"},
    "reward_model": {"margin": "m(r), column of the data", "centring": "η"},
    "rloo": {"kl_weight": "β"},
    "robust_dpo": {"beta": "β", "link.label_smoothing": "ε, share of flipped labels"},
    "rpo": {"beta": "β", "nll_weight": "α"},
    "sapo": {"ratio.positive": "τ_pos", "ratio.negative": "τ_neg"},
    "simpo": {"beta": "β", "gap": "γ"},
    "slic": {"nll_weight": "λ", "gap": "δ less 1"},
    "sppo": {"beta": "1 / η"},
    "tpo": {"beta": "β", "nll_weight": "α", "gap": "γ of TPO-L"},
    "vapo": {"advantage.length_alpha": "α", "advantage.value_lam": "λ of the critic", "ratio.high": "ε_high"},
    "wpo": _PAIR,
    "xpo": {"beta": "β", "alpha": "α"},
}
#: what the field says -> what it is called here, and where it stands
WORDS = [
    ("G, K, N, n; samples or rollouts per prompt", "source.group_size", "1 where the algorithm compares nothing"),
    ("T, temperature of sampling", "source.temperature", "log-probs in training are of the same temperature"),
    ("longest answer, response length", "source.max_tokens", ""),
    ("context, sequence length", "max_length", "of prompt and answer; longer rows are an error, see `too_long`"),
    ("prompts of a rollout or exploration step", "collect_size", "in prompts, not in answers"),
    ("(mini-)batch of an update", "batch_size", "in prompts: divide a batch of answers by `source.group_size`"),
    ("micro-batch, per-device batch, accumulation", "tokens_per_micro_batch", "does not change the gradient"),
    ("K or μ, PPO epochs, iterations, updates per rollout", "inner_epochs", "passes over what was collected at once"),
    ("learning rate of actor and critic", "learning_rate", "`{policy: 1e-6, critic: 1e-5}`"),
    ("decay to a share of the peak", "lr_scheduler_kwargs", "`cosine_with_min_lr`, `{min_lr_rate: 0.1}`"),
    ("reference replaced every N steps", "ref_sync_steps", ""),
    ("share of the policy in the new reference", "ref_mixup_alpha", ""),
    ("dynamic sampling, filter of groups without spread", "filters", "`[no_spread]`, with `refill`"),
    ("gradient clipping, max norm", "max_grad_norm", ""),
    ("packing", "layout", "`packed`; does not change the gradient"),
]


@dataclass(frozen=True)
class Published:
    """One line of a recipe that says where its value comes from."""

    stage: str
    key: str
    value: str
    source: str

    @property
    def ours(self) -> bool:
        """Whether the value is a choice of ours, because the paper has none."""
        return self.source.startswith("n.p.")


def value_of(settings: Settings, path: str) -> Any:
    """The value at a dotted path; KeyError where there is none."""
    found: Any = settings
    for word in path.split("."):
        found = found.settings if isinstance(found, Chosen) else found
        if word not in type(found).model_fields:
            raise KeyError(f"{path}: {type(found).__name__} has no '{word}'")
        found = getattr(found, word)
    return found


def symbols_table(names: list[str]) -> str:
    """One row per setting of an algorithm that its paper names."""
    rows = ["| algorithm | in the paper | here | default |", "|---|---|---|---|"]
    for name in names:
        part: Algorithm = catalogue().get("algorithm", name)
        settings = part.settings()
        for path, symbol in SYMBOLS.get(name, {}).items():
            value = value_of(settings, path)
            shown = "–" if value is None else f"`{value}`"
            rows.append(f"| [`{name}`](algorithms/{name}.md) | {symbol} | `{path}` | {shown} |")
    return "\n".join(rows)


_LINE = re.compile(r"^(?P<indent> *)(?:- )?(?P<key>[\w.-]+):(?P<value>.*?)(?:\s+# ?(?P<source>.*))?$")


def published(recipe: Path) -> list[Published]:
    """The values of a recipe that have a source beside them, in order, those of its profiles left out."""
    found: list[Published] = []
    at: list[tuple[int, str]] = []
    for line in recipe.read_text(encoding="utf-8").splitlines():
        if line.startswith("profiles:"):
            break
        match = _LINE.match(line)
        if match is None or line.lstrip().startswith("#"):
            continue
        indent = len(match["indent"]) + (2 if line.lstrip().startswith("- ") else 0)
        at = [(depth, key) for depth, key in at if depth < indent] + [(indent, match["key"])]
        path = [key for _, key in at]
        if match["source"] is None or not match["value"].strip():
            continue
        stage = path[1] if path[0] == "stages" else path[0] if len(path) > 1 else ""
        inside = path[2:] if path[0] == "stages" else path[1:] or path
        value = re.sub(r"^&\w+ ", "", match["value"].strip())
        found.append(Published(stage, ".".join(inside) or "the stage", value, match["source"].strip()))
    return found


def recipe_section(recipe: Path) -> str:
    """What the paper of a recipe publishes: stage, setting, value, place."""
    values = published(recipe)
    told, ours = [v for v in values if not v.ours], [v for v in values if v.ours]
    lines = recipe.read_text(encoding="utf-8").splitlines()
    title = lines[0].lstrip("# ").rstrip()
    rows = ["| stage | here | value | where it is published |", "|---|---|---|---|"]
    rows += [f"| {v.stage or '–'} | `{v.key}` | {_code(v.value)} | {_cell(v.source)} |" for v in told]
    choices = ", ".join(sorted({f"`{v.stage + '.' if v.stage else ''}{v.key}`" for v in ours}))
    last = f"\nNot published there, and chosen by us: {choices}.\n" if ours else ""
    link = f"[`{recipe.name}`](../recipes/{recipe.name})"
    return f"### {recipe.stem}\n\n{_cell(title)} ({link})\n\n" + "\n".join(rows) + "\n" + last


def recipes() -> list[Path]:
    """The recipes that have published values beside them."""
    return [file for file in sorted((ROOT / "recipes").glob("*.yaml")) if any(not v.ours for v in published(file))]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _code(value: str) -> str:
    return f"`{value}`".replace("|", "\\|")


INTRODUCTION = """\
# Papers, and our settings

What a paper calls a setting, what it is called here, and which value it has. The values of algorithms are defaults of
the plugins; those of recipes stand in the recipe, each with its place beside it.

## Words

| in papers and libraries | here | note |
|---|---|---|
"""


def page(names: list[str]) -> str:
    """docs/papers.md."""
    words = "".join(f"| {theirs} | `{ours}` | {note or '–'} |\n" for theirs, ours, note in WORDS)
    sections = "\n".join(recipe_section(file) for file in recipes())
    return (
        f"{INTRODUCTION}{words}\n## Algorithms\n\nWhere the source is, each page says. A dotted name is a setting of "
        "the rule that is chosen there: `ratio.high` is\nwritten `ratio: {name: clip, high: 0.28}`.\n\n"
        f"{symbols_table(names)}\n\n## Recipes\n\n{sections}"
    )
