"""Models in and out: Hugging Face checkpoints, in memory or by path, policies and scalar models."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from unified.adapters import adapter_at, base_of, folded, is_scalar
from unified.attention import NAME as ATTENTION
from unified.configurations import made_tokenizer
from unified.disk import space_for, whole_folder
from unified.embeddings import lighten_embedding
from unified.errors import UserError, cut_short, shown
from unified.lora import carries_adapter, taken_off, write_adapter
from unified.norms import lighten_norms
from unified.stage import ModelSettings
from unified.weights import architectures_of, code_hint, refuse_pickled

Kind = Literal["policy", "scalar"]
#: what transformers raises for a configuration that holds the wrong things
_BROKEN = (OSError, ValueError, TypeError, KeyError, AttributeError, StrictDataclassError)
VALUE_HEAD = "value_head.safetensors"


@dataclass
class Artifact:
    """A model that a stage is handed or leaves behind.

    kind: "policy" (a causal language model) or "scalar" (a sequence classifier with one label).
    path: its folder or hub id; module: the model itself, where it is in memory (then it wins over the path). An adapter
    that it carries in memory is folded when it is loaded.
    own_tokenizer: the tokenizer in memory; without, the one at the path.
    value_head: of a policy with a shared trunk, in memory.
    adapts: of an adapter at the path, the model that it is folded into whenever it is loaded.
    trusted: whether Python that lies beside the weights may run; only a recipe can say so.
    """

    kind: Kind
    path: Path | str | None = None
    module: Any = None
    own_tokenizer: Any = None
    value_head: nn.Module | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    adapts: Artifact | None = None
    trusted: bool = False

    def tokenizer(self) -> Any:
        """The tokenizer that travels with the model; UserError where there is none."""
        if self.own_tokenizer is None:
            if self.path is None:
                raise UserError("a model in memory needs its tokenizer", "give Artifact(..., own_tokenizer=tokenizer)")
            try:
                if self.adapts is not None and not _has_tokenizer(self.path):
                    return self.adapts.tokenizer()
                self.own_tokenizer = AutoTokenizer.from_pretrained(self.path, trust_remote_code=self.trusted)
            except (OSError, ValueError) as error:
                raise UserError(f"no tokenizer at {self.path}: {_first_line(error)}", *code_hint(error)) from error
        return self.own_tokenizer

    def load(self, kind: Kind, *, dropout: float | None = None, trained: bool = False) -> Any:
        """The model as `kind`, in float32 unless it is in memory in another type, without dropout unless it is given.

        A policy can be loaded as a scalar model (its trunk, with a head of zeros), never the other way round.
        `trained`: a model in memory is handed out itself, to be trained in place; otherwise a copy.
        Raises UserError for a kind that cannot be had, or a model that is not there.
        """
        if kind == "policy" and self.kind == "scalar":
            raise UserError(
                f"{self} is a scalar model, but a policy is needed",
                "name a stage or folder that holds a causal language model",
            )
        if self.module is not None:
            model = self.module if trained and kind == self.kind else copy.deepcopy(self.module)
            model = taken_off(model, folded=True) if carries_adapter(model) else model
            model = model if kind == self.kind else _scalar_from(model, self.trusted)
            set_dropout(model, dropout)
            return _prepared(model)
        if self.adapts is not None:
            model = folded(self.adapts.load(self.kind, dropout=dropout), str(self.path))
            return model if kind == self.kind else _prepared(_scalar_from(model, self.trusted))
        return _from_path(str(self.path), kind, dropout, self.trusted)

    def __str__(self) -> str:
        return str(self.path) if self.path is not None else f"the {self.kind} in memory"


def base_tokenizer(settings: ModelSettings, home: Path) -> Any:
    """The tokenizer of a recipe's model, without loading the model."""
    if settings.path is not None:
        return artifact_at(_resolve(settings.path, home), home, trusted=settings.trust_remote_code).tokenizer()
    return made_tokenizer(settings)


def base_artifact(settings: ModelSettings, home: Path, seed: int) -> Artifact:
    """The model that a recipe starts from; a new one has weights drawn from the seed."""
    if settings.path is not None:
        return artifact_at(_resolve(settings.path, home), home, trusted=settings.trust_remote_code)
    tokenizer = base_tokenizer(settings, home)
    return new_policy(dict(settings.new or {}), tokenizer, seed)


def new_policy(config: dict[str, Any], tokenizer: Any, seed: int) -> Artifact:
    """A causal language model with random weights; vocabulary and special tokens are the tokenizer's."""
    config = dict(config)
    kind = config.pop("model_type", None)
    if kind is None:
        raise UserError("a new model needs `model_type`", "for example {model_type: llama, hidden_size: 64, ...}")
    special = {f"{n}_token_id": getattr(tokenizer, f"{n}_token_id") for n in ("bos", "eos", "pad")}
    try:
        made = AutoConfig.for_model(kind, **{"vocab_size": len(tokenizer), **special, **config})
        _no_dropout(made, None)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = _prepared(AutoModelForCausalLM.from_config(made))
    except _BROKEN as error:
        raise UserError(f"no model can be built from {shown(config)}: {_first_line(error)}") from error
    return Artifact("policy", module=model.float(), own_tokenizer=tokenizer)


def artifact_at(path: Path | str, home: Path | None = None, *, trusted: bool = False) -> Artifact:
    """The model in a folder (or at a hub id); its kind is read from its configuration.

    trusted: whether Python that lies there may run; that beside a model which an adapter there names may never.

    An adapter comes with the model that it adapts, which is looked for beside the adapter, in `home`, and on the hub.
    """
    folder = Path(path)
    local = isinstance(path, Path) or folder.exists() or str(path).startswith((".", "/"))
    adapter = adapter_at(path)
    if adapter is not None:
        base = artifact_at(base_of(adapter, path, home), home)
        kind: Kind = "scalar" if is_scalar(adapter) else base.kind
        return Artifact(kind, folder if local else str(path), adapts=base)
    if local:
        if not (folder / "config.json").is_file():
            raise UserError(f"no model at {path}", "a model folder holds config.json, weights and a tokenizer")
        return Artifact(_kind_of(architectures_of(folder)), folder, trusted=trusted)
    return Artifact("policy", str(path), trusted=trusted)


def config_at(path: Path | str, home: Path | None = None, *, trusted: bool = False) -> Any:
    """The transformers configuration of a folder or hub id, that of the adapted model for an adapter.

    UserError where there is none.
    """
    adapter = adapter_at(path)
    if adapter is not None:
        return config_at(base_of(adapter, path, home), home)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trusted)
    except _BROKEN as error:
        what = f"no configuration of a model at {path}: {_first_line(error)}"
        raise UserError(what, *code_hint(error)) from error


def _kind_of(architectures: list[str]) -> Kind:
    return "scalar" if any("SequenceClassification" in name for name in architectures) else "policy"


def save_model(model: Any, tokenizer: Any, folder: Path, value_head: nn.Module | None = None) -> None:
    """Write a Hugging Face checkpoint: weights, configuration, tokenizer, and a shared-trunk value head beside.

    All of it, or nothing. UserError for a full disk.
    """
    with space_for("the model", folder.parent), whole_folder(folder) as draft:
        with _quiet():
            model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        if value_head is not None:
            save_file({k: v.contiguous() for k, v in value_head.state_dict().items()}, draft / VALUE_HEAD)


def save_adapter(
    model: Any,
    tokenizer: Any,
    folder: Path,
    base: Path | str | None,
    value_head: nn.Module | None = None,
    whole: Callable[[], Any] | None = None,
) -> None:
    """Write the adapter that a model carries as peft does, with the tokenizer and a shared-trunk value head beside.

    base: the folder or hub id of what it adapts, which it names (a folder by its way from the adapter's); None where
    that is nowhere on the disk: then it is written beside, as NAME-base: what `whole` gives, or the model, which loses
    its adapter.
    All of it, or nothing. UserError for a full disk.
    """
    beside = folder.with_name(f"{folder.name}-base")
    named = beside if base is None else base
    if isinstance(named, Path):
        named = os.path.relpath(named.resolve(), folder.resolve())
    with space_for("the adapter", folder.parent), whole_folder(folder) as draft:
        write_adapter(model, draft, str(named))
        tokenizer.save_pretrained(draft)
        if value_head is not None:
            save_file({k: v.contiguous() for k, v in value_head.state_dict().items()}, draft / VALUE_HEAD)
    if base is None:
        save_model(taken_off(model, folded=False) if whole is None else whole(), tokenizer, beside)


def stored_value_head(artifact: Artifact) -> nn.Linear | None:
    """The shared-trunk value head that a policy brings, in memory or beside its weights; None where it has none."""
    if artifact.value_head is not None:
        weights = artifact.value_head.state_dict()
    elif artifact.path is not None and (file := Path(artifact.path) / VALUE_HEAD).is_file():
        weights = load_file(file)
    else:
        return stored_value_head(artifact.adapts) if artifact.adapts is not None else None
    head = nn.Linear(weights["weight"].shape[1], 1)
    head.load_state_dict(weights)
    return head


def load_value_head(artifact: Artifact, width: int) -> nn.Linear:
    """The shared-trunk value head beside a policy, or a fresh one of zeros."""
    head = stored_value_head(artifact)
    if head is None:
        head = nn.Linear(width, 1)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    return head


def set_dropout(model: nn.Module, p: float | None) -> None:
    """Dropout 0 (or p) everywhere in the model, also where it reads its configuration while it runs."""
    _no_dropout(model.config, p)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p or 0.0
        for name in ("attention_dropout", "attn_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, p or 0.0)


def base_context(settings: ModelSettings, home: Path) -> int:
    """Tokens that a recipe's model will be able to hold, from its configuration; UserError where there is none."""
    return context_length(base_config(settings, home))


def base_config(settings: ModelSettings, home: Path) -> Any:
    """The configuration of a recipe's model, without loading it; UserError where there is none."""
    if settings.path is not None:
        return config_at(_resolve(settings.path, home), home, trusted=settings.trust_remote_code)
    written = dict(settings.new or {})
    try:
        return AutoConfig.for_model(written.pop("model_type", ""), **written)
    except _BROKEN as error:
        raise UserError(f"no configuration of a model: {_first_line(error)}") from error


def context_length(config: Any) -> int:
    """Tokens that a model can hold, as its configuration says (1,000,000 where it does not)."""
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return 1_000_000


def scalar_head(model: Any) -> nn.Linear:
    """The read-out of a scalar model, [hidden] -> [1]."""
    for name in ("score", "classifier"):
        head = getattr(model, name, None)
        if isinstance(head, nn.Linear) and head.out_features == 1:
            return head
    raise UserError(
        f"{type(model).__name__} has no linear read-out of one label",
        "use a sequence classification model with num_labels=1",
    )


def _from_path(path: str, kind: Kind, dropout: float | None, trusted: bool) -> Any:
    """Weights of a folder or hub id. UserError where some are missing: transformers would draw them at random."""
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trusted)
        refuse_pickled(path, getattr(config, "transformers_weights", None))
        stored = _kind_of(config.architectures or [])  # of a hub id it is known only here
        _no_dropout(config, dropout)
        options: dict[str, Any] = {"config": config, "dtype": torch.float32, "use_safetensors": True}
        options["trust_remote_code"] = trusted
        cls: Any = AutoModelForCausalLM if kind == "policy" else AutoModelForSequenceClassification
        if kind == "scalar":
            config.num_labels = 1
        with _quiet():
            model, loaded = cls.from_pretrained(path, output_loading_info=True, **options)
    except (*_BROKEN, RuntimeError, SafetensorError) as error:
        raise UserError(f"no model can be loaded from {path}: {_first_line(error)}", *code_hint(error)) from error
    missing = set(loaded["missing_keys"])
    if kind == "scalar" and stored == "policy":
        head = scalar_head(model)
        missing -= {name for name, module in model.named_parameters() if module is head.weight or module is head.bias}
        nn.init.zeros_(head.weight)
    if kind == "policy" and stored == "scalar":
        raise UserError(
            f"{path} is a scalar model, but a policy is needed", "name a folder that holds a causal language model"
        )
    if missing:
        what = f"it lacks {len(missing)} weights, {min(missing)} among them"
        raise UserError(
            f"{path} holds no whole {kind}: {what}", "name a folder that a stage or `save_pretrained` has written"
        )
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()  # loaded weights are memory-mapped and unaligned, which changes bits
    return _prepared(model)


def _prepared(model: Any) -> Any:
    """The model with this project's attention, norms and embedding, each where its code lets it be; otherwise as it is.

    A model that computes its own (GPT-J, BLOOM), or one whose scores have a term that is not known here (sinks), would
    misread the mask or leave the term out without a word. A cap on the scores is known here.
    """
    capped = getattr(model.config, "attn_logit_softcapping", None) is not None
    if model._supports_attention_backend and (model._supports_sdpa or capped):
        model.config._attn_implementation = ATTENTION
    lighten_norms(model)
    lighten_embedding(model)
    return model


def _scalar_from(policy: Any, trusted: bool) -> Any:
    """A scalar model with the trunk of a policy in memory."""
    config = copy.deepcopy(policy.config)
    config.num_labels = 1
    with torch.random.fork_rng():
        options = {"attn_implementation": "eager", "trust_remote_code": trusted}
        model = AutoModelForSequenceClassification.from_config(config, **options)
    model = model.to(next(policy.parameters()).dtype)
    model.base_model.load_state_dict(policy.base_model.state_dict())
    nn.init.zeros_(scalar_head(model).weight)
    return model


def _no_dropout(config: Any, p: float | None) -> None:
    for name, value in vars(config).items():
        if (
            ("dropout" in name or name.endswith("pdrop"))
            and isinstance(value, (int, float))
            and not isinstance(value, bool)
        ):
            setattr(config, name, p or 0.0)


def _resolve(path: str, home: Path) -> Path | str:
    """A folder relative to the recipe, or a hub id."""
    local = Path(path).expanduser()
    local = local if local.is_absolute() else home / local
    return local if local.exists() or path.startswith((".", "/", "~")) else path


def _has_tokenizer(path: Path | str) -> bool:
    """Whether a tokenizer lies beside an adapter."""
    return cached_file(path, "tokenizer_config.json", _raise_exceptions_for_missing_entries=False) is not None


def _first_line(error: BaseException) -> str:
    if isinstance(error, StrictDataclassError):  # its first line says where, the next one what
        return cut_short(" ".join(str(error).split()))
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


class _quiet:  # noqa: N801 - reads as a verb where it is used
    """Transformers' remarks on loading (fresh heads, progress bars) are ours to make."""

    def __enter__(self) -> None:
        self.level = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        transformers_logging.set_verbosity(self.level)
