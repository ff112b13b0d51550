"""What the command line does, from Python: with Python values, and with models and rows that are in memory."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import unified
from tests.tools import tiny_policy
from unified import UserError, examine
from unified.api import Made

ROWS = [{"prompt": "ab", "completion": "c"}, {"prompt": "b", "completion": "aa"}, {"prompt": "a", "completion": "b"}]
PAIRS = [{"prompt": "ab", "chosen": "c", "rejected": "d"}, {"prompt": "b", "chosen": "aa", "rejected": "c"}]
HELD = {"num_prompts": 1}


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_model_in_memory_is_trained_on_rows_in_memory_and_left_as_it_is(tmp_path: Path) -> None:
    policy = tiny_policy()
    before = flat(policy.module).clone()
    made = unified.train(
        "sft", model=policy.module, tokenizer=policy.tokenizer(), data=ROWS * 4, output=tmp_path / "run",
        max_steps=3, learning_rate=1e-2, batch_size=4,
    )  # fmt: skip
    assert torch.equal(flat(policy.module), before)
    losses = [line["loss"] for line in made.metrics() if "loss" in line]
    assert len(losses) == 3
    assert losses[-1] < losses[0]  # twelve rows of three kinds, learned by heart
    assert made.model == tmp_path / "run" / "sft" / "model"
    assert made.summary["steps"] == 3
    assert not torch.equal(flat(made.load()), before)
    assert made.tokenizer().get_vocab() == policy.tokenizer().get_vocab()


def test_what_was_trained_can_be_handed_on_and_the_second_stage_starts_from_it(tmp_path: Path) -> None:
    policy = tiny_policy()
    first = unified.train(
        "sft", model=policy.module, tokenizer=policy.tokenizer(), data=ROWS * 4, output=tmp_path / "a", max_steps=1
    )
    second = unified.train("dpo", model=first, data=PAIRS * 4, output=tmp_path / "b", max_steps=1, beta=0.3)
    # policy and reference are the same at the first step: −log σ(0) = ln 2, whatever β
    assert second.metrics()[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_the_same_again_is_read_and_not_trained(tmp_path: Path) -> None:
    policy = tiny_policy()
    once, again, other = (
        unified.train(
            "sft", model=policy.module, tokenizer=policy.tokenizer(), data=rows, output=tmp_path / "run", max_steps=1
        )
        for rows in (ROWS * 4, ROWS * 4, ROWS * 5)
    )
    assert once.summary == again.summary
    stamp = (tmp_path / "run" / "sft" / "manifest.json").read_text()
    unified.train(
        "sft", model=policy.module, tokenizer=policy.tokenizer(), data=ROWS * 5, output=tmp_path / "run", max_steps=1
    )
    assert (tmp_path / "run" / "sft" / "manifest.json").read_text() == stamp
    assert other.summary["dropped_rows"] != once.summary["dropped_rows"]  # 15 rows less those held out, not 12


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": object()}, "object is no model"),
        ({"tokenizer": None}, "a model in memory needs its tokenizer"),
        ({"data": []}, "there are no rows"),
        ({"data": ["text"]}, "a row is a mapping of columns, not 'text'"),
        ({"learning_rat": 1}, "did you mean 'learning_rate'"),
        ({"reward": len}, "cannot stand in a recipe"),
    ],
)
def test_a_mistake_is_a_user_error_before_anything_is_trained(
    changes: dict[str, object], said: str, tmp_path: Path
) -> None:
    policy = tiny_policy()
    given = {"model": policy.module, "tokenizer": policy.tokenizer(), "data": ROWS, "max_steps": 1, **changes}
    with pytest.raises(UserError, match=said):
        unified.train("sft", output=tmp_path / "run", **given)  # type: ignore[arg-type]
    assert not (tmp_path / "run" / "sft").exists()


def test_a_recipe_as_a_mapping_runs_like_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (
        "name: small\n"
        "model:\n"
        "  new: {model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1,"
        " num_attention_heads: 2}\n"
        "  tokenizer: random_walks\n"
        "stages:\n"
        "  first: {algorithm: sft, data: random_walks, max_steps: 3}\n"
    )
    (tmp_path / "small.yaml").write_text(text)
    import yaml

    as_file = unified.run("small.yaml", sets=["stages.first.max_steps=1"])
    as_mapping = unified.run(yaml.safe_load(text), sets=["stages.first.max_steps=1"], output=tmp_path / "other")
    assert as_file["first"].folder == Path("runs/small/first")
    assert as_mapping["first"].folder == tmp_path / "other" / "first"
    assert torch.equal(flat(as_file["first"].load()), flat(as_mapping["first"].load()))
    assert as_file["first"].summary["steps"] == 1


def test_coefficients_are_those_of_the_command_with_settings_as_keywords() -> None:
    batch = {"logp": [[-1.0], [-2.0]], "ref_logp": [[-1.5], [-1.5]], "group": [0, 0], "reward": [1, 0]}
    seen = unified.coefficients("dpo", batch, beta=1)
    # the log-ratios are 0.5 and −0.5, the margin 1: GC = ±σ(−1)
    wanted = 1 / (1 + math.e)
    assert seen.coefficient["logp"].flatten().tolist() == pytest.approx([wanted, -wanted])
    assert torch.equal(seen.coefficient["logp"], examine("dpo", batch, ["beta=1"]).coefficient["logp"])
    with pytest.raises(UserError, match="beta"):
        unified.coefficients("dpo", batch, bta=1)


def test_a_stage_without_a_model_says_so_when_it_is_loaded(tmp_path: Path) -> None:
    made = Made(tmp_path, None, {})
    assert made.metrics() == []
    with pytest.raises(UserError, match="makes no model"):
        made.load()
    with pytest.raises(UserError, match="makes no model"):
        unified.train("sft", model=made, data=ROWS, output=tmp_path / "run")
