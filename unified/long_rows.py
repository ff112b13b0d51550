"""Rows that are split over processes (context and sequence parallelism) are refused, with what can be done instead.

docs/scaling.md says from which length on they would be needed, and why accelerate's ways do not fit a packed stream.
Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from unified.errors import UserError

#: variables by which accelerate tells its processes to split more than the data -> how a configuration calls it
SPLITS = {
    "PARALLELISM_CONFIG_CP_SIZE": "context parallelism (cp_size)",
    "PARALLELISM_CONFIG_SP_SIZE": "sequence parallelism (sp_size)",
    "PARALLELISM_CONFIG_TP_SIZE": "tensor parallelism (tp_size)",
}
ADVICE = (
    "every process computes whole rows here; processes that are told to split them would learn from parts of rows",
    "use FSDP2 or ZeRO-3 (`--launch fsdp2`, `zero3`) with `gradient_checkpointing: true`, or lower `max_length`",
    "`unified plan RECIPE --hardware 8xH100 --launch fsdp2` says the longest row that fits; docs/scaling.md, Long rows",
)


def refuse_split_rows(environ: Mapping[str, str] | None = None, where: str = "") -> None:
    """UserError where accelerate is told to split rows or matrices over processes.

    environ: variables as accelerate sets them; without, those of this process. where: what told it so, for the message.
    """
    told = os.environ if environ is None else environ
    found = []
    if told.get("ACCELERATE_USE_PARALLELISM_CONFIG", "").lower() == "true":
        for name, what in SPLITS.items():
            size = told.get(name, "1").strip()
            if size.isdigit() and int(size) > 1:
                found.append(f"{what} of {size}")
    if told.get("ACCELERATE_USE_MEGATRON_LM", "").lower() == "true":
        found.append("Megatron-LM")
    if found:
        said = f"{where}: " if where else ""
        raise UserError(f"{said}accelerate is told to use {' and '.join(found)}, which is not supported", *ADVICE)
