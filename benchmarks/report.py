"""Results as files, and the tables of README.md that are written from them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MARKS = ("<!-- results: written by `make bench` -->", "<!-- end of results -->")


#: results that are not comparisons of speed
OTHERS = ("memory", "scaling")


def save(folder: Path, title: str, result: Mapping[str, Any]) -> None:
    """One file for each case."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{title}.json").write_text(json.dumps(rounded(result), indent=1, ensure_ascii=False) + "\n")


def rounded(value: Any) -> Any:
    """Numbers to five digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, (list, tuple)) else value


def load_all(folder: Path) -> dict[str, dict[str, Any]]:
    """Title -> result, in the order of the titles."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def is_kept(result: Mapping[str, Any] | None, code: str, options: Mapping[str, Any]) -> bool:
    """Whether a result stands for this code and these options; one of more pairs does as well."""
    if result is None or "failed" in result or result.get("code") != code:
        return False
    had = dict(result["options"])
    return had.pop("pairs") >= options["pairs"] and had == {k: v for k, v in options.items() if k != "pairs"}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; numbers to the right."""
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def ratio(found: Mapping[str, float] | None) -> str:
    """Median, and the quartiles behind it."""
    if not found:
        return "–"
    return f"{found['median']:.2f} ({found['low']:.2f}–{found['high']:.2f})"


def mebibytes(number: float | None) -> str:
    """As a whole number."""
    return "–" if number is None else f"{number / 2**20:,.0f}"


def speeds(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The main table: how fast, and how many times as fast."""
    head = [
        "case", "tokens per CPU second", "times TRL", "wall clock", "times TRL, checkpointing", "times the hand loop",
        "engine overhead",
    ]  # fmt: skip
    rows = []
    for title, r in results.items():
        if "failed" in r:
            rows.append([title, f"failed: {r['failed'].splitlines()[-1]}", *["–"] * (len(head) - 2)])
            continue
        got = r["ratios"]
        peer = got.get("trl", {})
        rows.append([
            title, f"{r['rates']['ours']['cpu']:,.0f}", ratio(peer.get("cpu")), ratio(peer.get("wall")),
            ratio(got.get("trl, checkpointing", {}).get("cpu")), ratio(got["limit"]["cpu"]),
            "–" if r["case"]["kind"] in ("rollout", "logprob") else f"{r['overhead']:.1%}",
        ])  # fmt: skip
    return table(head, rows)


def memory(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Live tensors in one step, and the most memory of the process, in MiB."""
    head = ["case", "step: ours", "TRL", "hand loop", "ours / TRL", "process: ours", "TRL", "hand loop"]
    rows = []
    for title, r in results.items():
        if "failed" in r:
            continue
        peak, rss = r["peak"], r["rss"]
        share = f"{peak['ours'] / peak['trl']:.2f}" if peak.get("trl") else "–"
        sides = ("ours", "trl", "limit")
        step, process = ([mebibytes(x.get(s)) for s in sides] for x in (peak, rss))
        rows.append([title, *step, share, *process])
    return table(head, rows)


def large_steps(result: Mapping[str, Any]) -> str:
    """Live tensors in one step of many rows, in MiB."""
    sides = ("ours", "trl", "limit")
    rows = []
    for title, r in result["memory"].items():
        peak = r["peak"]
        share = f"{peak['ours'] / peak['trl']:.2f}" if peak.get("trl") else "–"
        rows.append([title, *(mebibytes(peak.get(s)) for s in sides), share])
    return table(["step", "ours", "TRL", "hand loop", "ours / TRL"], rows)


def verbs(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Where the CPU time of our step goes, in percent."""
    shown = {t: r for t, r in results.items() if "failed" not in r and len(r["verbs"]) > 1}
    total: dict[str, float] = {}
    for r in shown.values():
        for name, share in r["verbs"].items():
            total[name] = total.get(name, 0.0) + share
    names = sorted(total, key=lambda n: -total[n])
    rows = [[t, *(f"{100 * r['verbs'][n]:.1f}" if n in r["verbs"] else "" for n in names)] for t, r in shown.items()]
    return table(["case", *names], rows)


def scaling(result: Mapping[str, Any]) -> str:
    """Cost over what is varied."""
    head = ["varied", "value", "CPU seconds of a step", "tokens per CPU second", "value times", "cost times"]
    rows: list[list[str]] = []
    for what, points in result["points"].items():
        base = points[0]
        rows += [
            [
                what, f"{p['value']:,}", f"{p['seconds']:.2f}", f"{p['tokens'] / p['seconds']:,.0f}",
                f"{p['value'] / base['value']:g}", f"{p['seconds'] / base['seconds']:.2f}",
            ]
            for p in points
        ]  # fmt: skip
    return table(head, rows)


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Everything between the marks."""
    own = {title: r for title, r in results.items() if title not in OTHERS}
    parts = [_about(results), "### Speed", speeds(own), "### Memory, MiB", memory(own)]
    if "memory" in results.get("memory", {}):
        parts += ["Of large steps:", large_steps(results["memory"])]
    parts += ["### Time by verb of the step, percent", verbs(own)]
    if "points" in results.get("scaling", {}):
        parts += ["### Growth", scaling(results["scaling"])]
    return "\n\n".join(parts)


def _about(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Every machine, set of versions, day, precision and code that the results come from."""
    lines: dict[str, list[str]] = {}
    for title, r in results.items():
        named = ", ".join(f"{k} {v}" for k, v in r["versions"].items())
        options = r["options"]
        how = f"{options['precision']}, {options['threads']} thread(s), {options['pairs']} pairs"
        about = f"{r['machine']}; {named}; {how}; {r['date']}, code {r['code']}, load {r['load']:.1f} at the start"
        lines.setdefault(about, []).append(title)
    return "\n".join(f"- {line}: {', '.join(titles)}" for line, titles in lines.items())


def write_page(readme: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Put the tables between the marks. ValueError where a mark is missing."""
    text = readme.read_text()
    if any(text.count(mark) != 1 for mark in MARKS):
        raise ValueError(f"{readme} must have the lines {MARKS[0]!r} and {MARKS[1]!r} once each")
    before, _, rest = text.partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    readme.write_text(f"{before}{MARKS[0]}\n\n{page(results)}\n\n{MARKS[1]}{after}")
