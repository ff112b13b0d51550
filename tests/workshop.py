"""A stranger's stage kind that writes a small file in place of training: recipes and runs are tested without models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from unified import (
    Algorithm,
    Chosen,
    Dataset,
    Field,
    Settings,
    StageContext,
    StageKind,
    StageResult,
    hookimpl,
)
from unified.errors import Problem
from unified.registry import Catalogue
from unified.settings import choice


class Heat(Settings):
    """Settings of the stranger's algorithm."""

    degrees: float = Field(20.0, gt=0, description="temperature of the iron, in degrees")


class Ore(Settings):
    """Settings of the stranger's dataset."""

    path: str | None = Field(None, description="a file of the ore")


class Hammer(Settings):
    """A nested mapping."""

    weight: int = Field(1, ge=1, description="in kilograms")


class ForgeSettings(Settings):
    """What a forging stage may set."""

    algorithm: Chosen | None = choice("algorithm", None, description="how it is heated")
    data: Chosen | None = choice("dataset", None, description="what it is made of")
    model: str = Field("base", description="what is forged")
    mark: str = Field("", description="stamped on the result")
    shape: Literal["policy", "scalar", "nothing"] = Field("policy", description="what comes out")
    hammers: list[Hammer] = Field([], description="in the order of use")
    wants: Literal["policy", "scalar", "any"] = Field("any", description="kind of model that it takes")
    learning_rate: float = Field(0.1, description="a number")


class MeltSettings(Settings):
    """What a melting stage may set."""

    heat: float = Field(1.0, description="a number")
    mark: str = Field("", description="not allowed to be `bad`")


class Workshop:
    """The plugin. `ran`: stages that really ran; `during(stage)`: called while one runs; `heard`: events."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.heard: list[tuple[str, Any]] = []
        self.during: Any = lambda stage: None

    def catalogue(self) -> Catalogue:
        """The workshop alone, without the installed plugins."""
        return Catalogue({"workshop": self}, installed=False)

    def run(self, stage: StageContext, settings: ForgeSettings) -> StageResult:
        """Write model/weights.safetensors: the mark, behind what the input held."""
        from unified.models import Artifact

        self.ran.append(stage.name)
        before = Path(stage.artifact(settings.model).path or "") / "weights.safetensors"
        stage.progress(1, 2, {"reward": 0.5})
        (stage.folder / "metrics.jsonl").open("a").write("{}\n")
        self.during(stage)
        folder = stage.folder / "model"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"architectures": ["XForCausalLM"]}))
        (folder / "weights.safetensors").write_text(before.read_text() + settings.mark)
        stage.notify("step_finished", stage=stage.name, step=2, metrics={"reward": 1.0})
        return StageResult(Artifact("policy", folder), {"eval/reward": 0.75, "eval/kl": 0.5})

    @hookimpl
    def unified_stages(self) -> list[StageKind]:
        """Forging in place of training, and melting that looks at its settings."""
        forge = StageKind(
            "train",
            ForgeSettings,
            run=lambda stage, settings: self.run(stage, settings),
            uses=lambda settings: [(("model",), settings.model, settings.wants)],
            makes=lambda settings: None if settings.shape == "nothing" else settings.shape,
        )
        melt = StageKind("melt", MeltSettings, run=lambda stage: StageResult(), check=_check_melt)
        return [forge, melt]

    @hookimpl
    def unified_algorithms(self) -> list[Algorithm]:
        """One algorithm with a setting."""
        return [Algorithm("anneal", Heat, coefficient=lambda batch: batch.reward)]

    @hookimpl
    def unified_datasets(self) -> list[Dataset]:
        """One dataset by name, and files by path."""
        return [Dataset("ore", Ore), Dataset("files", Ore)]

    @hookimpl
    def stage_started(self, stage: str, plan: dict[str, Any]) -> None:
        """Noted."""
        self.heard.append(("stage_started", (stage, plan["kind"], plan["algorithms"])))

    @hookimpl
    def step_finished(self, stage: str, step: int) -> None:
        """Noted."""
        self.heard.append(("step_finished", (stage, step)))

    @hookimpl
    def stage_finished(self, stage: str, summary: dict[str, Any]) -> None:
        """Noted."""
        self.heard.append(("stage_finished", (stage, summary["eval/reward"])))


def _check_melt(settings: MeltSettings, tokenizer: Any) -> list[Problem]:
    assert tokenizer is None  # melting uses no model
    return [Problem("the mark may not be 'bad'", ("mark",), ("use another",))] if settings.mark == "bad" else []


def write_base(folder: Path, *, text: str = "iron ", architecture: str = "XForCausalLM") -> Path:
    """A model folder that a recipe can start from."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    (folder / "weights.safetensors").write_text(text)
    return folder
