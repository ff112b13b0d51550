"""Every count of docs/reliability.md, made anew and written into it: `make reliability`.

    python -m tests.reliability [--short] [--only kills faults hostile sandbox]

Runs the suites one after the other, each as a command of its own whose last line is JSON, and writes the table between
the markers of the page. --short has fewer points and inputs, and writes nothing: the form for CI. A suite that is not
there, or cannot run here, is said and counted as not run. Exit code 1 where something was not as promised.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
BEGIN = "<!-- counts: written by `make reliability` -->"
END = "<!-- end of counts -->"
#: suite -> what its command takes: for the page, and in short
ARGUMENTS: dict[str, tuple[list[str], list[str]]] = {
    "kills": (["--points", "50"], ["--points", "6"]),
    "faults": ([], []),
    "hostile": (
        ["--recipes", "2000", "--files", "2000", "--steps", "400"],
        ["--recipes", "150", "--files", "150", "--steps", "40"],
    ),
}  # fmt: skip
SUITES = (*ARGUMENTS, "sandbox")
Row = tuple[str, str, str, str]  # what was tried, how many, what became of them, the command


def result_of(command: Sequence[str]) -> dict[str, Any] | str:
    """The JSON of a command's last line; why there is none otherwise."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    try:
        found = json.loads(lines[-1])
    except (IndexError, ValueError):
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        return f"ended with {done.returncode}: {said[-1] if said else 'it said nothing'}"
    return found if isinstance(found, dict) else f"its last line is no object: {lines[-1]}"


def run_suite(name: str, *, short: bool) -> dict[str, Any] | str:
    """What a suite found; why it did not run otherwise."""
    if name == "sandbox":
        return run_sandbox()
    if find_spec(f"tests.reliability.{name}") is None:
        return f"there is no tests/reliability/{name}.py"
    return result_of([sys.executable, "-m", f"tests.reliability.{name}", *ARGUMENTS[name][short]])


def run_sandbox() -> dict[str, Any] | str:
    """The hostile programs of the sandbox's own tests: how many, and how many were held."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        test = "tests/rewards/test_sandbox.py"
        subprocess.run([sys.executable, "-m", "pytest", test, *options], cwd=ROOT, capture_output=True, check=False)
        if not report.is_file():
            return "pytest wrote no report"
        return count_programs(report, {p.stem for p in (ROOT / "tests/rewards/hostile").glob("*.txt")})


def count_programs(report: Path, programs: set[str]) -> dict[str, Any] | str:
    """Of a pytest report: the programs that were run, and those of which every test passed."""
    held: dict[str, bool] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = str(case.get("name", "")).partition("[")[2].rstrip("]")
        if name in programs and case.find("skipped") is None:
            failed = case.find("failure") is not None or case.find("error") is not None
            held[name] = held.get(name, True) and not failed
    return {"programs": len(held), "held": sum(held.values())} if held else "no sandbox can be had on this machine"


# --- the table ---


def rows_of(name: str, found: Mapping[str, Any]) -> tuple[list[Row], bool]:
    """The lines of a suite, and whether everything was as promised."""
    command = f"`python -m tests.reliability.{name}`"
    if name == "kills":
        rows = [
            (f"killed {place}", str(one["points"]), f"{one['equal']} ended the same, bit for bit", command)
            for place, one in sorted(found["by_place"].items())
        ]
        total = ("killed, in all", str(found["points"]), f"{found['equal']} ended the same, bit for bit", command)
        return [*rows, total], found["points"] == found["equal"] > 0
    if name == "faults":
        rows = []
        for kind, became in sorted(found["by_kind"].items()):
            told = ", ".join(f"{number} {what}" for what, number in became.items())
            rows.append((f"fault: {kind}", str(sum(became.values())), told, command))
        total = ("faults, in all", str(found["faults"]), f"{found['as_expected']} ended as promised", command)
        return [*rows, total], found["faults"] == found["as_expected"] > 0
    if name == "hostile":
        named = {"recipes": "mutated recipes", "files": "mutated data files", "steps": "senseless batches"}
        rows = []
        for part, what in named.items():
            outcomes = ", ".join(f"{n} {key}" for key, n in found[part].items() if key != "tried")
            rows.append((what, str(found[part]["tried"]), outcomes, command))
        return rows, found["defects"] == 0 and all(found[part]["tried"] > 0 for part in named)
    row = (
        "hostile programs",
        str(found["programs"]),
        f"{found['held']} held",
        "`pytest tests/rewards/test_sandbox.py`",
    )
    return [row], found["programs"] == found["held"]


def table(found: Mapping[str, dict[str, Any] | str]) -> tuple[str, bool]:
    """The table of all suites, and whether everything that ran was as promised."""
    lines, good = ["| tried | how many | what became of them | command |", "|---|---|---|---|"], True
    for name, result in found.items():
        if isinstance(result, str):
            lines.append(f"| {name} | not run | {result.replace('|', '/')} | |")
            good = False
            continue
        rows, promised = rows_of(name, result)
        lines += [f"| {' | '.join(row)} |" for row in rows]
        good = good and promised
    return "\n".join(lines), good


def renewed(page: str, made: str) -> str:
    """The page with the table between its markers. ValueError where it has none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE} has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{made}\n{END}{after}"


def main(arguments: list[str] | None = None, suite: Callable[..., dict[str, Any] | str] = run_suite) -> int:
    """Run the suites, print the table, and write it."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="fewer of everything; the page stays as it is")
    parser.add_argument("--only", nargs="+", choices=SUITES, default=list(SUITES), help="these suites; writes nothing")
    asked = parser.parse_args(arguments)
    found: dict[str, dict[str, Any] | str] = {}
    for name in asked.only:
        print(f"{name} ...", file=sys.stderr, flush=True)
        found[name] = suite(name, short=asked.short)
    made, good = table(found)
    print(made)
    if not asked.short and set(asked.only) == set(SUITES):
        PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8"), made), encoding="utf-8")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
