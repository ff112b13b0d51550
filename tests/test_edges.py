"""Edges of a recipe: models that meet in a stage agree in vocabulary, chat template and architecture, or it says so.

The folders hold a configuration and a tokenizer and no weights: a check that loaded a model would fail.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from tests.tools import WORDS, letter_tokenizer, tiny_config
from unified import UserError, check_recipe, load_recipe
from unified.cli import app
from unified.drafts import draft_of
from unified.edges import chat_template_hash, shape_of, vocabulary_hash
from unified.plan import Place, estimates
from unified.plan_page import notes

TEMPLATE = "{% for m in messages %}{{ m['role'][0] + m['content'] + eos_token }}{% endfor %}{{ 'a' }}"
HEAD = "name: edges\nmodel: ./base\nstages:\n"
RULE = "reward: {name: contains, words: a}"
RL = "data: prompts.jsonl, source: {max_tokens: 4}, max_steps: 1"


def tokenizer(*, words: list[str] = WORDS, template: str | None = None) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    out = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    out.chat_template = template
    return out


def model_at(folder: Path, *, scalar: bool = False, kind: str = "llama", own: Any = None, **sizes: Any) -> None:
    """A model folder without weights."""
    config = tiny_config(kind)
    config.architectures = ["LlamaForSequenceClassification" if scalar else "LlamaForCausalLM"]
    for name, value in sizes.items():
        setattr(config, name, value)
    config.save_pretrained(folder)
    if own is not False:
        (own or tokenizer()).save_pretrained(folder)


def rows(folder: Path, *, chat: bool) -> None:
    """prompts.jsonl and pairs.jsonl: prompts, and preferences, as conversations or as text."""
    prompt: Any = [{"role": "user", "content": "ab"}] if chat else "ab"
    said = (lambda text: [{"role": "assistant", "content": text}]) if chat else (lambda text: text)
    several = [{"prompt": prompt}] * 20
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in several))
    pairs = [{"prompt": prompt, "chosen": said("c"), "rejected": said("d")}] * 20
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows(tmp_path, chat=True)
    model_at(tmp_path / "base")
    swapped = [*WORDS[:3], "b", "a", *WORDS[5:]]
    model_at(tmp_path / "swapped", own=tokenizer(words=swapped))
    model_at(tmp_path / "templated", own=tokenizer(template=TEMPLATE))
    model_at(tmp_path / "judge", scalar=True)
    model_at(tmp_path / "judge-swapped", scalar=True, own=tokenizer(words=swapped))
    model_at(tmp_path / "judge-templated", scalar=True, own=tokenizer(template=TEMPLATE))
    model_at(tmp_path / "judge-bare", scalar=True, own=False)
    model_at(tmp_path / "wide", hidden_size=64)
    model_at(tmp_path / "mistral", kind="mistral")
    return tmp_path


def said_of(folder: Path, *stages: str, head: str = HEAD) -> str:
    """What the check says of the stages, which begin in line 4; "" where it is content. It writes nothing."""
    (folder / "r.yaml").write_text(head + "".join(f"  {stage}\n" for stage in stages))
    before = sorted(folder.rglob("*"))
    try:
        check_recipe(load_recipe(folder / "r.yaml"))
    except UserError as error:
        return str(error).replace(f"{folder}/", "")
    finally:
        assert sorted(folder.rglob("*")) == before
    return ""


def grpo(judge: str, more: str = "") -> str:
    return f"rl: {{algorithm: grpo, reward: {{name: model, model: {judge}}}, {RL}{more}}}"


def dpo(more: str) -> str:
    return f"dpo: {{algorithm: dpo, data: pairs.jsonl, max_steps: 1, {more}}}"


def test_models_that_agree_meet(folder: Path) -> None:
    assert said_of(folder, grpo("./judge")) == ""
    assert said_of(folder, dpo("reference: ./wide")) == ""  # of another width: it only reads tokens


# --- vocabulary ---


def test_a_judge_with_another_vocabulary_is_refused_with_its_line_and_the_first_token_that_differs(
    folder: Path,
) -> None:
    assert said_of(folder, grpo("./judge-swapped")) == (
        "r.yaml:4: stage 'rl': './judge-swapped' has another vocabulary than 'base', whose tokens it reads\n"
        "    'a' is token 4, not token 3\n"
        "    if this is meant: `allow_mismatch: [vocabulary]` in stage 'rl'\n"
        "1 problem in r.yaml; nothing was run"
    )


@pytest.mark.parametrize(
    "stage",
    [
        dpo("reference: ./swapped"),
        "d: {algorithm: distill_forward, data: pairs.jsonl, max_steps: 1, teacher: ./swapped}",
        f"p: {{algorithm: ppo, reward: {{name: contains, words: a}}, critic: ./swapped, {RL}}}",
        f"p: {{algorithm: ppo, reward: {{name: contains, words: a}}, critic: ./judge-swapped, {RL}}}",
        "s: {kind: sample, data: prompts.jsonl, source: {max_tokens: 4}, reward: {name: model, model: judge-swapped}}",
        f"e: {{kind: evaluate, data: prompts.jsonl, {RULE}, reference: ./swapped, max_tokens: 4}}",
        "m: {kind: merge, models: [base, ./swapped]}",
    ],
)
def test_whoever_reads_the_tokens_of_the_stages_model_has_its_vocabulary(folder: Path, stage: str) -> None:
    said = said_of(folder, stage)
    assert said.startswith("r.yaml:4: stage ")
    assert "has another vocabulary than 'base'" in said


def test_a_policy_that_is_only_compared_with_keeps_its_own_vocabulary_unless_one_judge_reads_both(folder: Path) -> None:
    about = "kind: evaluate, data: prompts.jsonl, against: ./swapped, max_tokens: 4"
    assert said_of(folder, f"e: {{{about}, reward: {{name: contains, words: a}}}}") == ""
    said = said_of(folder, f"e: {{{about}, reward: {{name: model, model: ./judge}}}}")
    assert "'./swapped' has another vocabulary than 'base'" in said


def test_what_a_stage_makes_has_the_vocabulary_of_what_it_was_made_from(folder: Path) -> None:
    chain = (
        "start: {algorithm: sft, model: ./swapped, data: pairs.jsonl, max_steps: 1}",
        "more: {algorithm: sft, model: stage:start, data: pairs.jsonl, max_steps: 1}",
    )
    said = said_of(folder, *chain, dpo("reference: stage:more"))
    assert said.startswith("r.yaml:6: stage 'dpo': 'stage:more' has another vocabulary than 'base'")
    assert said_of(folder, *chain, dpo("model: ./swapped, reference: stage:more")) == ""


def test_a_judge_whose_vocabulary_cannot_be_known_is_refused_unless_the_recipe_answers_for_it(folder: Path) -> None:
    said = said_of(folder, grpo("./judge-bare"))
    assert said.startswith("r.yaml:4: stage 'rl': no tokenizer at judge-bare")
    assert said_of(folder, grpo("./judge-bare", ", allow_mismatch: [vocabulary, template]")) == ""


# --- template ---


def test_another_template_is_refused_where_rows_are_conversations_and_does_not_matter_for_text(folder: Path) -> None:
    said = said_of(folder, grpo("./judge-templated"))
    assert said.startswith(
        "r.yaml:4: stage 'rl': './judge-templated' has another chat template than 'base', whose tokens it reads\n"
        "    if this is meant: `allow_mismatch: [template]` in stage 'rl'"
    )
    rows(folder, chat=False)
    assert said_of(folder, grpo("./judge-templated")) == ""


def test_the_template_that_is_taken_where_there_is_none_is_the_same_written_out() -> None:
    from unified.render import PLAIN_TEMPLATE

    assert chat_template_hash(tokenizer()) == chat_template_hash(tokenizer(template=PLAIN_TEMPLATE))
    assert chat_template_hash(tokenizer()) != chat_template_hash(tokenizer(template=TEMPLATE))
    other_end = tokenizer()
    other_end.eos_token = "#"
    assert chat_template_hash(tokenizer()) != chat_template_hash(other_end)


def test_the_vocabulary_is_every_token_with_its_id_and_nothing_else() -> None:
    assert vocabulary_hash(tokenizer()) == vocabulary_hash(letter_tokenizer())
    assert vocabulary_hash(tokenizer()) == vocabulary_hash(tokenizer(template=TEMPLATE))
    assert vocabulary_hash(tokenizer()) != vocabulary_hash(tokenizer(words=[*WORDS, "~"]))


def test_rows_that_a_stage_has_sampled_are_read_with_the_template_that_they_were_sampled_with(folder: Path) -> None:
    draw = "draw: {kind: sample, model: ./templated, data: prompts.jsonl, source: {max_tokens: 4}, held_out: 0}"
    learn = "learn: {algorithm: sft, data: stage:draw, max_steps: 1"
    said = said_of(folder, draw, learn + "}")
    assert said.startswith(
        "r.yaml:5: stage 'learn': the answers of 'stage:draw' were sampled with another chat template than that of "
        "'base'\n    if this is meant: `allow_mismatch: [template]` in stage 'learn'"
    )
    assert said_of(folder, draw, learn + ", model: ./templated}") == ""
    assert said_of(folder, draw, learn + ", allow_mismatch: [template]}") == ""
    rows(folder, chat=False)
    assert said_of(folder, draw, learn + "}") == ""


# --- architecture ---


@pytest.mark.parametrize(
    ("other", "difference"), [("wide", "hidden_size is 64, not 32"), ("mistral", "model_type is mistral, not llama")]
)
def test_only_models_of_one_architecture_are_averaged_or_mixed(folder: Path, other: str, difference: str) -> None:
    said = said_of(folder, f"m: {{kind: merge, models: [base, ./{other}]}}")
    assert said.startswith(f"r.yaml:4: stage 'm': './{other}' has another architecture than 'base'\n    {difference}")
    assert "allow_mismatch" not in said  # weights of other shapes cannot be averaged, whatever the recipe says
    mixed = (
        f"reference: ./{other}, algorithm: {{name: grpo, kl_weight: 0.1}}, reward: {{name: contains, words: a}}, {RL}"
    )
    said = said_of(folder, f"rl: {{{mixed}, ref_sync_steps: 2, ref_mixup_alpha: 0.5}}")
    assert f"'./{other}' has another architecture than 'base'" in said
    assert said_of(folder, f"rl: {{{mixed}}}") == ""


def test_the_shape_has_the_same_names_for_every_architecture() -> None:
    sizes = [shape_of(tiny_config(kind)) for kind in ("llama", "gpt2")]
    assert [s["hidden_size"] for s in sizes] == [32, 32]
    assert [s["num_hidden_layers"] for s in sizes] == [2, 2]


# --- what the recipe allows ---


def test_the_recipe_allows_one_mismatch_and_not_the_other(folder: Path) -> None:
    words = [*WORDS, "~"]
    model_at(folder / "other", scalar=True, own=tokenizer(words=words, template=TEMPLATE))
    assert "another chat template" in said_of(folder, grpo("./other", ", allow_mismatch: [vocabulary]"))
    assert "another vocabulary" in said_of(folder, grpo("./other", ", allow_mismatch: [template]"))
    assert said_of(folder, grpo("./other", ", allow_mismatch: [vocabulary, template]")) == ""


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (
            "[vocabluary]",
            "r.yaml:4: stage 'rl': no mismatch that could be allowed 'vocabluary'\n    did you mean 'vocab",
        ),
        ("[architecture]", "no mismatch that could be allowed 'architecture'\n    known: template, vocabulary"),
        ("template", "'allow_mismatch' must be a list of names, not 'template'"),
    ],
)
def test_a_word_that_allows_nothing_is_refused(folder: Path, written: str, expected: str) -> None:
    assert expected in said_of(folder, grpo("./judge", f", allow_mismatch: {written}"))


def test_it_may_stand_under_the_defaults_of_any_kind_of_stage(folder: Path) -> None:
    head = "name: edges\nmodel: ./base\ndefaults: {allow_mismatch: [vocabulary]}\nstages:\n"
    stages = ("m: {kind: merge, models: [base, ./swapped]}", grpo("./judge-swapped"))
    assert said_of(folder, *stages, head=head) == ""


def test_what_is_allowed_is_told_by_check_and_plan_and_kept_in_the_manifest(folder: Path) -> None:
    (folder / "r.yaml").write_text(HEAD + "  " + grpo("./judge-swapped", ", allow_mismatch: [vocabulary]") + "\n")
    plan = check_recipe(load_recipe(folder / "r.yaml"))
    assert plan.stages[0].describe().endswith(", another vocabulary allowed")
    told = notes(estimates(plan.recipe, folder / "out"), Place())
    assert "rl: models and data with another vocabulary are allowed." in told
    with_it = draft_of(plan.recipe, plan.stages[0], {})
    assert with_it.settings["allow_mismatch"] == ["vocabulary"]
    (folder / "r.yaml").write_text(HEAD + "  " + grpo("./judge") + "\n")
    assert (
        "allow_mismatch"
        not in draft_of(plan.recipe, check_recipe(load_recipe(folder / "r.yaml")).stages[0], {}).settings
    )


def test_a_run_is_refused_with_the_line_before_anything_is_written(folder: Path) -> None:
    (folder / "r.yaml").write_text(HEAD + "  " + grpo("./judge-swapped") + "\n")
    before = sorted(folder.rglob("*"))
    done = CliRunner().invoke(app, ["run", str(folder / "r.yaml"), "--output", str(folder / "out")])
    assert done.exit_code == 2
    assert "r.yaml:4: stage 'rl': './judge-swapped' has another vocabulary" in done.stderr
    assert "Traceback" not in done.output
    assert sorted(folder.rglob("*")) == before


# --- kind, and order ---

SFT = "sft: {algorithm: sft, data: pairs.jsonl, max_steps: 1}"
RM = "rm: {algorithm: reward_model, data: pairs.jsonl, max_steps: 1}"
DRAW = "draw: {kind: sample, data: prompts.jsonl, source: {max_tokens: 4}, held_out: 0}"


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (
            [DRAW, "s: {algorithm: sft, model: stage:draw, data: pairs.jsonl}"],
            "'stage:draw' is a dataset, but a policy",
        ),
        (
            [SFT, "s: {algorithm: sft, data: stage:sft}"],
            "'stage:sft' is a policy (a causal language model), but a data",
        ),
        (
            [RM, "s: {algorithm: sft, model: stage:rm, data: pairs.jsonl}"],
            "'stage:rm' is a scalar model (one number per",
        ),
        ([SFT, grpo("stage:sft")], "'stage:sft' is a policy (a causal language model), but a scalar model"),
        ([SFT, grpo("./base")], "'./base' is a policy (a causal language model), but a scalar model"),
        ([RM, dpo("reference: stage:rm")], "'stage:rm' is a scalar model (one number per token), but a policy"),
        ([DRAW, grpo("stage:draw")], "'stage:draw' is a dataset, but a scalar model"),
        ([SFT, "s: {algorithm: sft, model: ./judge, data: pairs.jsonl}"], "'./judge' is a scalar model"),
        (
            [SFT, "s: {algorithm: sft, model: pairs.jsonl, data: pairs.jsonl}"],
            "pairs.jsonl is a file; a model is a folder",
        ),
        ([SFT, dpo("reference: stage:sff")], "no stage 'sff'\n    did you mean 'sft'?"),
    ],
)
def test_a_reference_to_the_wrong_kind_or_to_nothing_is_refused_with_its_line(
    folder: Path, stages: list[str], expected: str
) -> None:
    said = said_of(folder, *stages)
    name = stages[1].partition(":")[0]
    assert said.startswith(f"r.yaml:5: stage '{name}': {expected}")


def test_a_cycle_is_refused_at_every_stage_that_waits_for_a_later_one(folder: Path) -> None:
    stages = [
        f"{name}: {{algorithm: sft, model: stage:{other}, data: pairs.jsonl}}" for name, other in ("ab", "bc", "ca")
    ]
    assert said_of(folder, *stages) == (
        "r.yaml:4: stage 'a': stage 'b' comes later, so 'stage:b' is not there yet\n"
        "    no stage comes earlier; `base` is the recipe's model\n"
        "r.yaml:5: stage 'b': stage 'c' comes later, so 'stage:c' is not there yet\n"
        "    earlier stages: a\n"
        "2 problems in r.yaml; nothing was run"
    )
    assert "'stage:a' is this stage itself" in said_of(folder, stages[0].replace("stage:b", "stage:a"))
