"""One stage as the page shows it, from the files in its folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unified.errors import cut_short
from unified.histogram import COEFFICIENTS
from unified.made import STAGE
from unified.manifest import FINGERPRINT, MANIFEST, stage_folder
from unified.report.coefficients import read_coefficients
from unified.report.curves import POINTS, curves, frontier, metric_names
from unified.report.names import missing
from unified.report.read import is_number, number, read_metrics, read_object, read_samples, tail
from unified.warned import WARNINGS, read_warnings

#: files that make a stage look different when they change
FILES = (MANIFEST, FINGERPRINT, "metrics.jsonl", "samples.jsonl", WARNINGS, COEFFICIENTS, "error.log")
#: characters of one setting, of one sample, and of an error's end
SETTING, TEXT, ERROR = 300, 1500, 4000


@dataclass(frozen=True)
class Limits:
    """What a stage may take of the page: points of a curve, steps with samples, characters of samples and settings,
    histograms of each coefficient."""

    points: int = POINTS
    sample_steps: int = 40
    sample_characters: int = 300_000
    setting_characters: int = 60_000
    columns: int = 60


def stage_of(run: Path, name: str, written: Mapping[str, Any], *, running: bool, limits: Limits) -> dict[str, Any]:
    """A stage, ready to be shown. written: what the recipe says of it; running: a process is at this run now."""
    folder = stage_folder(run, name)
    manifest, metrics = read_object(folder / MANIFEST), read_metrics(folder / "metrics.jsonl")
    samples, counts = read_samples(
        folder / "samples.jsonl", steps=limits.sample_steps, characters=limits.sample_characters, longest=TEXT
    )
    warnings, unread = warnings_of(folder)
    coefficients, lost = read_coefficients(folder / COEFFICIENTS, columns=limits.columns)
    unreadable = {"metrics": metrics.unreadable, "samples": counts["unreadable"], "warnings": unread}
    unreadable["coefficients"] = lost
    settings = mapping(manifest.get("settings")) or dict(written)
    summary = mapping(manifest.get("summary"))
    state = _state(folder, manifest, running)
    shown, left_out = flattened(settings, limits.setting_characters)
    known = {end for key, _ in shown for end in (key, key.rpartition(".")[0])}  # `data: FILE` is data.path
    return {
        "name": name,
        "kind": str(manifest.get("kind") or written.get("kind") or "train"),
        "what": algorithms(settings),
        "state": state,
        "steps": metrics.rows[-1]["step"] if metrics.rows else None,
        "planned": settings.get("max_steps") if is_number(settings.get("max_steps")) else None,
        "seconds": number(manifest["seconds"]) if is_number(manifest.get("seconds")) else None,
        "finished": str(manifest.get("finished") or ""),
        "summary": [[k, number(v)] for k, v in summary.items() if is_number(v)],
        "settings": shown,
        "settings_left_out": left_out,
        "given": [key for key, _ in _flat(written) if key in known],
        "facts": list(_facts(manifest)),
        "speed": _speed(metrics.rows),
        "warnings": warnings,
        "counts": list(_counts(summary, metrics.replaced, unreadable)),
        "error": tail(folder / "error.log", ERROR) if state != "done" else "",
        "inputs": sorted(mapping(manifest.get("inputs")) or _references(settings)),
        "data": _data(settings),
        "model": bool(manifest.get("model")),
        "dataset": bool(manifest.get("dataset")),
        "coefficients": coefficients,
        "curves": curves(metrics.rows, points=limits.points),
        "frontier": frontier(metrics.rows),
        "missing": missing(metric_names(metrics.rows)) if metrics.rows else [],
        "samples": samples,
        "sample_counts": counts,
    }


def signature(run: Path, name: str) -> tuple[tuple[int, int] | None, ...]:
    """Size and time of every file that the page of a stage is made from; another one: the stage has changed."""
    out: list[tuple[int, int] | None] = []
    for file in FILES:
        try:
            about = (stage_folder(run, name) / file).stat()
        except OSError:
            out.append(None)
            continue
        out.append((about.st_size, about.st_mtime_ns))
    return tuple(out)


def mapping(value: Any) -> dict[str, Any]:
    """The value, where it is a mapping; else an empty one."""
    return value if isinstance(value, dict) else {}


def algorithms(settings: Mapping[str, Any]) -> str:
    """The algorithms of a stage, joined by +; "" where it has none."""
    terms = settings.get("terms")
    found = [settings.get("algorithm"), *(t.get("algorithm") for t in terms or [] if isinstance(t, Mapping))]
    return " + ".join(_name(a) for a in found if a)


def warnings_of(folder: Path) -> tuple[list[list[Any]], int]:
    """[[kind, what was seen first, times, first step, last step, what to do], ...], and lines that cannot be read."""
    told, unreadable = read_warnings(folder)
    return [[t.kind, t.message, t.times, t.first, t.last, t.remedy] for t in told], unreadable


def flattened(settings: Mapping[str, Any], characters: int) -> tuple[list[list[str]], int]:
    """[[key.key, value], ...], each value as one line, and how many did not fit into so many characters."""
    shown, left_out = [], 0
    for key, value in _flat(settings):
        text = "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        text = cut_short(text, SETTING)
        characters -= len(key) + len(text)
        if characters < 0:
            left_out += 1
        else:
            shown.append([key, text])
    return shown, left_out


def _flat(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    items: Any = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if items is None or not value:
        yield at, value
        return
    for key, inner in items:
        yield from _flat(inner, f"{at}.{key}" if at else str(key))


def _state(folder: Path, manifest: Mapping[str, Any], running: bool) -> str:
    if manifest:
        return "done"
    if not (folder / FINGERPRINT).exists():
        return "to do"
    return "running" if running else "cut off"


def _facts(manifest: Mapping[str, Any]) -> Iterator[list[str]]:
    """What a manifest tells of where and with what a stage ran."""
    for key in ("seed", "threads", "started", "finished"):
        if manifest.get(key) not in (None, ""):
            yield [key, str(manifest[key]).replace("T", " ").replace("+00:00", " UTC")]
    for group in ("hardware", "versions"):
        for key, value in mapping(manifest.get(group)).items():
            yield [str(key), cut_short(str(value), SETTING)]
    layout = mapping(manifest.get("summary")).get("layout")
    if layout:
        yield ["layout", str(layout)]


def _speed(rows: list[dict[str, Any]]) -> dict[str, float | int] | None:
    """Tokens and seconds of all steps, tokens per second over them, and those of the median step."""
    timed = [r for r in rows if is_number(r.get("seconds")) and is_number(r.get("tokens"))]
    if not timed:
        return None
    tokens, seconds = sum(r["tokens"] for r in timed), sum(r["seconds"] for r in timed)
    steps = sorted(r["tokens"] / r["seconds"] for r in timed if r["seconds"] > 0)
    out: dict[str, float | int] = {"tokens": number(tokens, 9), "seconds": number(seconds)}
    if steps and seconds > 0:
        out |= {"mean": number(tokens / seconds), "median": number(steps[len(steps) // 2])}
    return out


def _counts(summary: Mapping[str, Any], replaced: int, unreadable: Mapping[str, int]) -> Iterator[list[Any]]:
    """Rows that were left out, and lines of the logs that could not be read: [what, number]."""
    for key, value in mapping(summary.get("dropped_rows")).items():
        if value and key not in ("rows", "kept", "held_out_rows", "held_out_kept"):
            yield [f"{str(key).replace('_', ' ')}", value]
    for place in list(summary.get("dropped_places") or [])[:20]:
        yield [cut_short(str(place), SETTING), None]
    for name, lines in unreadable.items():
        if lines:
            yield [f"lines of {name}.jsonl that cannot be read", lines]
    if replaced:
        yield ["rows of metrics.jsonl whose steps were done again", replaced]


def _references(value: Any) -> set[str]:
    """Stages that settings refer to."""
    if isinstance(value, str):
        return {value} if value.startswith(STAGE) else set()
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return set().union(*map(_references, inner)) if inner else set()


def _data(settings: Mapping[str, Any]) -> list[str]:
    """Datasets of a stage by name, or the file; not those of other stages, which are inputs."""
    terms = [t for t in settings.get("terms") or [] if isinstance(t, Mapping)]
    found = [settings.get("data"), *(t.get("data") for t in terms)]
    names = {_name(d) for d in found if d}
    return sorted(n for n in names if n and not n.startswith(STAGE))


def _name(part: Any) -> str:
    """A chosen part in a few words: its name, of files the path."""
    if isinstance(part, Mapping):
        path = part.get("path") or part.get("paths")
        return cut_short(str(path if path else part.get("name", "")), 80)
    return cut_short(str(part), 80)
