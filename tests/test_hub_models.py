"""Models of the hub: a check fetches nothing and says so; a run looks at them before its first stage works.

The hub is a cache folder as its library writes it, and nothing else can be reached.
"""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests.test_edges import TEMPLATE, model_at, rows, tokenizer
from tests.tools import WORDS, letter_tokenizer, tiny_policy
from unified import UserError, check_recipe, load_recipe, run_recipe, save_model
from unified.cli import app
from unified.console import RunConsole
from unified.runner import Outcome
from unified.unverified import not_yet_verified

IMITATE = "one: {algorithm: sft, data: pairs.jsonl, max_steps: 1, batch_size: 4}"
RL = "{algorithm: grpo, data: prompts.jsonl, source: {max_tokens: 4}, max_steps: 1, "


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    rows(tmp_path, chat=True)
    model_at(publish(tmp_path, "org/policy"))
    model_at(publish(tmp_path, "org/judge"), scalar=True)
    model_at(publish(tmp_path, "org/judge-words"), scalar=True, own=tokenizer(words=[*WORDS, "~"]))
    model_at(publish(tmp_path, "org/judge-chat"), scalar=True, own=tokenizer(template=TEMPLATE))
    model_at(publish(tmp_path, "org/short"), max_position_embeddings=4)
    return tmp_path


def publish(folder: Path, name: str) -> Path:
    """Where the files of a model of the hub lie in the cache."""
    at = folder / "hub" / f"models--{name.replace('/', '--')}"
    (at / "refs").mkdir(parents=True)
    (at / "refs" / "main").write_text("0123456789abcdef")
    made = at / "snapshots" / "0123456789abcdef"
    made.mkdir(parents=True)
    return made


def write(folder: Path, *stages: str, model: str = "org/policy") -> Path:
    """A recipe whose stages begin in line 4."""
    (folder / "r.yaml").write_text(f"name: hub\nmodel: {model}\nstages:\n" + "".join(f"  {s}\n" for s in stages))
    return folder / "r.yaml"


def refused(folder: Path, *stages: str, model: str = "org/policy") -> str:
    """What a run says that is refused: the check alone passes, and neither of them writes anything."""
    file = write(folder, *stages, model=model)
    before = {p for p in folder.rglob("*") if "hub" not in p.relative_to(folder).parts}
    checked = CliRunner().invoke(app, ["check", str(file)])
    assert checked.exit_code == 0, checked.output
    assert "not yet verified: model org/" in checked.stdout
    done = CliRunner().invoke(app, ["run", str(file), "--output", str(folder / "out")])
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    assert {p for p in folder.rglob("*") if "hub" not in p.relative_to(folder).parts} == before
    return done.stderr.replace(f"{folder}/", "")


def run(folder: Path) -> list[Outcome]:
    quiet = RunConsole(Console(file=io.StringIO()), silent=True)
    return run_recipe(load_recipe(folder / "r.yaml"), folder / "out", console=quiet)


def test_a_vocabulary_of_the_hub_that_differs_is_refused_before_the_first_stage_works(folder: Path) -> None:
    said = refused(folder, IMITATE, f"rl: {RL}model: stage:one, reward: {{name: model, model: org/judge-words}}}}")
    assert said.startswith(
        "r.yaml:5: stage 'rl': 'org/judge-words' has another vocabulary than 'stage:one', whose tokens it reads\n"
        "    47 tokens, not 46; '~' is token 46, not there\n"
    )


def test_so_is_a_template(folder: Path) -> None:
    said = refused(folder, f"rl: {RL}reward: {{name: model, model: org/judge-chat}}}}")
    assert said.startswith("r.yaml:4: stage 'rl': 'org/judge-chat' has another chat template than 'base'")


@pytest.mark.parametrize(
    ("stage", "line"),
    [
        (
            "one: {algorithm: sft, model: org/judge, data: pairs.jsonl, max_steps: 1}",
            "r.yaml:4: stage 'one': 'org/judge' is a scalar model (one number per token), but a policy",
        ),
        (
            f"rl: {RL}reward: {{name: model, model: org/short}}}}",
            "r.yaml:4: stage 'rl': 'org/short' is a policy (a causal language model), but a scalar model",
        ),
    ],
)
def test_the_kind_is_read_from_the_configuration_on_the_hub(folder: Path, stage: str, line: str) -> None:
    assert refused(folder, stage).startswith(line)


def test_the_recipes_own_model_is_looked_at_likewise(folder: Path) -> None:
    said = refused(folder, IMITATE, model="org/judge")
    assert said.startswith("r.yaml:4: stage 'one': 'base' is a scalar model")


def test_rows_are_held_against_the_context_of_a_model_of_the_hub(folder: Path) -> None:
    # two letters and what the template writes around them are more than four tokens
    said = refused(folder, IMITATE, model="org/short")
    assert said.startswith("r.yaml:4: stage 'one': ")
    assert "the limit is 4" in said
    assert "pairs.jsonl" in said


def test_an_id_that_is_not_on_the_hub_is_told_with_its_line(folder: Path) -> None:
    assert refused(folder, IMITATE, model="org/nowhere").startswith(
        "r.yaml:2: no configuration of a model at org/nowhere"
    )
    said = refused(folder, f"rl: {RL}reward: {{name: model, model: org/nowhere}}}}")
    assert said.startswith("r.yaml:4: stage 'rl': no configuration of a model at org/nowhere")


def test_what_agrees_runs_and_a_finished_run_asks_the_hub_no_more(folder: Path) -> None:
    base = tiny_policy()
    save_model(base.module, letter_tokenizer(), publish(folder, "org/whole"))
    write(folder, IMITATE, model="org/whole")
    assert [o.fresh for o in run(folder)] == [True]
    shutil.rmtree(folder / "hub")
    assert [o.fresh for o in run(folder)] == [False]
    (folder / "out" / "one" / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"r\.yaml:2: no configuration of a model at org/whole"):
        run(folder)


def test_the_model_that_a_local_adapter_adapts_counts_as_not_yet_verified(folder: Path) -> None:
    (folder / "adapter").mkdir()
    about = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "org/short"}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(about))
    plan = check_recipe(load_recipe(write(folder, IMITATE, model="./adapter")))
    assert not_yet_verified(plan) == ["model org/short"]
    with pytest.raises(UserError, match="the limit is 4"):
        run(folder)
