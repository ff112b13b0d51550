"""What the tests of adapters have in common: settings, and adapters that are no longer fresh."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.tools import train_settings
from unified.running import Run
from unified.stage import AdapterSettings, TrainSettings

ADAPTER: dict[str, Any] = {"r": 4, "lora_alpha": 8}


def written_adapter(**also: Any) -> AdapterSettings:
    settings = train_settings(algorithm="imitate", data="letters", adapter={**ADAPTER, **also}).adapter
    assert settings is not None
    return settings


def moved(model: Any, scale: float = 0.1) -> Any:
    """The same model, its adapter no longer fresh."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter) * scale
    return model


def rows_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def prefer(**also: Any) -> TrainSettings:
    return train_settings(
        **{"algorithm": "prefer", "data": "letters", "learning_rate": 1e-3, "max_steps": 3, "batch_size": 8, **also}
    )


def imitate(**also: Any) -> TrainSettings:
    return train_settings(**{"algorithm": "imitate", "data": "letters", "learning_rate": 1e-2, "max_steps": 5, **also})


def matrices(run: Run) -> Tensor:
    return torch.cat([p.detach().flatten() for n, p in run.roles.named_parameters() if "lora_" in n])
