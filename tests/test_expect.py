"""What a recipe expects of its results: read with the recipe, and compared with the numbers of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from unified import UserError, check_recipe, load_recipe
from unified.expect import Finding, check_expectations
from unified.manifest import Manifest, stage_folder

HEAD = (
    "name: a\nmodel: {new: {model_type: llama, hidden_size: 8, num_attention_heads: 1}, tokenizer: random_walks}\n"
    "defaults: {algorithm: sft, data: random_walks}\n"
)
SFT = {"eval/reward": 0.75, "eval/reward_std": 0.3, "eval/answers": 400}  # standard error 0.3 / 20 = 0.015
RL = {"eval/reward": 0.80, "eval/reward_std": 0.4, "eval/answers": 400}  # 0.4 / 20 = 0.02


def findings(folder: Path, expect: str, stages: str = "{sft: {}, rl: {}}", **measured: dict[str, Any]) -> list[Finding]:
    """What is found in a run whose stages have measured these numbers."""
    file = folder / "r.yaml"
    file.write_text(f"{HEAD}stages: {stages}\nexpect: {expect}\n")
    for name, summary in (measured or {"sft": SFT, "rl": RL}).items():
        home = stage_folder(folder, name.replace("__", "."))
        home.mkdir(parents=True, exist_ok=True)
        Manifest(name, "train", {}, "", 0, summary=summary).write(home)
    return check_expectations(load_recipe(file), folder)


def test_a_difference_of_exactly_two_standard_errors_is_the_limit(tmp_path: Path) -> None:
    # standard error of the difference: sqrt(0.015^2 + 0.02^2) = 0.025, so 0.05 is not more than two of them
    (tight,) = findings(tmp_path, "[{stage: rl, than: sft}]", sft=SFT, rl={**RL, "eval/reward": 0.7999})
    assert not tight.held
    (enough,) = findings(tmp_path, "[{stage: rl, than: sft}]", sft=SFT, rl={**RL, "eval/reward": 0.8001})
    assert enough.held
    assert "above sft 0.75 by 0.0501, more than 0.05 (standard error 0.025)" in enough.text()
    assert enough.text().startswith("expected, held: rl eval/reward 0.8001")


def test_the_standard_error_over_prompts_comes_before_that_over_answers(tmp_path: Path) -> None:
    # sqrt(0.03^2 + 0.04^2) = 0.05: a difference of 0.09 is less than 0.1
    ours = {"eval/reward": 0.84, "eval/reward_std": 0.1, "eval/reward_se": 0.03, "eval/prompts": 200}
    theirs = {"eval/reward": 0.75, "eval/reward_std": 0.1, "eval/reward_se": 0.04, "eval/prompts": 200}
    assert not findings(tmp_path, "[{stage: rl, than: sft}]", sft=theirs, rl=ours)[0].held


def test_a_margin_in_the_units_of_the_metric_never_falls_below_two_standard_errors(tmp_path: Path) -> None:
    better = {**RL, "eval/reward": 0.85}  # 0.1 above
    assert findings(tmp_path, "[{stage: rl, than: sft, margin: 0.09}]", sft=SFT, rl=better)[0].held
    assert not findings(tmp_path, "[{stage: rl, than: sft, margin: 0.11}]", sft=SFT, rl=better)[0].held
    near = {**RL, "eval/reward": 0.79}  # 0.04 above, with 2 standard errors of 0.05
    assert not findings(tmp_path, "[{stage: rl, than: sft, margin: 0.01}]", sft=SFT, rl=near)[0].held


def test_lower_turns_the_comparison_around(tmp_path: Path) -> None:
    worse = {**RL, "eval/reward": 0.6}
    assert findings(tmp_path, "[{stage: rl, than: sft, lower: true}]", sft=SFT, rl=worse)[0].held
    assert not findings(tmp_path, "[{stage: rl, than: sft}]", sft=SFT, rl=worse)[0].held


def test_bounds_need_no_other_stage(tmp_path: Path) -> None:
    found = findings(
        tmp_path,
        "[{stage: rl, at_least: 0.8}, {stage: rl, at_least: 0.81}, {stage: rl, metric: eval/answers, at_most: 399}]",
    )
    assert [f.held for f in found] == [True, False, False]


def test_too_few_answers_no_error_and_no_number_are_not_held_and_say_why(tmp_path: Path) -> None:
    few = {**RL, "eval/reward": 0.99, "eval/answers": 199}
    assert "measured on 199, 200 are needed" in findings(tmp_path, "[{stage: rl, than: sft}]", sft=SFT, rl=few)[0].words
    bare = {"eval/reward": 0.99}
    assert "no standard error" in findings(tmp_path, "[{stage: rl, than: sft}]", sft=SFT, rl=bare)[0].words
    missing = findings(tmp_path, "[{stage: rl, metric: eval/accuracy, at_least: 0}]")[0]
    assert not missing.held
    assert missing.words == "rl: eval/accuracy was not measured"


def test_the_name_of_a_stage_in_rounds_is_its_last_round_that_ran(tmp_path: Path) -> None:
    stages = "{sft: {}, loop: {repeat: 3, stages: {rl: {}}}}"
    ran = {"sft": SFT, "loop__1__rl": SFT, "loop__2__rl": {**RL, "eval/reward": 0.95}}
    found = findings(tmp_path, "[{stage: rl, than: loop.1.rl}]", stages, **ran)
    assert found[0].held
    assert "0.95, above loop.1.rl 0.75" in found[0].words


@pytest.mark.parametrize(
    ("expect", "expected"),
    [
        ("[{stage: rm, at_least: 1}]", "no stage 'rm'"),
        ("[{stage: rl, then: sft}]", "no setting 'then' in an expectation"),
        ("[{stage: rl}]", "give `than`, `at_least` or `at_most`"),
        ("{stage: rl}", "`expect` must be a list"),
        ("[rl]", "an expectation must be a mapping"),
    ],
)
def test_a_wrong_expectation_is_refused_by_the_check_with_its_line(tmp_path: Path, expect: str, expected: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(f"{HEAD}stages: {{sft: {{}}, rl: {{}}}}\nexpect: {expect}\n")
    with pytest.raises(UserError) as caught:
        check_recipe(load_recipe(file))
    assert expected in str(caught.value)
    assert f"{file}:5" in str(caught.value)
