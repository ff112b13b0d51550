"""A measured curve as an inline drawing: no script, no colours of its own but two, readable on light and dark."""

from __future__ import annotations

from typing import Any

WIDTH, HEIGHT = 560, 200
LEFT, RIGHT, TOP, BOTTOM = 48, 16, 12, 34
TITLES = {
    "eval/reward": "reward of held-out answers, by the verifier; walks at random have 0.75, shortest ones 1",
    "divergence": "divergence from the teacher on the answers of the step, nats per token, mean of 5 steps",
    "eval/accuracy": "share of held-out comparisons, or labels, that are right",
}


def figure(name: str, found: dict[str, Any]) -> str:
    """The curve of an algorithm as HTML: a drawing, and the numbers for those who do not see it."""
    points: list[tuple[float, float]] = [(x, y) for x, y in found["points"]]
    low, high = bounds([y for _, y in points])
    last = max(x for x, _ in points)
    at = [(_x(x, last), _y(y, low, high)) for x, y in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    title = TITLES.get(found["metric"], found["metric"])
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}: {title}">',
        *(_line(y, low, high) for y in ticks(low, high)),
        *(_step(x, last) for x in _steps(last)),
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">optimiser step</text>',
        f'<polyline class="curve" points="{path}"/>',
        *(f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in at),
        "</svg>",
    ]
    numbers = ", ".join(f"{x:g}: {y:.3f}" for x, y in points)
    caption = f"<figcaption>{title}. By step: {numbers}.</figcaption>"
    return '<figure class="measured">\n' + "\n".join(parts) + f"\n{caption}\n</figure>\n"


def bounds(values: list[float]) -> tuple[float, float]:
    """Round numbers around the values; those of rewards and shares at least 0.2 apart, lest noise fill the picture."""
    if max(values) < 0.3:
        return 0.0, next(top for top in (0.01, 0.02, 0.04, 0.1, 0.2, 0.4) if top >= max(values))
    low, high = int(min(values) * 10) / 10, -int(-max(values) * 10 - 0.999) / 10
    while high - low < 0.19:  # 1 - 0.8 is a little less than 0.2
        low, high = (low - 0.1, high) if high >= 1 or low > 0.1 else (low, high + 0.1)
    return round(low, 1), round(high, 1)


def ticks(low: float, high: float) -> list[float]:
    """Three to seven round heights from low to high."""
    span = high - low
    step = span / 4 if high < 0.5 else 0.05 if span < 0.35 else 0.1 if span < 0.65 else 0.2
    return [round(high - k * step, 4) for k in range(int(span / step + 1.001))]


def _steps(last: float) -> list[float]:
    return [last * k / 4 for k in range(5)]


def _x(x: float, last: float) -> float:
    return LEFT + x / last * (WIDTH - LEFT - RIGHT)


def _y(y: float, low: float, high: float) -> float:
    return TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM)


def _line(y: float, low: float, high: float) -> str:
    at = _y(y, low, high)
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{y:.3g}</text>'
    )


def _step(x: float, last: float) -> str:
    return f'<text x="{_x(x, last):.1f}" y="{HEIGHT - 18}" text-anchor="middle">{x:g}</text>'
