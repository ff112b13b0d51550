"""Accelerators by their data sheets or by a file, and how fast they are at an assumed share of their peaks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from unified.errors import Problem, UserError, unknown_name
from unified.settings import Settings, parse
from unified.tree import Place, read_yaml

#: share of the peak that training and scoring reach; published large runs report 0.3 to 0.6, see docs/scaling.md
UTILISATION = 0.4
#: share of the memory's bandwidth that sampling reaches; an assumption, without a source
BANDWIDTH_USED = 0.6
#: bytes/s of a file system that trainer and servers share, where a file of hardware says nothing else
DISK = 2e9
#: devices of one machine, joined by `link`; beyond them `network` joins
PER_NODE = 8


@dataclass(frozen=True)
class Device:
    """One accelerator. Peaks are dense (no sparsity), in FLOP/s; memory in bytes; the rest in bytes/s.

    bandwidth: of its memory. link: to the others of its machine, in one direction. network: its share of what its
    machine sends to others, in one direction. disk: of the file system that machines share. per_node: devices of one
    machine. utilisation: share of the peaks that training and scoring reach; bandwidth_used: the same of `bandwidth`.
    """

    name: str
    bf16: float
    fp32: float
    memory: float
    bandwidth: float
    link: float = 32e9
    network: float = 12.5e9
    disk: float = DISK
    per_node: int = PER_NODE
    utilisation: float = UTILISATION
    bandwidth_used: float = BANDWIDTH_USED


# bf16 and fp32: dense tensor-core bfloat16, and plain (vector) float32, in TFLOP/s; memory in GB; bandwidth in TB/s;
# link in GB/s and one direction, half of what sheets call bidirectional; network in GB/s and one direction.
_SHEETS = {
    # NVIDIA A100 Tensor Core GPU data sheet, 2021 (40 GB: SXM, 2020); NVLink 600 GB/s. DGX A100 data sheet, 2020: eight
    # network ports of 200 Gb/s for eight GPUs
    "A100": (312, 19.5, 80, 2.039, 300, 25),
    "A100-40GB": (312, 19.5, 40, 1.555, 300, 25),
    # NVIDIA H100 Tensor Core GPU data sheet, 2023; bf16 given there with sparsity, here half of it; NVLink 900 GB/s,
    # PCIe Gen5 128 GB/s. DGX H100 data sheet, 2023: eight ports of 400 Gb/s
    "H100": (989.5, 67, 80, 3.35, 450, 50),
    "H100-PCIe": (756.5, 51, 80, 2.0, 64, 12.5),
    # NVIDIA H200 Tensor Core GPU data sheet, 2024; links as H100
    "H200": (989.5, 67, 141, 4.8, 450, 50),
    # NVIDIA HGX B200 data sheet, 2024: an eighth of the board's; bf16 without sparsity; NVLink 1.8 TB/s. DGX B200 data
    # sheet, 2024: eight ports of 400 Gb/s
    "B200": (2250, 75, 180, 7.7, 900, 50),
    # NVIDIA L4 and L40S data sheets, 2023; bf16 without sparsity; PCIe Gen4 x16, 64 GB/s. No sheet says their network
    # (nor that of the RTX 4090): 100 Gb/s for a machine of eight
    "L4": (121, 30.3, 24, 0.3, 32, 1.5625),
    "L40S": (362, 91.6, 48, 0.864, 32, 1.5625),
    # NVIDIA Ada GPU architecture white paper, 2022: bf16 with float32 sums; PCIe Gen4 x16
    "RTX4090": (165.2, 82.6, 24, 1.008, 32, 1.5625),
    # AMD Instinct MI300X data sheet, 2023; seven links of 128 GB/s to the others of its machine; network as H100
    "MI300X": (1307.4, 163.4, 192, 5.3, 448, 50),
}
DEVICES = {
    name: Device(name, bf16 * 1e12, fp32 * 1e12, memory * 1e9, bandwidth * 1e12, link * 1e9, network * 1e9)
    for name, (bf16, fp32, memory, bandwidth, link, network) in _SHEETS.items()
}


class DeviceFile(Settings):
    """Hardware of one's own, in a YAML file."""

    name: str | None = Field(None, description="what it is called; without, the file's name")
    bf16: float | None = Field(None, gt=0, description="FLOP/s of dense products in bfloat16; without, as in float32")
    fp32: float = Field(gt=0, description="FLOP/s of dense products in float32")
    memory: float = Field(gt=0, description="bytes of one device")
    bandwidth: float = Field(gt=0, description="bytes/s of its memory")
    link: float = Field(32e9, gt=0, description="bytes/s to other devices of the machine, in one direction")
    network: float = Field(12.5e9, gt=0, description="bytes/s to other machines, one device's share, in one direction")
    disk: float = Field(DISK, gt=0, description="bytes/s of a file system that machines share")
    per_node: int = Field(PER_NODE, ge=1, description="devices of one machine")
    utilisation: float = Field(
        UTILISATION, gt=0, le=1, description="share of FLOP/s that training and scoring are taken to reach"
    )
    bandwidth_used: float = Field(
        BANDWIDTH_USED, gt=0, le=1, description="share of `bandwidth` that sampling is taken to reach"
    )


@dataclass(frozen=True)
class Hardware:
    """Several devices of one sort."""

    count: int
    device: Device

    def seconds(self, flops: float, *, bf16: bool = True) -> float:
        """Time of so many floating-point operations, spread over all devices, at the assumed utilisation."""
        return flops / (self.count * self.device.utilisation * (self.device.bf16 if bf16 else self.device.fp32))

    def reading_seconds(self, read: float) -> float:
        """Time in which each device reads or writes so many bytes of its own memory."""
        return read / (self.device.bandwidth * self.device.bandwidth_used)

    @property
    def rate(self) -> float:
        """Bytes/s that each device sends to the next while all do: of the slowest way between two of them."""
        return self.device.link if self.count <= self.device.per_node else min(self.device.network, self.device.link)

    def __str__(self) -> str:
        return f"{self.count} x {self.device.name}"


def hardware(text: str, option: str = "--hardware") -> Hardware:
    """`8xH100`, `H100x8`, `H100`, or a YAML file in place of the name; case does not matter.

    UserError with the known devices for another name, and with every mistake of a file.
    """
    text = text.strip()
    before = re.fullmatch(r"(\d+)\s*[x*×]\s*(.+)", text, re.IGNORECASE)
    after = re.fullmatch(r"(.+?)\s*[x*×]\s*(\d+)", text, re.IGNORECASE)
    count, name = (int(before[1]), before[2]) if before else (int(after[2]), after[1]) if after else (1, text)
    if Path(name).suffix.lower() in (".yaml", ".yml"):
        device = device_of_file(Path(name), option)
    else:
        found = {key.lower(): value for key, value in DEVICES.items()}.get(name.lower())
        if found is None:
            advice = "or a YAML file with its numbers: fp32, bf16 (FLOP/s), memory (bytes), bandwidth (bytes/s), ..."
            problem = unknown_name("device", name, DEVICES, advice=advice)
            raise UserError(f"{option} {text}: {problem.message}", *problem.hints)
        device = found
    if count < 1:
        raise UserError(f"{option} {text}: there must be one device at least", f"for example 8x{device.name}")
    return Hardware(count, device)


def device_of_file(path: Path, option: str = "--hardware") -> Device:
    """The device that a YAML file describes. UserError for one that cannot be read, and for every mistake in it."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{option} {path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    twice: list[tuple[Place, Problem]] = []
    root = read_yaml(text, str(path), twice)
    data = root.plain()
    if not isinstance(data, dict):
        known = ", ".join(sorted(DeviceFile.model_fields))
        raise UserError(f"{root.place}: a file of hardware is a mapping of keys", f"known: {known}")
    settings, problems = parse(DeviceFile, data, owner="a file of hardware")
    found = [p.text(str(place)) for place, p in twice]
    found += [p.text(str(root.place_of(p.at))) for p in problems]
    if found:
        raise UserError("\n".join(found))
    values = {key: getattr(settings, key) for key in DeviceFile.model_fields if key not in ("name", "bf16")}
    return Device(name=settings.name or path.stem, bf16=settings.bf16 or settings.fp32, **values)
