"""unified: post-training of language models as Σ w · GC · ∇log π, in three pluggable parts.

Everything that plugins and programs may use is listed in `__all__`. Importing this package does not import torch; a
name that needs it loads it when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unified import api as api
    from unified import testing as testing
    from unified import training as training
    from unified.api import coefficients as coefficients
    from unified.api import run as run
    from unified.api import train as train
    from unified.attention import packed_masks as packed_masks
    from unified.batch import Batch as Batch
    from unified.batch import Pairs as Pairs
    from unified.batch import pairs as pairs
    from unified.bench import Bench as Bench
    from unified.check import check_recipe as check_recipe
    from unified.coefficient_tool import examine as examine
    from unified.data import Answer as Answer
    from unified.data import Example as Example
    from unified.data import NewWeights as NewWeights
    from unified.data import PromptGroup as PromptGroup
    from unified.data import Sampling as Sampling
    from unified.data import TokenRow as TokenRow
    from unified.errors import FormatError as FormatError
    from unified.errors import LostEngine as LostEngine
    from unified.errors import PluginError as PluginError
    from unified.errors import Problem as Problem
    from unified.errors import UserError as UserError
    from unified.errors import cut_short as cut_short
    from unified.errors import did_you_mean as did_you_mean
    from unified.hookspecs import hookimpl as hookimpl
    from unified.judges import Judge as Judge
    from unified.models import Artifact as Artifact
    from unified.models import save_model as save_model
    from unified.models import stored_value_head as stored_value_head
    from unified.parts import Algorithm as Algorithm
    from unified.parts import DataFormat as DataFormat
    from unified.parts import Dataset as Dataset
    from unified.parts import DataSource as DataSource
    from unified.parts import Reward as Reward
    from unified.parts import RolloutEngine as RolloutEngine
    from unified.parts import Rule as Rule
    from unified.parts import StageKind as StageKind
    from unified.precision import plain_float32 as plain_float32
    from unified.recipe import load_recipe as load_recipe
    from unified.registry import Catalogue as Catalogue
    from unified.registry import call_named as call_named
    from unified.registry import catalogue as catalogue
    from unified.registry import using as using
    from unified.render import Renderer as Renderer
    from unified.render import number_columns as number_columns
    from unified.render import tools_of as tools_of
    from unified.runner import run_recipe as run_recipe
    from unified.secret import masked as masked
    from unified.settings import Chosen as Chosen
    from unified.settings import Field as Field
    from unified.settings import Settings as Settings
    from unified.settings import choice as choice
    from unified.stage import StageContext as StageContext
    from unified.stage import StageResult as StageResult
    from unified.stage import TrainSettings as TrainSettings
    from unified.work import Job as Job
    from unified.work import Measure as Measure
    from unified.work import Rows as Rows
    from unified.work import Work as Work

__version__ = "0.1.0"

_HOME = {
    "coefficients": "api", "run": "api", "train": "api",
    "packed_masks": "attention", "Bench": "bench", "Batch": "batch", "Pairs": "batch", "pairs": "batch",
    "check_recipe": "check", "examine": "coefficient_tool", "load_recipe": "recipe", "run_recipe": "runner",
    "Answer": "data", "Example": "data", "PromptGroup": "data", "Sampling": "data", "TokenRow": "data",
    "FormatError": "errors", "PluginError": "errors", "Problem": "errors", "UserError": "errors",
    "did_you_mean": "errors", "cut_short": "errors", "LostEngine": "errors", "NewWeights": "data",
    "hookimpl": "hookspecs", "Judge": "judges",
    "Artifact": "models", "save_model": "models", "stored_value_head": "models",
    "Algorithm": "parts", "DataFormat": "parts", "Dataset": "parts", "DataSource": "parts", "Reward": "parts",
    "plain_float32": "precision", "RolloutEngine": "parts", "Rule": "parts", "StageKind": "parts",
    "Catalogue": "registry", "call_named": "registry", "catalogue": "registry", "using": "registry",
    "Renderer": "render", "number_columns": "render", "tools_of": "render", "masked": "secret",
    "Chosen": "settings", "Field": "settings", "Settings": "settings", "choice": "settings",
    "StageContext": "stage", "StageResult": "stage", "TrainSettings": "stage",
    "Job": "work", "Measure": "work", "Rows": "work", "Work": "work",
}  # fmt: skip

__all__ = ["__version__", "api", "testing", "training", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name in ("api", "testing", "training"):
        return import_module(f"unified.{name}")
    if name in _HOME:
        return getattr(import_module(f"unified.{_HOME[name]}"), name)
    raise AttributeError(f"module 'unified' has no attribute '{name}'")
