"""Names of models that could be those of the hub and are likelier misspelt: refused, and nothing is asked."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.workshop import write_base
from unified import UserError
from unified.check import check_recipe
from unified.named_models import path_problem
from unified.recipe import load_recipe


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    write_base(tmp_path / "judge")
    write_base(tmp_path / "scorers" / "kind")
    (tmp_path / "notes").mkdir()  # a folder without a model


def said(home: Path, reference: str) -> str:
    problem = path_problem(reference, home, (), ["scorer", "start"])
    return problem.text() if problem else ""


@pytest.mark.parametrize(
    ("reference", "near"),
    [
        ("jugde", "judge"), ("judge2", "judge"), ("scorrer", "stage:scorer"), ("sart", "stage:start"),
        ("scorer/kind", "scorers/kind"), ("scorres/kindd", "scorers/kind"), ("scorer", "stage:scorer"),
    ],
)  # fmt: skip
def test_what_is_nearly_a_stage_or_a_folder_with_a_model_is_taken_for_it(
    tmp_path: Path, reference: str, near: str
) -> None:
    assert said(tmp_path, reference).startswith(f"there is no model {reference}\n    did you mean '{near}'?")


@pytest.mark.parametrize("reference", ["gpt2", "org/model", "note", "notes-7b", "kind/scorers", "judge-of-all-7b"])
def test_what_is_like_nothing_that_is_here_is_an_id_of_the_hub(tmp_path: Path, reference: str) -> None:
    assert said(tmp_path, reference) == ""


def test_what_the_hub_has_given_before_is_not_misspelt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache" / "models--scorer--kind"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("abc")
    (cache / "snapshots" / "abc").mkdir(parents=True)
    (cache / "snapshots" / "abc" / "config.json").write_text("{}")
    assert said(tmp_path, "scorer/kind")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert said(tmp_path, "scorer/kind") == ""


@pytest.mark.parametrize("name", ["rm.safetensors", "org/rm.gguf"])
def test_a_file_of_weights_is_no_model(tmp_path: Path, name: str) -> None:
    assert said(tmp_path, name).startswith(f"there is no model {name}\n    name the folder that holds the file")


RECIPE = """\
name: a
model:
  new: {model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2}
  tokenizer: random_walks
stages:
  rl:
    algorithm: grpo
    data: random_walks
    reward:
      name: several
      rewards:
        - reward: random_walks
        - reward:
            name: rubric
            model: ./jugde
        - reward: {name: pairwise, model: jugde}
"""


def test_a_misspelt_judge_inside_another_reward_is_told_at_its_own_line(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    with pytest.raises(UserError) as raised:
        check_recipe(load_recipe(tmp_path / "r.yaml"))
    heads = [line for line in str(raised.value).replace(f"{tmp_path}/", "").splitlines() if "there is no" in line]
    assert heads == [
        "r.yaml:15: stage 'rl': there is no folder ./jugde",
        "r.yaml:16: stage 'rl': there is no model jugde",
    ]
