"""How the models of a stage lie on the processes that train them, and what they send each other for it.

The sharing of state is that of ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054, sections 5 and 7): stage 2 shares
gradients and the optimiser's state, stage 3 (and FSDP2) the weights as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unified.errors import UserError, unknown_name

FLOAT32, BFLOAT16 = 4, 2


@dataclass(frozen=True)
class Spread:
    """Which parts of the state each of `count` processes holds 1/count of; of the others it holds a whole copy.

    name: as it was asked for. casts: weights are gathered in the type in which products read them (FSDP2), and not in
    float32. master: beside what is trained there is a second copy of it, which the optimiser moves (DeepSpeed).
    """

    name: str = "gpu"
    count: int = 1
    weights: bool = False
    gradients: bool = False
    optimiser: bool = False
    casts: bool = False
    master: bool = False

    @property
    def share(self) -> float:
        """What of a tensor all others hold: (n - 1) / n."""
        return (self.count - 1) / self.count

    def gathered(self, *, bf16: bool) -> int:
        """Bytes of a weight as it goes from process to process. bf16: whether products read it in bfloat16."""
        return BFLOAT16 if self.casts and bf16 else FLOAT32

    def part(self, shared: bool) -> int:
        """What a number of bytes is divided by on one process."""
        return self.count if shared else 1

    def sent(self, weights: float, learning: float, *, forwards: float, micros: float, steps: float) -> float:
        """Bytes that each process sends, by the ring of Rajbhandari et al., section 7, in the course of a stage.

        weights: bytes of the models that learn, as they are gathered. learning: of their gradients. micros: backward
        passes of one step. forwards: bytes of weights that forwards without gradient gather, each time.
        """
        if self.count == 1:
            return 0.0
        if not self.gradients:
            return self.share * 2 * learning * steps
        if not self.weights:
            return self.share * (learning * micros + learning) * steps
        return self.share * ((2 * weights + learning) * micros * steps + forwards)

    def describe(self) -> str:
        """In words."""
        if self.count == 1:
            return "one process holds everything"
        held = [n for n, s in (("weights", self.weights), ("gradients", self.gradients)) if s]
        held += ["optimiser state"] if self.optimiser else []
        if not held:
            return f"each of {self.count} processes holds a whole copy"
        return f"each of {self.count} processes holds 1/{self.count} of " + ", ".join(held)


_COPIES: dict[str, bool] = {}
_ZERO2 = {"gradients": True, "optimiser": True, "master": True}
_ZERO3 = {"weights": True, **_ZERO2}
_FSDP2 = {"weights": True, "gradients": True, "optimiser": True, "casts": True}
#: names of launch configurations -> what is shared
WAYS: Mapping[str, Mapping[str, bool]] = {
    "gpu": _COPIES, "gpus": _COPIES, "cpu": _COPIES, "zero2": _ZERO2, "zero3": _ZERO3, "fsdp2": _FSDP2,
    "nodes": _FSDP2,
}  # fmt: skip
#: stages of ZeRO in a configuration of accelerate -> what is shared
_STAGES: Mapping[int, Mapping[str, bool]] = {
    0: _COPIES, 1: {"optimiser": True, "master": True}, 2: _ZERO2, 3: _ZERO3
}  # fmt: skip


def spread_of(launch: str | None, count: int) -> Spread:
    """The spread that a launch configuration gives `count` processes: by its name, or an accelerate file of one's own.

    UserError for an unknown name, a file that cannot be read, or one that splits rows.
    """
    if launch is None:
        return Spread("gpus" if count > 1 else "gpu", count)
    if launch in WAYS:
        return Spread(launch, count, **WAYS[launch])
    if Path(launch).suffix.lower() in (".yaml", ".yml"):
        return Spread(Path(launch).stem, count, **_of_file(Path(launch)))
    problem = unknown_name("launch configuration", launch, WAYS, advice="or a YAML file of accelerate")
    raise UserError(f"--launch {launch}: {problem.message}", *problem.hints)


def _of_file(path: Path) -> Mapping[str, bool]:
    """What a configuration file of accelerate shares."""
    from unified.long_rows import refuse_split_rows
    from unified.tree import read_yaml

    try:
        data = read_yaml(path.read_text(encoding="utf-8"), str(path), []).plain()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--launch {path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(data, dict):
        raise UserError(f"--launch {path}: not a configuration of accelerate", "`accelerate config` writes one")
    refuse_split_rows(_sizes(data), str(path))
    kind = str(data.get("distributed_type", "NO")).upper()
    if kind == "DEEPSPEED":
        stage = (data.get("deepspeed_config") or {}).get("zero_stage", 2)
        return _STAGES.get(int(stage) if str(stage).isdigit() else 2, _ZERO2)
    return _FSDP2 if kind == "FSDP" else _COPIES


def _sizes(data: Mapping[str, Any]) -> dict[str, str]:
    """The sizes of a file's `parallelism_config`, named as accelerate hands them to processes."""
    written = data.get("parallelism_config")
    if not isinstance(written, Mapping):
        return {}
    found = {str(k).upper().removeprefix("PARALLELISM_CONFIG_"): str(v) for k, v in written.items()}
    return {"ACCELERATE_USE_PARALLELISM_CONFIG": "true"} | {f"PARALLELISM_CONFIG_{k}": v for k, v in found.items()}
