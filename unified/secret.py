"""Secrets: refused where a recipe holds one, masked in whatever is written or said.

A recipe gives a secret by the name of the environment variable that holds it (`api_key_env: JUDGE_KEY`), because the
recipe is copied into the run folder, into manifests and messages. What counts as one: a text under a key that is called
so (password, api_key, token, ...), a text with the shape of a well-known kind of key, and a url with a user in it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

from unified.errors import Problem
from unified.tree import Node, Place

MASK = "***"
#: keys under which any text is a secret
_SURE = re.compile(
    r"(?:^|.*[_-])(?:secret|password|passwd|passphrase|credentials?|bearer|authorization)$"
    r"|(?:^|.*[_-])(?:api|access|private|secret|auth|signing|encryption|account)[_-]?key$"
    r"|^token$|.*(?:access|auth|hf|hub|api|bearer|refresh|session|github|wandb)[_-]?token$",
    re.IGNORECASE,
)
#: keys under which a text is one if it looks drawn at random
_LIKELY = re.compile(r".*[_-]?(?:key|token)$", re.IGNORECASE)
_RANDOM = re.compile(r"(?=.*[0-9])(?=.*[A-Za-z])[A-Za-z0-9_+/=.-]{20,}")
_NAMES_VARIABLE = re.compile(r".*_env$", re.IGNORECASE)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: names of environment variables whose values are secrets
_OF_ENVIRONMENT = re.compile(r"(?:.*_)?(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)", re.IGNORECASE)
#: shorter values of environment variables stand in ordinary text by chance
_SHORTEST = 8
_SHAPES = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\bsk-[A-Za-z0-9_-]{16,}|\bgh[pousr]_[A-Za-z0-9]{16,}|\bgithub_pat_\w{16,}"
    r"|\bglpat-[\w-]{16,}|\bxox[abprs]-[A-Za-z0-9-]{10,}|\bAKIA[0-9A-Z]{16}\b|\bAIza[0-9A-Za-z_-]{30,}"
    r"|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----(?:[^-\"]*-----END [A-Z ]*PRIVATE KEY-----)?"
    r"|(?<=Bearer )[A-Za-z0-9._~+/=-]{8,}"
    r"|(?<=://)[^\s/@\"'<>]+(?=@)"
    r"|(?<=[?&](?:key|sig)=)[^&\s\"']+|(?<=[?&]token=)[^&\s\"']+|(?<=[?&]secret=)[^&\s\"']+"
    r"|(?<=[?&]api_key=)[^&\s\"']+|(?<=[?&]password=)[^&\s\"']+"
)


def masked(text: str) -> str:
    """The text with `***` where a secret stands: of a known shape, or the value of a variable that is named as one."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and value in text and _OF_ENVIRONMENT.fullmatch(name):
            text = text.replace(value, MASK)
    return _SHAPES.sub(MASK, text)


def secrets_in(node: Node, key: str = "") -> Iterator[tuple[Place, str, Problem]]:
    """(place, text, problem) of every secret in a tree. Names of columns are nobody's secret."""
    if isinstance(node.value, Mapping):
        for name, child in node.value.items():
            if key != "columns":
                yield from secrets_in(child, name)
    elif isinstance(node.value, list):
        for child in node.value:
            yield from secrets_in(child, key)
    elif isinstance(node.value, str) and node.value and _is_secret(key, node.value):
        what = f"'{key}' holds what looks like a secret; a recipe is copied into runs, manifests and messages"
        hints = ("put it into an environment variable and name that: `api_key_env: NAME`, where a part has it",)
        yield node.place, node.value, Problem(what, (), hints)


def _is_secret(key: str, text: str) -> bool:
    if _NAMES_VARIABLE.fullmatch(key):
        return not _VARIABLE.fullmatch(text) or _SHAPES.search(text) is not None
    likely = _LIKELY.fullmatch(key) is not None and _RANDOM.fullmatch(text) is not None
    return likely or _SURE.fullmatch(key) is not None or _SHAPES.search(text) is not None
