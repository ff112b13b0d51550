"""What a launcher asks besides sharing: nothing of it is dropped without a word, and what would break is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.tools import train_settings
from unified import UserError
from unified.accelerating import make_accelerator, refuse_sharded
from unified.launched import NO_PART, REFUSED, asked_of_deepspeed, refuse_asked, without_a_part

ROOT = Path(__file__).resolve().parents[2]
#: as accelerate's own launcher sets them where a file asks for nothing of the kind
PLAIN = {
    "ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1", "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_ACTIVATION_CHECKPOINTING": "false",
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none", "ACCELERATE_DYNAMO_BACKEND": "NO",
}  # fmt: skip


def test_a_file_that_asks_for_nothing_hears_nothing() -> None:
    assert without_a_part(PLAIN) == without_a_part({}) == []
    refuse_asked(PLAIN)


@pytest.mark.parametrize("name", NO_PART)
def test_what_has_no_part_is_said_with_its_value_and_what_stands_in_its_place(name: str) -> None:
    key, instead = NO_PART[name]
    [line] = without_a_part({**PLAIN, name: "FP16"})
    assert f"`{key}: FP16`" in line
    assert line.endswith(instead)


def test_a_launcher_that_asks_for_compiled_models_gets_them_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    monkeypatch.setattr("unified.accelerating._said", set())
    said: list[str] = []
    accelerator = make_accelerator(said.append)
    make_accelerator(said.append)  # of the next stage
    assert len(said) == 1
    assert "`dynamo_backend: INDUCTOR` has no part" in said[0]
    model = torch.nn.Linear(2, 2)
    assert accelerator.prepare(model) is model


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_put_tensors_where_nobody_looks_is_refused_with_a_way_out(name: str) -> None:
    with pytest.raises(UserError, match=f"`{REFUSED[name]}: nvme`, which is not supported\n.*drop the key"):
        refuse_asked({**PLAIN, name: "nvme"})


def test_a_file_of_deepspeeds_own_is_read_for_the_same() -> None:
    config = {
        "fp16": {"enabled": True}, "bf16": {"enabled": "auto"}, "gradient_clipping": 0.5, "optimizer": {"type": "Lamb"},
        "gradient_accumulation_steps": "auto", "zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}},
    }  # fmt: skip
    asked = asked_of_deepspeed(json.loads(json.dumps(config)))
    said = without_a_part(asked)
    assert [line.split("`")[1] for line in said] == [
        "mixed_precision: fp16",
        "gradient_clipping: 0.5",
        "optimizer: Lamb",
    ]
    with pytest.raises(UserError, match="offload_param_device: cpu"):
        refuse_asked(asked)
    assert without_a_part(asked_of_deepspeed({"zero_optimization": {"stage": 2}})) == []


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"optim": "Adafactor"}, "Adafactor looks at whole matrices"),
        ({"optim": "Muon"}, "Muon looks at whole matrices"),
        ({"adapter": {"quantization": "4bit"}}, "weights of 4 bits are not shared out"),
    ],
)
def test_what_needs_whole_matrices_is_refused_only_where_they_are_shared_out(
    written: dict[str, Any], said: str
) -> None:
    settings = train_settings(algorithm="sft", data="random_walks", **written)
    shared, whole = (SimpleNamespace(is_fsdp2=fsdp2, distributed_type="MULTI_CPU") for fsdp2 in (True, False))
    with pytest.raises(UserError, match=said):
        refuse_sharded(shared, settings)  # type: ignore[arg-type]
    refuse_sharded(whole, settings)  # type: ignore[arg-type]
    refuse_sharded(shared, train_settings(algorithm="sft", data="random_walks", optim="sgd"))  # type: ignore[arg-type]


def test_the_page_names_every_such_key() -> None:
    page = (ROOT / "docs" / "processes.md").read_text(encoding="utf-8")
    for key in [*(key for key, _ in NO_PART.values()), *REFUSED.values()]:
        assert f"`{key}`" in page, key
