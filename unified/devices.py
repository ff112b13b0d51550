"""Accelerators by their data sheets, and the time that work takes on them under an assumed utilisation."""

from __future__ import annotations

import re
from dataclasses import dataclass

from unified.errors import UserError, unknown_name

#: share of the peak that training and scoring reach; published large runs report 0.3 to 0.5
UTILISATION = 0.4


@dataclass(frozen=True)
class Device:
    """One accelerator. Peaks are dense (no sparsity), in FLOP/s; memory in bytes; bandwidth in bytes/s."""

    name: str
    bf16: float
    fp32: float
    memory: float
    bandwidth: float


# bf16 and fp32: dense tensor-core bfloat16, and plain (vector) float32, in TFLOP/s; memory in GB; bandwidth in TB/s.
_SHEETS = {
    # NVIDIA A100 Tensor Core GPU data sheet, 2021 (40 GB: SXM, 2020)
    "A100": (312, 19.5, 80, 2.039),
    "A100-40GB": (312, 19.5, 40, 1.555),
    # NVIDIA H100 Tensor Core GPU data sheet, 2023; bf16 given there with sparsity, here half of it
    "H100": (989.5, 67, 80, 3.35),
    "H100-PCIe": (756.5, 51, 80, 2.0),
    # NVIDIA H200 Tensor Core GPU data sheet, 2024
    "H200": (989.5, 67, 141, 4.8),
    # NVIDIA HGX B200 data sheet, 2024: an eighth of the board's; bf16 without sparsity
    "B200": (2250, 75, 180, 7.7),
    # NVIDIA L4 and L40S data sheets, 2023; bf16 without sparsity
    "L4": (121, 30.3, 24, 0.3),
    "L40S": (362, 91.6, 48, 0.864),
    # NVIDIA Ada GPU architecture white paper, 2022: bf16 with float32 sums
    "RTX4090": (165.2, 82.6, 24, 1.008),
    # AMD Instinct MI300X data sheet, 2023
    "MI300X": (1307.4, 163.4, 192, 5.3),
}
DEVICES = {
    name: Device(name, bf16 * 1e12, fp32 * 1e12, memory * 1e9, bandwidth * 1e12)
    for name, (bf16, fp32, memory, bandwidth) in _SHEETS.items()
}


@dataclass(frozen=True)
class Hardware:
    """Several devices of one sort, each with a whole copy of the models (data parallel)."""

    count: int
    device: Device

    def seconds(self, flops: float, *, bf16: bool = True) -> float:
        """Time of so many floating-point operations at the assumed utilisation."""
        return flops / (self.count * UTILISATION * (self.device.bf16 if bf16 else self.device.fp32))

    def decoding_seconds(self, new_tokens: float, *, at_once: int, weight_bytes: float) -> float:
        """Time in which sampling reads the weights: once for every token of the `at_once` answers of one device."""
        return new_tokens / (at_once * self.count) * weight_bytes / self.device.bandwidth


def hardware(text: str) -> Hardware:
    """`8xH100` or `H100` as hardware; case does not matter. UserError with the known devices otherwise."""
    found = re.fullmatch(r"(?:(\d+)\s*[x*×]\s*)?(.+)", text.strip(), re.IGNORECASE)
    count, name = (int(found[1] or 1), found[2]) if found else (0, text)
    device = {key.lower(): value for key, value in DEVICES.items()}.get(name.lower())
    if device is None:
        problem = unknown_name("device", name, DEVICES)
        raise UserError(f"--hardware {text}: {problem.message}", *problem.hints)
    if count < 1:
        raise UserError(f"--hardware {text}: there must be one device at least", f"for example 8x{device.name}")
    return Hardware(count, device)
