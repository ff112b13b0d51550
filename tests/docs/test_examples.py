"""The examples in docs/ do what they say of themselves, on numbers worked by hand; and they run together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.docs.snippets import ROOT
from unified import Answer, Catalogue, PromptGroup, examine
from unified.cli import app

AtPage = Callable[[Path], Catalogue]
PLUGINS, RULES, README = ROOT / "docs" / "plugins.md", ROOT / "docs" / "rules.md", ROOT / "README.md"


def test_imitate_good_pushes_answers_from_the_threshold_on_and_no_others(at_page: AtPage) -> None:
    at_page(README)
    batch = {"logp": [[-1.0, -2.0]] * 3, "reward": [0.4, 0.5, 1.0], "group": [0, 0, 0]}
    shown = examine("imitate_good", batch, ["threshold=0.5"])
    assert shown.coefficient["logp"].tolist() == [[0, 0], [1, 1], [1, 1]]
    # w counts all three answers, also the one that is not pushed: each weighs 1 / 3, each of its two tokens 1 / 6
    assert shown.weight["logp"].tolist() == pytest.approx([1 / 6] * 3)
    assert shown.loss == pytest.approx(2 * 3.0 / 6)


def test_the_coefficient_of_imitate_good_is_minus_the_derivative_of_its_loss(at_page: AtPage) -> None:
    plugin = at_page(README).manager.get_plugin("imitate_good")
    shown = examine("imitate_good", {"logp": [[-1.0, -2.0]] * 2, "reward": [0.0, 1.0]})
    logp = shown.batch.logp.clone().requires_grad_()
    plugin.loss(shown.batch.plus(logp=logp), shown.term.settings).sum().backward()
    torch.testing.assert_close(shown.coefficient["logp"], -logp.grad)


def test_simpo_pushes_by_the_length_of_the_answer(at_page: AtPage) -> None:
    at_page(PLUGINS)
    # means -1 and -1, gap = -gamma = 0: GC = +-beta sigmoid(0) / length = +-2 * 0.5 / (2, 1)
    batch = {"logp": [[-0.5, -1.5], [-1.0, 0.0]], "loss_mask": [[1, 1], [1, 0]], "reward": [1, 0], "group": [0, 0]}
    shown = examine("my_simpo", batch, ["gamma=0"])
    torch.testing.assert_close(shown.coefficient["logp"], torch.tensor([[0.5, 0.5], [-1.0, 0.0]]).double())
    assert shown.loss == pytest.approx(0.6931471805599453)  # ln 2


def test_squeeze_has_slope_a_at_the_start_and_less_away_from_it(at_page: AtPage) -> None:
    at_page(RULES)
    batch = {"logp": [[-1.0, -1.0]], "old_logp": [[-1.0, -1.2]], "advantage": [3.0]}
    shown = examine("grpo", batch, ["ratio=squeeze", "kl_weight=0"])
    # d/dx A width tanh(x / width) = A / cosh(x / width)^2: 3 at 0; at x = width 3 / cosh(1)^2 = 3 * 0.41997
    assert shown.coefficient["logp"][0].tolist() == pytest.approx([3.0, 3 * 0.4199743], abs=1e-6)


def test_a_reward_that_cannot_judge_gives_none(at_page: AtPage) -> None:
    judge = at_page(PLUGINS).get("reward", "says_wanted").judge
    answers = [Answer([1], " a "), Answer([2], "b")]
    groups = [PromptGroup([1], answers, columns={"wanted": "a"}), PromptGroup([1], answers)]
    assert judge(groups) == [[1.0, 0.0], [None, None]]


def test_a_format_gives_one_answer_an_attempt_and_names_what_does_not_fit(at_page: AtPage) -> None:
    convert = at_page(PLUGINS).get("format", "attempts").convert
    example = convert({"task": "2+3=", "attempts": ["5", "6"], "passed": [True, False]})
    assert (example.answers, example.rewards) == (["5", "6"], [1.0, 0.0])
    with pytest.raises(ValueError, match="1 attempts but 0 verdicts"):
        convert({"task": "", "attempts": ["5"], "passed": []})


def test_the_recipe_of_plugins_md_runs_with_all_its_parts_and_they_are_told_of_it(at_page: AtPage) -> None:
    at_page(PLUGINS)
    torch.set_num_threads(1)
    result = CliRunner().invoke(app, ["run", "parts.yaml", "--output", "out", "--quiet"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert Path("out/rows/rows.txt").read_text() == "14\n"  # two thirds of 21 letters
    diary = Path("diary.txt").read_text().splitlines()
    assert [line for line in diary if line.endswith("begins: train")] == [
        f"{s} begins: train" for s in ("sft", "prefer", "grpo")
    ]
    # a batch of 16 prompts (two of the 14 rows stand twice in it), for each 7 samples and the answer of the row
    assert "grpo 0: 128 answers" in diary
    assert "grpo 0: loss None" not in diary
    assert Path("out/grpo/model/config.json").exists()
