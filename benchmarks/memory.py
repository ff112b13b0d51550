"""Peak of live tensors in one step, of steps large enough that gradients (as large on all sides) are not most of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.cases import MEMORY, Case
from benchmarks.compare import Options, Side, sides_of
from benchmarks.material import write

#: steps before the one that is watched
WARM = 1


def measure_memory(
    home: Path,
    options: Options,
    *,
    peer: bool = True,
    cases: Mapping[str, Case] = MEMORY,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Bytes of every side at every case; those of the large vocabulary of this project alone."""
    out: dict[str, dict[str, Any]] = {}
    for title, case in cases.items():
        alone = case.kind == "logprob"
        places = write(case, home / f"memory-{title}", case.rows * (WARM + 1))
        out[title] = {"rows": case.rows, "peak": {}}
        for name in ["ours"] if alone else sides_of(case, peer=peer):
            side = Side(name, case, places, options)
            try:
                side.ready()
                if not alone:
                    side.ask(f"go {WARM}")
                out[title]["peak"][name] = side.ask("peak")["peak"]
            finally:
                side.end()
        tell(f"  {title}: " + ", ".join(f"{n} {b / 2**20:,.0f} MiB" for n, b in out[title]["peak"].items()))
    return {"options": options.as_dict(), "memory": out}
