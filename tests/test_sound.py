"""What was found right is remembered, and `unified check` then loads nothing that would only find it right again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from unified import configurations, optim, sound
from unified.configurations import configuration_problems, context_at, shape_at
from unified.errors import UserError
from unified.sound import keep, recall, sound_file
from unified.stage import ModelSettings, TrainSettings

#: modules that a check of a recipe needs nothing of; each takes from a tenth of a second to two seconds
HEAVY = (
    "accelerate", "bitsandbytes", "datasets", "peft", "transformers.generation", "transformers.modeling_utils",
    "transformers.models.auto.configuration_auto", "transformers.optimization", "torch._dynamo", "unified.attention",
    "unified.models", "unified.loop",
)  # fmt: skip
RECIPE = """
name: light
model: {new: {model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1,
              num_attention_heads: 2, max_position_embeddings: 48}, tokenizer: random_walks}
stages:
  one: {algorithm: sft, data: random_walks, lr_scheduler_type: cosine_with_min_lr, lr_scheduler_kwargs: {min_lr: 1e-6}}
  two: {algorithm: dpo, model: stage:one, data: {name: random_walks, view: pairs}}
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not loaded the table of configurations yet."""
    monkeypatch.setattr(configurations, "_TABLE", "nothing.that.is.loaded")


def new(**also: object) -> ModelSettings:
    config = {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 2, "max_position_embeddings": 48}
    return ModelSettings(path=None, new={**config, **also}, tokenizer=None)


def checked(recipe: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """`unified check` in a process of its own, and which of the heavy modules it had loaded at its end."""
    code = (
        "import atexit, json, sys\n"
        f"atexit.register(lambda: print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]), file=sys.stderr))\n"
        f"from unified.cli import main\nmain(['check', {str(recipe)!r}, *{list(options)!r}])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={**os.environ})
    return done, json.loads(done.stderr.splitlines()[-1])


def test_a_check_of_what_was_right_before_loads_no_part_of_a_library_that_runs_models(tmp_path: Path) -> None:
    recipe = tmp_path / "light.yaml"
    recipe.write_text(RECIPE)
    first, loaded = checked(recipe)
    assert (first.returncode, first.stdout.splitlines()[-1]) == (0, "recipe is fine")
    assert "transformers.models.auto.configuration_auto" in loaded, (
        "nothing heavy is known here: the test shows nothing"
    )
    again, loaded = checked(recipe)
    assert again.stdout == first.stdout
    assert loaded == []


def test_a_recipe_whose_model_is_on_the_hub_needs_none_of_them_the_first_time(tmp_path: Path) -> None:
    recipe = tmp_path / "hub.yaml"
    recipe.write_text("name: hub\nmodel: someone/model\nstages: {one: {algorithm: sft, data: random_walks}}\n")
    done, loaded = checked(recipe)
    assert (done.returncode, loaded) == (0, [])


def test_an_answer_is_there_in_the_next_process_and_only_for_its_own_question(cache: Path) -> None:
    assert recall(["a", 1]) is None
    keep(["a", 1], {"context": 3})
    assert recall(["a", 1]) == {"context": 3}
    assert recall(["a", 2]) is None
    assert list((cache / "unified").iterdir()) == [sound_file()]


def test_answers_are_not_those_of_another_version_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    keep("q", True)
    monkeypatch.setattr(sound, "version", lambda package: "0.0.0")
    assert recall("q") is None


def test_only_so_many_answers_are_kept_and_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sound, "MOST", 2)
    for question in "abc":
        keep(question, True)
    assert [recall(question) for question in "abc"] == [None, True, True]


@pytest.mark.parametrize("damaged", ["", "[1]", "{", '{"a": '])
def test_a_damaged_file_holds_no_answers_and_is_written_anew(damaged: str) -> None:
    keep("q", True)
    sound_file().write_text(damaged)
    assert recall("q") is None
    keep("q", True)
    assert recall("q") is True


def test_a_folder_that_cannot_be_written_is_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    keep("q", True)
    assert recall("q") is None


def test_what_json_cannot_hold_is_asked_each_time() -> None:
    keep({"a": object()}, True)
    assert not sound_file().exists()


@pytest.mark.usefixtures("unloaded")
def test_keys_that_were_right_are_not_looked_up_again_and_wrong_ones_are_found_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert configuration_problems({"model_type": "llama", "hidden_size": 3}) == []
    for _ in range(2):
        (problem,) = configuration_problems({"model_type": "llama", "hidden_sze": 3})
        assert problem.hints == ("did you mean 'hidden_size'?",)
    monkeypatch.setitem(sys.modules, "transformers.models.auto.configuration_auto", None)  # importing it fails
    assert configuration_problems({"hidden_size": 64, "model_type": "llama"}) == []  # other values of the same keys
    with pytest.raises(ImportError):
        configuration_problems({"model_type": "llama", "hidden_sze": 3})


@pytest.mark.usefixtures("unloaded")
def test_context_and_shape_are_the_same_remembered_and_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = context_at(new(), tmp_path), shape_at(new(), tmp_path)
    assert looked[0] == 48
    assert looked[1]["hidden_size"] == 32
    monkeypatch.setattr("unified.models.base_config", None)
    assert (context_at(new(), tmp_path), shape_at(new(), tmp_path)) == looked
    with pytest.raises(TypeError):  # another configuration is looked up, which is not possible now
        context_at(new(hidden_size=64), tmp_path)


@pytest.mark.usefixtures("unloaded")
def test_a_folder_is_known_by_what_stands_in_its_configuration(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    settings = ModelSettings(path="model", new=None, tokenizer=None)
    for context in (32, 64):
        config = {"model_type": "llama", "max_position_embeddings": context}
        (folder / "config.json").write_text(json.dumps(config))
        assert [context_at(settings, tmp_path) for _ in range(2)] == [context, context]


@pytest.mark.usefixtures("unloaded")
def test_a_configuration_that_cannot_be_is_refused_each_time(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(UserError, match="no configuration of a model"):
            context_at(new(hidden_size="wide"), tmp_path)


def settings(**written: object) -> TrainSettings:
    return TrainSettings.model_validate({"algorithm": "sft", "data": "random_walks", **written})


@pytest.mark.parametrize("name", optim.PLAIN)
@pytest.mark.parametrize("rate", [1e-12, 1.0])
@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_schedules_that_are_not_tried_have_nothing_wrong_in_them(name: str, rate: float, warmup: float) -> None:
    for steps in (1, 2, 1000):
        written = settings(lr_scheduler_type=name, learning_rate=rate, warmup_ratio=warmup, max_steps=steps)
        assert optim._tried(written, steps) == []
        assert optim.schedule_problems(written) == []


def test_a_schedule_that_was_right_is_not_tried_again_and_a_wrong_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    right = settings(lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr": 1e-7})
    wrong = settings(lr_scheduler_type="cosine_with_min_lr")
    assert optim.schedule_problems(right) == []
    assert len(optim.schedule_problems(wrong)) == 1
    monkeypatch.setattr(optim, "_tried", None)
    assert optim.schedule_problems(right) == []
    with pytest.raises(TypeError):
        optim.schedule_problems(wrong)
