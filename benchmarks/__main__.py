"""`python -m benchmarks`: measure every case that has no result of this code yet, and write the tables.

Results are files in benchmarks/results/, tables stand in benchmarks/README.md. A run that was stopped goes on where it
was when it is started again.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import sys
import time
from typing import Any

from benchmarks import report
from benchmarks.cases import CASES
from benchmarks.compare import Options, SideError, measure
from benchmarks.environment import CACHE, RESULTS, ROOT, code_version, load, machine, peer_python, versions
from benchmarks.material import write
from benchmarks.memory import measure_memory
from benchmarks.scaling import measure_growth


def main(arguments: list[str] | None = None) -> int:
    """0; 1 where a case failed (which the table then says); 2 where nothing is called as was asked."""
    asked = _parser().parse_args(arguments)
    options = Options(asked.pairs, asked.threads, asked.precision)
    titles = chosen(asked.only, asked.model)
    if not titles:
        print(f"no case is called that; known: {', '.join([*CASES, *report.OTHERS])}", file=sys.stderr)
        return 2
    if not asked.tables:
        _measure_all(titles, options, again=asked.again, peer=not asked.no_peer)
    results = report.load_all(RESULTS)
    report.write_page(ROOT / "benchmarks" / "README.md", results)
    print(report.speeds({t: r for t, r in results.items() if t in titles and t not in report.OTHERS}))
    return int(any("failed" in results[t] for t in titles if t in results))


def _measure_all(titles: list[str], options: Options, *, again: bool, peer: bool) -> None:
    if peer:
        peer_python()
    code = code_version()
    for title in titles:
        old = report.load_all(RESULTS).get(title)
        if old is not None and not again and report.is_kept(old, code, options.as_dict()):
            _tell(f"{title}: kept, measured {old['date']}")
        else:
            run_one(title, options, code, peer=peer)


def chosen(only: list[str], models: list[str]) -> list[str]:
    """Titles of the cases asked for: by title, name, kind or pattern, and by model; all without."""
    names = [*CASES, *report.OTHERS]
    wanted = [t for t in names if not only or any(fnmatch.fnmatch(n, p) for n in _names(t) for p in only)]
    return [t for t in wanted if not models or (t in CASES and CASES[t].model in models)]


def _names(title: str) -> list[str]:
    """What a case goes by: its title, its name, and its kind."""
    case = CASES.get(title)
    return [title] if case is None else [title, case.name, case.kind]


def run_one(title: str, options: Options, code: str, *, peer: bool) -> None:
    """Measure a case and keep its result, or what went wrong."""
    _tell(f"{title} ...")
    begun = time.perf_counter()
    about: dict[str, Any] = {
        "code": code, "machine": machine(), "versions": versions(), "load": load(),
        "date": datetime.date.today().isoformat(), "options": options.as_dict(),
    }  # fmt: skip
    home = CACHE / "material"
    try:
        if title == "scaling":
            found = measure_growth(home, options, tell=_tell)
        elif title == "memory":
            found = measure_memory(home, options, peer=peer, tell=_tell)
        else:
            case = CASES[title]
            places = write(case, home, rows_needed(case.rows, case.steps, options.pairs))
            found = measure(case, places, options, peer=peer, tell=_tell)
    except SideError as error:
        found = {"failed": str(error).replace(str(ROOT), ".")}
        print(f"{title} failed: {error}", file=sys.stderr)
    report.save(RESULTS, title, {**about, **found, "seconds": time.perf_counter() - begun})


def _tell(line: str) -> None:
    print(line, flush=True)


def rows_needed(rows: int, steps: int, pairs: int) -> int:
    """So many that no row is seen twice: warm-up, all blocks, those with checkpointing, and the last step."""
    return rows * (steps * 2 * pairs + 8)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", action="append", default=[], help="a case or a pattern: dpo, sft-5m, 'grpo-*'")
    parser.add_argument("--model", action="append", default=[], choices=["5m", "30m"], help="only this model")
    parser.add_argument("--pairs", type=int, default=7, help="blocks of each side")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16", help="of all sides: autocast, or none")
    parser.add_argument("--again", action="store_true", help="measure what has a result of this code, too")
    parser.add_argument("--no-peer", action="store_true", help="without TRL and its environment")
    parser.add_argument("--tables", action="store_true", help="only write the tables from the results that are there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
