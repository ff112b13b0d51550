"""The command line: exit codes, what goes to which stream, and that help is quick."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.strangers import Plugin
from tests.workshop import Workshop, write_base
from unified.cli import app
from unified.registry import Catalogue, using

RECIPE = "name: demo\nmodel: ./iron\nstages:\n  one: {mark: a, data: ore}\n  two: {mark: b, model: stage:one}\n"


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    write_base(tmp_path / "iron")
    (tmp_path / "r.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    made = Workshop()
    with using(made.catalogue()):
        yield made


def unified(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def test_help_imports_neither_torch_nor_transformers_nor_plugins() -> None:
    code = (
        "import sys\nfrom unified.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as e:\n    assert not e.code\n"
        "print([m for m in ('torch', 'transformers', 'pydantic', 'unified_plugins') if m in sys.modules])\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"
    for command in ("run", "check", "train", "status", "plan", "lineage", "list", "show", "coefficients"):
        assert f"  {command} " in out


def test_the_help_of_no_command_imports_torch() -> None:
    code = (
        "import sys\nimport typer.main\nfrom typer.testing import CliRunner\nfrom unified.cli import app\n"
        "group = typer.main.get_command(app)\n"
        "commands = [[n] for n in group.commands] + [['plugin', n] for n in group.commands['plugin'].commands]\n"
        "codes = {CliRunner().invoke(app, [*c, '--help']).exit_code for c in commands}\n"
        "print(len(commands), codes, [m for m in ('torch', 'transformers', 'unified_plugins') if m in sys.modules])\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    number, rest = out.split(" ", 1)
    assert int(number) > 20
    assert rest == "{0} []\n"


def test_help_takes_less_than_half_a_second() -> None:
    def seconds() -> float:
        begin = time.monotonic()
        subprocess.run([sys.executable, "-m", "unified", "--help"], capture_output=True, check=True)
        return time.monotonic() - begin

    assert min(seconds() for _ in range(5)) < 0.5  # the best of five: other work on the machine is not its fault


def test_python_m_unified_is_the_same_command() -> None:
    out = subprocess.run([sys.executable, "-m", "unified", "--help"], capture_output=True, text=True, check=True).stdout
    assert out.startswith("Usage: unified ")


def test_check_prints_a_line_a_stage_and_that_all_is_well(workshop: Workshop) -> None:
    result = unified("check", "r.yaml")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "one: train from base with data ore",
        "two: train from stage:one with no parts of its own",
        "recipe is fine",
    ]


def test_run_ends_with_a_table_and_where_the_last_model_is(workshop: Workshop, tmp_path: Path) -> None:
    result = unified("run", "r.yaml")
    assert result.exit_code == 0
    rows = [[c.strip() for c in line.split("│")[1:-1]] for line in result.stdout.splitlines() if line.startswith("│")]
    assert [row[:4] for row in rows] == [
        ["one", "train", "reward 0.750", "0.5000"],
        ["two", "train", "reward 0.750", "0.5000"],
    ]
    assert "The last model is in runs/demo/two/model" in result.stdout
    assert (tmp_path / "runs" / "demo" / "two" / "manifest.json").is_file()


def test_quiet_prints_the_table_alone(workshop: Workshop) -> None:
    result = unified("run", "r.yaml", "--quiet", "--output", "here")
    assert result.stdout.lstrip().startswith("┏")
    assert "The last model is in here/two/model" in result.stdout


def test_a_second_run_says_what_it_skips(workshop: Workshop) -> None:
    unified("run", "r.yaml")
    assert "one: done already, nothing that it depends on has changed" in unified("run", "r.yaml").stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "r.yml"], "there is no recipe r.yml\n    did you mean 'r.yaml'?\n"),
        (["run", "."], ". is a folder, not a recipe\n    recipes in it: bad.yaml, r.yaml\n"),
        (["check", "bad.yaml"], "bad.yaml:2: this is no YAML"),
        (["run", "r.yaml", "--set", "stages.one.mrak=1"], "--set stages.one.mrak: stage 'one': no setting 'mrak'"),
        (["run", "r.yaml", "--set", "nonsense"], "--set nonsense: write it as KEY=VALUE"),
        (["run", "r.yaml", "--profile", "mini"], "--profile mini: no profile 'mini'"),
        (["train", "aneal", "--model", "iron", "--data", "ore"], "no algorithm 'aneal'\n    did you mean 'anneal'?"),
        (["train", "anneal", "--model", "iorn/x", "--data", "oar"], "--data oar: stage 'anneal': no dataset 'oar'"),
        (["show", "aneal"], "no part 'aneal'\n    did you mean 'anneal'?"),
        (["list", "algoritms"], "no kind of part 'algoritms'\n    did you mean 'algorithms'?"),
        (
            ["coefficients", "anneal", "--batch", "nothing.json"],
            "nothing.json cannot be read: No such file or directory",
        ),
        (["coefficients", "anneal", "--batch", "bad.json"], "bad.json:2: this is no JSON"),
    ],
)
def test_a_mistake_ends_with_code_2_and_a_message_and_nothing_written(
    workshop: Workshop, tmp_path: Path, arguments: list[str], said: str
) -> None:
    (tmp_path / "bad.yaml").write_text("a: [1\nb: 2\n")
    (tmp_path / "bad.json").write_text('{"logp":\n oops}')
    before = sorted(tmp_path.rglob("*"))
    result = unified(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(said)
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before
    assert workshop.ran == []


def test_a_plugin_that_raises_ends_with_code_1_and_is_named(workshop: Workshop) -> None:
    def fail(stage: object) -> None:
        raise RuntimeError("cold")

    workshop.during = fail
    result = unified("run", "r.yaml")
    assert result.exit_code == 1
    assert result.stderr.startswith("stage 'one', after step 1: plugin workshop raised RuntimeError: cold")
    assert "Traceback" not in result.output


def test_ctrl_c_ends_with_code_130_and_one_line(workshop: Workshop) -> None:
    def stop(stage: object) -> None:
        raise KeyboardInterrupt

    workshop.during = stop
    result = unified("run", "r.yaml")
    assert (result.exit_code, result.stderr) == (130, "stopped in stage one; run the same command again to go on\n")


def test_train_runs_one_stage_without_a_file(workshop: Workshop, tmp_path: Path) -> None:
    result = unified(
        "train",
        "anneal",
        "--model",
        "./iron",
        "--data",
        "ore",
        "--set",
        "degrees=7",
        "--set",
        "mark=z",
        "--output",
        "t",
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "t" / "anneal" / "model" / "weights.safetensors").read_text() == "iron z"
    settings = json.loads((tmp_path / "t" / "anneal" / "manifest.json").read_text())["settings"]
    assert settings["algorithm"] == {"name": "anneal", "degrees": 7.0}


# --- coefficients: two answers of one prompt, rewards 1 and 0; the stranger's clipped ratio, whose credit is the reward
# minus the mean reward 1/2 ---


@pytest.fixture
def numbers(tmp_path: Path) -> Iterator[Path]:
    with using(Catalogue({"stranger": Plugin()}, installed=False)):
        yield tmp_path / "batch.json"


def coefficients(file: Path, algorithm: str, batch: dict[str, Any], *arguments: str) -> Any:
    file.write_text(json.dumps(batch))
    result = unified("coefficients", algorithm, "--batch", str(file), "--json", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


BATCH = {"logp": [[-1.0, -2.0], [-0.5, -1.5]], "loss_mask": [[1, 1], [1, 0]], "reward": [1.0, 0.0], "group": [0, 0]}


def test_coefficients_runs_credit_and_tells_what_it_filled_in(numbers: Path) -> None:
    found = coefficients(numbers, "clipped", BATCH)
    # ratio 1, advantage +-1/2; weights 1/answers x 1/length: 1/2 x 1/2 and 1/2 x 1
    assert found["heads"]["logp"]["coefficient"] == [[0.5, 0.5], [-0.5, 0.0]]
    assert found["heads"]["logp"]["weight"] == [0.25, 0.5]
    assert found["heads"]["logp"]["weighted"] == [[0.125, 0.125], [-0.25, 0.0]]
    assert found["loss"] is None  # this algorithm declares none
    assert found["notes"] == [
        "advantage from the credit of clipped",
        "old_logp is not given: taken to be logp, as on the first step",
    ]


def test_coefficients_uses_an_advantage_per_answer_and_old_log_probs_that_are_given(numbers: Path) -> None:
    # old = logp + ln 2 makes the ratio of the first answer 1/2; with an advantage above 0 it is not cut: 1/2 x 2
    old = [[-1.0 + 0.6931471805599453, -2.0 + 0.6931471805599453], [-0.5, -1.5]]
    found = coefficients(numbers, "clipped", {**BATCH, "old_logp": old, "advantage": [2.0, 0.0]})
    assert found["heads"]["logp"]["coefficient"][0] == pytest.approx([1.0, 1.0], abs=1e-12)
    assert found["notes"] == []


def test_coefficients_gives_the_published_loss_and_takes_the_normaliser_from_set(numbers: Path) -> None:
    # imitation, by token: 3 tokens, loss (1 + 2 + 0.5) / 3; by sequence-sum: each token 1/2, loss 3.5 / 2
    assert coefficients(numbers, "imitate", BATCH)["loss"] == pytest.approx(3.5 / 3)
    by_answer = coefficients(numbers, "imitate", BATCH, "--set", "aggregation=sequence-sum", "--set", "weight=2")
    assert by_answer["loss"] == pytest.approx(3.5)
    assert by_answer["heads"]["logp"]["weight"] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("algorithm", "batch", "sets", "said"),
    [
        ("prefer", BATCH, [], "the batch has no `ref_logp`, which algorithm 'prefer' reads"),
        (
            "clipped",
            {"logp": [[-1.0]]},
            [],
            "algorithm 'clipped' makes advantages from rewards: give `reward` or `advantage`",
        ),
        ("imitate", {"logp": [[-1.0], [-1.0, 2.0]]}, [], "the batch does not fit: 'logp' is no table of numbers"),
        (
            "imitate",
            {"logp": [[-1.0]], "loss_mask": [[1, 1]]},
            [],
            "the batch does not fit: logp is [1, 1] but loss_mask is [1, 2]",
        ),
        ("imitate", {"reward": [1.0]}, [], "the batch does not fit: give loss_mask"),
        ("imitate", BATCH, ["aggregation=constant"], "aggregation 'constant' of logp needs `constant_length`"),
        (
            "prefer",
            BATCH,
            ["strenght=2"],
            "--set strenght: no setting 'strenght' in algorithm 'prefer'\n    did you mean 'strength'?",
        ),
        ("prefer", BATCH, ["wieght=2"], "--set wieght: no setting 'wieght' in the term\n    did you mean 'weight'?"),
    ],
)
def test_coefficients_refuses_a_batch_or_setting_that_does_not_fit(
    numbers: Path, algorithm: str, batch: dict[str, Any], sets: list[str], said: str
) -> None:
    numbers.write_text(json.dumps(batch))
    options = [word for text in sets for word in ("--set", text)]
    result = unified("coefficients", algorithm, "--batch", str(numbers), *options)
    assert result.exit_code == 2
    assert result.stderr.startswith(said)


def test_coefficients_prints_a_page_with_dots_where_the_mask_is_off(numbers: Path) -> None:
    numbers.write_text(json.dumps(BATCH))
    lines = unified("coefficients", "imitate", "--batch", str(numbers)).stdout.splitlines()
    assert lines[0] == "algorithm imitate"
    assert lines[4].split() == ["answer", "1,", "prompt", "0:", "+1", "."]
    assert lines[-1] == "loss: 1.16667"
