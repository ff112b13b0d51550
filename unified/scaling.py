"""Four questions to the published scaling law of pretraining.

L(N, D) = E + A / N^α + B / D^β, loss in nats per token, N parameters, D training tokens seen once; a run costs
C = 6·N·D operations. Source: Hoffmann et al. 2022, arXiv:2203.15556, section 3.3 (the fit) and eq. 4 (the optimum).
"""

from __future__ import annotations

import re
from typing import Any

from unified.devices import UTILISATION, Hardware
from unified.errors import UserError

E, A, B, ALPHA, BETA = 1.69, 406.4, 410.7, 0.34, 0.28
OPERATIONS = 6  # per parameter and training token: 2 forward, 4 backward
DAY_S = 86_400
QUESTIONS = ("data", "model", "budget", "loss")
LIMITS = (
    "The law is of pretraining: dense transformers of 70M to 16B parameters, English web text seen once, that corpus's",
    "tokens and loss. It says nothing of fine-tuning, preferences or reinforcement learning, of other data, or of data",
    "seen again. The fit is rough: a re-analysis (Besiroglu et al. 2024, arXiv:2404.10102) finds other constants.",
)
_SUFFIX = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


def loss(parameters: float, tokens: float) -> float:
    """L(N, D) in nats per token."""
    return E + A / parameters**ALPHA + B / tokens**BETA


def tokens_for(parameters: float) -> float:
    """D at which a model of N parameters is the best use of its compute: where α·A/N^α = β·B/D^β."""
    return (BETA * B * parameters**ALPHA / (ALPHA * A)) ** (1 / BETA)


def parameters_for(tokens: float) -> float:
    """N for which D tokens are the best use of compute: the inverse of `tokens_for`."""
    return (ALPHA * A * tokens**BETA / (BETA * B)) ** (1 / ALPHA)


def best_for(operations: float) -> tuple[float, float]:
    """(N, D) of least loss among those with 6·N·D = operations; eq. 4."""
    balance = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
    product = operations / OPERATIONS
    return balance * product ** (BETA / (ALPHA + BETA)), product ** (ALPHA / (ALPHA + BETA)) / balance


def quantity(text: str, option: str) -> float:
    """`7B`, `1.4T`, `7e9` or `7000000000` as a number above 0. UserError naming the option otherwise."""
    found = re.fullmatch(r"([0-9.]+(?:e[+-]?[0-9]+)?)\s*([kmbt]?)", text.strip(), re.IGNORECASE)
    try:
        value = float(found[1]) * _SUFFIX[found[2].lower()] if found else 0.0
    except ValueError:
        value = 0.0
    if value <= 0:
        raise UserError(f"{option} {text}: not a number above 0", "write 7B, 1.4T, 7e9 or 7000000000")
    return value


def short(value: float) -> str:
    """A number of parameters, tokens or operations as a person writes it: 7.0B, 1.4T, 5.9e+23."""
    for suffix, factor in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if factor <= value < 1000 * factor:
            return f"{value / factor:.3g}{suffix}"
    return f"{value:.0f}" if value < 1000 else f"{value:.2e}"


def answer(
    question: str,
    *,
    parameters: str | None = None,
    tokens: str | None = None,
    gpu_days: float | None = None,
    hardware: Hardware | None = None,
    larger: str | None = None,
) -> list[str]:
    """The answer in lines, the law and its limits below. UserError for what the question lacks, or one unknown."""
    given: dict[str, Any] = {"--parameters": parameters, "--tokens": tokens, "--gpu-days": gpu_days}
    given |= {"--hardware": hardware, "--larger": larger}
    needs = {
        "data": ("--parameters",),
        "model": ("--tokens",),
        "budget": ("--gpu-days", "--hardware"),
        "loss": ("--parameters", "--tokens", "--larger"),
    }
    if question not in needs:
        raise UserError(f"--scaling {question}: no such question", f"known: {', '.join(QUESTIONS)}")
    missing = [name for name in needs[question] if given[name] is None]
    if missing:
        raise UserError(f"--scaling {question} needs {' and '.join(missing)}")
    n = quantity(parameters, "--parameters") if parameters else 0.0
    d = quantity(tokens, "--tokens") if tokens else 0.0
    if question == "data":
        best = tokens_for(n)
        said = [f"A model of {short(n)} parameters is best trained on {short(best)} tokens.", _cost(n, best)]
    elif question == "model":
        best = parameters_for(d)
        said = [f"{short(d)} tokens are best spent on a model of {short(best)} parameters.", _cost(best, d)]
    elif question == "budget":
        assert hardware is not None
        assert gpu_days is not None
        said = _budget(gpu_days, hardware)
    else:
        said = _larger(n, quantity(str(larger), "--larger"), d)
    return [
        *said,
        "",
        f"By L(N, D) = {E} + {A}/N^{ALPHA} + {B}/D^{BETA}, Hoffmann et al. 2022, arXiv:2203.15556.",
        *LIMITS,
    ]


def _cost(n: float, d: float) -> str:
    return f"That is {short(OPERATIONS * n * d)} operations, and a loss of {loss(n, d):.3f} nats per token."


def _budget(gpu_days: float, hardware: Hardware) -> list[str]:
    if gpu_days <= 0:
        raise UserError(f"--gpu-days {gpu_days:g}: not a number above 0")
    device = hardware.device
    n, d = best_for(gpu_days * DAY_S * device.bf16 * UTILISATION)
    return [
        f"{gpu_days:g} days of one {device.name} ({gpu_days / hardware.count:.3g} days of {hardware.count}) at "
        f"{UTILISATION:.0%} of its bfloat16 peak are best spent on {short(n)} parameters and {short(d)} tokens.",
        _cost(n, d),
    ]


def _larger(n: float, larger: float, d: float) -> list[str]:
    before, after = loss(n, d), loss(larger, d)
    return [
        f"On {short(d)} tokens a model of {short(n)} parameters reaches {before:.3f} nats per token, one of "
        f"{short(larger)} reaches {after:.3f} ({after - before:+.3f}).",
        f"No model gets below {E + B / d**BETA:.3f} on that data; {short(larger)} would best see "
        f"{short(tokens_for(larger))} tokens.",
    ]
