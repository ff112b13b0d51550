"""`python -m tests.oracles [FILE or NAME ...]`: compare with what other libraries computed; no name: all open cases.

Prints one line a case (ok, DIFFERS or not mapped, and why); exit code 1 unless all are ok.
"""

from __future__ import annotations

import sys

import torch

from tests.oracles.cases import DiffersError, NotMappedError, load, names
from tests.oracles.table import check
from unified import PluginError, UserError


def main(wanted: list[str]) -> int:
    """Check the cases; the exit code."""
    torch.set_num_threads(1)
    counts = {"ok": 0, "DIFFERS": 0, "not mapped": 0}
    for name in wanted or names():
        try:
            verdict, why = "ok", f"{check(load(name))} instances"
        except (DiffersError, PluginError, UserError) as error:
            verdict, why = "DIFFERS", str(error)
        except NotMappedError as error:
            verdict, why = "not mapped", str(error)
        counts[verdict] += 1
        print(f"{verdict:10}  {name}: {why}")
    print(", ".join(f"{n} {verdict}" for verdict, n in counts.items()))
    return 0 if counts["ok"] and counts["ok"] == sum(counts.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
