"""A run as the page shows it: its stages, and what holds for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from unified.errors import UserError
from unified.histogram import sides
from unified.lock import holder
from unified.manifest import stage_folder
from unified.report.curves import metric_names, points_for
from unified.report.names import ORDER, section_of, unit_of
from unified.report.read import read_metrics
from unified.report.stage import Limits, mapping, stage_of
from unified.status import read_run

#: characters of samples and of settings, of all stages of a page together
SAMPLES, SETTINGS = 300_000, 200_000
#: histograms of coefficients of one stage, and of all stages of a page together
COLUMNS, ALL_COLUMNS = 60, 900


def run_of(folder: Path, limits: Limits | None = None) -> dict[str, Any]:
    """A run with all its stages, ready to be shown. UserError where the folder holds none."""
    about = read_run(folder)
    names = stage_names(about, folder)
    held = holder(folder) is not None
    limits = limits or limits_for([folder])
    stages = [stage_of(folder, n, written(about, n), running=held, limits=limits) for n in names]
    return head_of(folder, about, held) | {"stages": stages}


def head_of(folder: Path, about: Mapping[str, Any], held: bool) -> dict[str, Any]:
    """What holds for all stages of a run."""
    resolved = mapping(about.get("resolved"))
    said = [[key, str(about[key])] for key in ("recipe", "profile") if about.get(key)]
    said += [["set", str(one)] for one in about.get("sets") or [] if isinstance(one, str)]
    return {"name": str(about.get("run", folder.name)), "folder": str(folder), "said": said, "running": held,
            "base": _base(resolved.get("model"))}  # fmt: skip


def stage_names(about: Mapping[str, Any], folder: Path) -> list[str]:
    """The stages of a run in order. UserError where run.json does not say them, or says a path."""
    names = about.get("stages")
    if not isinstance(names, list) or not all(isinstance(n, str) and _is_name(n) for n in names):
        raise UserError(
            f"{folder} holds no run that can be read: run.json does not name its stages",
            "give the folder that `unified run` wrote to",
        )
    return list(dict.fromkeys(names))


def written(about: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What the recipe says of a stage: its own settings over the defaults; of a round those of its block."""
    resolved = mapping(about.get("resolved"))
    stages, (first, *rest) = mapping(resolved.get("stages")), name.split(".")
    own = mapping(stages.get(first))
    if rest:
        own = mapping(mapping(own.get("stages")).get(rest[-1]))
    return {**mapping(resolved.get("defaults")), **own}


def limits_for(folders: list[Path]) -> Limits:
    """Limits under which a page of these runs stays small, whatever they hold."""
    stages = [(f, n) for f in folders for n in stage_names(read_run(f), f)]
    series = sum(len(metric_names(read_metrics(stage_folder(f, n) / "metrics.jsonl").rows)) for f, n in stages)
    number = max(len(stages), 1)
    columns = max(6, min(COLUMNS, ALL_COLUMNS // number))
    return Limits(points_for(series + number), 40, SAMPLES // number, SETTINGS // number, columns)


def page_data(runs: list[dict[str, Any]], *, live: bool = False) -> dict[str, Any]:
    """Everything the page is made of; runs of one name get their folder behind it, so that each is known by its own."""
    names = [run["name"] for run in runs]
    for run in runs:
        run["label"] = run["name"] if names.count(run["name"]) == 1 else f"{run['name']} ({run['folder']})"
    return {"runs": runs, "live": live, "order": list(ORDER), "bins": sides(), "metrics": metrics_of(runs)}


def metrics_of(runs: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Section and unit of every metric of some runs."""
    names = {n for run in runs for s in run["stages"] for g in s["curves"]["groups"] for n in g["series"]}
    return {name: [section_of(name), unit_of(name)] for name in sorted(names)}


def _is_name(name: str) -> bool:
    return all(
        part and PurePath(part).name == part and "\\" not in part and "\0" not in part for part in name.split(".")
    )


def _base(model: Any) -> str:
    """The model that a recipe starts from, in a few words."""
    if isinstance(model, Mapping):
        new = mapping(model.get("new"))
        return f"new {new.get('model_type', 'model')}, random weights" if new else str(model.get("path") or "base")
    return str(model) if model else "base"
