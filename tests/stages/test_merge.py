"""The merging stage: the average of tensors, and what it refuses to average."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tools import letter_tokenizer, stage, tiny_policy, tiny_scalar
from unified import Artifact, UserError, catalogue
from unified.models import artifact_at
from unified.settings import parse
from unified_plugins.stages.merge import MergeSettings, shares


def merge(folder: Path, artifacts: dict[str, Artifact], **written: Any) -> dict[str, torch.Tensor]:
    """The weights of what the stage leaves, loaded from its folder."""
    part = catalogue().get("stage", "merge")
    settings, problems = parse(part.settings, {"models": list(artifacts), **written}, owner="stage 'test'")
    assert not problems, problems
    assert part.check(settings=settings) == []
    made = part.run(stage(folder, artifacts), settings)
    again = artifact_at(folder / "model")
    assert again.kind == made.artifact.kind == settings.of
    assert again.tokenizer().eos_token_id == 2
    return dict(again.load(again.kind).named_parameters())


def weights(artifact: Artifact) -> dict[str, torch.Tensor]:
    return dict(artifact.module.named_parameters())


def test_every_tensor_is_the_weighted_average(tmp_path: Path) -> None:
    a, b = tiny_policy(seed=0), tiny_policy(seed=1)
    made = merge(tmp_path, {"stage:a": a, "stage:b": b}, weights=[1, 3])
    assert made.keys() == weights(a).keys()
    for name, tensor in made.items():
        torch.testing.assert_close(tensor, 0.25 * weights(a)[name] + 0.75 * weights(b)[name])
    assert not torch.equal(made["lm_head.weight"], weights(b)["lm_head.weight"])


def test_equal_models_average_to_themselves_bit_for_bit_for_any_weights(tmp_path: Path) -> None:
    same = {name: tiny_policy(seed=3) for name in ("stage:a", "stage:b", "stage:c")}
    made = merge(tmp_path, same)
    assert all(torch.equal(made[n], t) for n, t in weights(same["stage:a"]).items())


def test_scalar_models_are_averaged_with_their_read_out(tmp_path: Path) -> None:
    a, b = tiny_scalar(seed=0), tiny_scalar(seed=1)
    made = merge(tmp_path, {"stage:a": a, "stage:b": b}, of="scalar")
    torch.testing.assert_close(made["score.weight"], (weights(a)["score.weight"] + weights(b)["score.weight"]) / 2)


def test_a_moving_average_gives_the_first_model_what_the_later_ones_left_of_it() -> None:
    # theta_1; 1/2 theta_1 + 1/2 theta_2; 1/4 theta_1 + 1/4 theta_2 + 1/2 theta_3
    models = ["stage:a", "stage:b", "stage:c"]
    assert shares(MergeSettings(models=models, ema_decay=0.5)) == [0.25, 0.25, 0.5]
    assert shares(MergeSettings(models=models, weights=[2, 1, 1])) == [0.5, 0.25, 0.25]
    assert shares(MergeSettings(models=["base"])) == [1.0]


def test_models_of_another_architecture_or_size_are_refused_with_both_sides(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'stage:a' is a llama and 'stage:b' a qwen2"):
        merge(tmp_path / "1", {"stage:a": tiny_policy(), "stage:b": tiny_policy("qwen2")})
    from unified.models import new_policy

    sizes = {"model_type": "llama", "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    small, large = (new_policy({**sizes, "hidden_size": h}, letter_tokenizer(), 0) for h in (16, 32))
    message = re.escape("lm_head.weight is [46, 16] in 'stage:a' and [46, 32] in 'stage:b'")
    with pytest.raises(UserError, match=message):
        merge(tmp_path / "2", {"stage:a": small, "stage:b": large})


def test_another_chat_template_is_refused_unless_the_recipe_takes_that_of_the_first(tmp_path: Path) -> None:
    models = {"stage:a": tiny_policy(seed=0), "stage:b": tiny_policy(seed=1)}
    models["stage:b"].own_tokenizer.chat_template = "{{ messages }}"
    with pytest.raises(UserError, match=r"'stage:b' has another vocabulary or chat template than 'stage:a'"):
        merge(tmp_path / "1", models)
    assert merge(tmp_path / "2", models, tokenizers="first")


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"weights": [1]}, "there are 2 models but 1 weights"),
        ({"weights": [1, -1]}, "the weights sum to 0"),
        ({"weights": [1, 1], "ema_decay": 0.5}, "give `weights` or `ema_decay`, not both"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_the_check(written: dict[str, Any], message: str) -> None:
    settings = MergeSettings(models=["base", "stage:a"], **written)
    (problem,) = catalogue().get("stage", "merge").check(settings=settings)
    assert problem.message == message
