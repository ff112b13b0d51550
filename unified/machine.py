"""What a process runs on, in words: processor, memory, accelerators. Imports no torch; asks it where it is loaded."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections import Counter
from pathlib import Path


def machine() -> dict[str, str]:
    """Processor with the cores that may be used, memory, accelerators and processes; what is unknown is left out."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    out = {"processor": f"{_processor()}, {cores} core{'' if cores == 1 else 's'}"}
    memory = _memory()
    if memory:
        out["memory"] = f"{memory / 2**30:.0f} GiB"
    accelerators = _accelerators()
    out["accelerator"] = accelerators or "none"
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        out["processes"] = str(processes)
    out["system"] = f"{platform.system()} {platform.release()}"
    return out


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine() or "unknown"


def _memory() -> int | None:
    """Bytes of memory of the machine."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _accelerators() -> str:
    """Those that torch sees, where it is in memory: `8 x NAME, 80 GiB`."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return ""
    about = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    counted = Counter(f"{one.name}, {one.total_memory / 2**30:.0f} GiB" for one in about)
    return "; ".join(f"{number} x {name}" for name, number in counted.items())
