"""What metrics are called, measured in, and shown with."""

from __future__ import annotations

import re
from collections.abc import Iterable

#: (heading, pattern of the names of its metrics without eval/); the first that fits counts
SECTIONS = (
    ("Coefficients", r"^gc"),
    ("Speed", r"^tokens$|seconds|per_second|memory"),
    ("Left out", r"^dropped|missing|^nonfinite|skipped|filtered"),
    ("Lengths, entropy, clipping", r"length|clip|nats|entropy|repeated"),
    ("KL", r"(^|[/_])kl"),
    ("Reward and accuracy", r"reward|accura|margin|^score$|^returns$|correct|pass"),
    ("Loss and optimiser", r"loss|logp|grad_norm|learning_rate|advantage|value_error$"),
    ("Other", r""),
)
#: order in which the sections stand on the page
ORDER = ("Reward and accuracy", "KL", "Lengths, entropy, clipping", "Coefficients", "Loss and optimiser", "Speed",
         "Left out", "Other")  # fmt: skip
#: what a reader looks for, with the section where its absence is said, and a pattern
EXPECTED = (
    ("reward", "Reward and accuracy", r"^(eval/)?rewards?(/|$)"),
    ("KL", "KL", r"(^|[/_])kl"),
    ("length", "Lengths, entropy, clipping", r"length"),
    ("share of clipped tokens or cut answers", "Lengths, entropy, clipping", r"clip"),
    ("entropy", "Lengths, entropy, clipping", r"nats|entropy"),
    ("coefficient", "Coefficients", r"^gc"),
)
#: (pattern, unit); the first that fits counts
_UNITS = (
    (r"per_second$", "tokens per second"),
    (r"seconds$", "seconds"),
    (r"^tokens$|length$", "tokens"),
    (r"memory.*gb$", "GB"),
    (r"^gc.*/(positive|negative)$|^zero_advantage$", "share"),
    (r"ratio$|share$|accurac|frac_|repeated$", "share"),
    (r"^eval/kl$", "nats per answer"),
    (r"^kl$|nats$|entropy$", "nats per token"),
    (r"(^|[/_])kl$", "nats"),
)


def section_of(metric: str) -> str:
    """The heading under which a metric stands."""
    name = metric.removeprefix("eval/")
    return next(heading for heading, pattern in SECTIONS if re.search(pattern, name))


def unit_of(metric: str) -> str:
    """The unit of a metric; "" where it has none, or none that its name tells."""
    return next((unit for pattern, unit in _UNITS if re.search(pattern, metric)), "")


def missing(metrics: Iterable[str]) -> list[list[str]]:
    """What a reader may look for and these metrics do not hold: [[what, section], ...]."""
    names = list(metrics)
    return [[what, section] for what, section, p in EXPECTED if not any(re.search(p, n) for n in names)]
