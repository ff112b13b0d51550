"""generate, chat, evaluate, merge, export, and the same things from Python, on a run of two stages of a tiny model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

from tests.tools import chatty_model, tiny_policy, tiny_scalar
from unified import UserError, api, save_model
from unified.cli import app
from unified.export import fields_of
from unified.found_model import find_model
from unified.generate_tool import read_prompts

NEW = {
    "new": {
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 48,
    },
    "tokenizer": "random_walks",
}  # fmt: skip
WALKS = "{name: random_walks, view: prompts}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two training stages: the second goes on from the first."""
    folder = tmp_path_factory.mktemp("runs") / "two"
    stage = {"algorithm": "sft", "data": "random_walks", "learning_rate": 1e-3}
    measured = {"num_prompts": 4, "reward": "random_walks", "max_tokens": 4}
    stages = {
        "a": {**stage, "max_steps": 2, "evaluation": measured},
        "b": {**stage, "model": "stage:a", "max_steps": 1},
    }
    made = api.run({"name": "two", "model": NEW, "stages": stages}, output=folder)
    assert list(made) == ["a", "b"]
    return folder


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a chat template."""
    return chatty_model(tmp_path_factory.mktemp("chatty") / "model")


def unified(*arguments: str | Path, text: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], input=text, catch_exceptions=False)


# --- which model is meant ---


def test_a_run_is_its_last_model_a_stage_its_own_and_a_folder_itself(run: Path, chatty: Path) -> None:
    assert find_model(str(run)).path == run / "b" / "model"
    assert find_model(str(run / "a")).path == run / "a" / "model"
    found = find_model(str(run / "a" / "model"))
    assert (found.path, found.stage) == (run / "a" / "model", run / "a")
    assert (find_model(str(chatty)).path, find_model(str(chatty)).manifest) == (chatty, None)
    assert find_model("owner/name").path == "owner/name"  # a hub id, which nothing is asked of yet


def test_what_is_no_model_is_said_in_one_message_with_exit_code_2(tmp_path: Path, run: Path) -> None:
    for command in (["generate", "--prompt", "x"], ["chat"], ["evaluate", "--data", "x", "--perplexity"], ["export"]):
        more = [tmp_path / "out"] if command[0] == "export" else command[1:]
        result = unified(command[0], str(tmp_path / "nowhere"), *more)
        assert result.exit_code == 2
        assert "there is no folder" in result.stderr
        assert "Traceback" not in result.output
    (tmp_path / "run.json").write_text('{"stages": ["a"]}')
    with pytest.raises(UserError, match=r"no stage of .* has made a model yet"):
        find_model(str(tmp_path))


# --- generate ---


def test_the_same_seed_and_prompt_give_the_same_answers_whatever_is_asked_beside(run: Path) -> None:
    def answers(*prompts: str, seed: int = 0) -> list[list[str]]:
        asked = [part for prompt in prompts for part in ("--prompt", prompt)]
        out = unified("generate", run, *asked, "--n", "3", "--max-tokens", "6", "--seed", str(seed), "--json").stdout
        return [[a["text"] for a in json.loads(line)["answers"]] for line in out.splitlines()]

    alone, beside = answers("e"), answers("d", "e")
    assert beside[1] == alone[0]
    assert len(alone[0]) == 3
    assert answers("e", seed=1) != alone


def test_a_greedy_answer_is_the_likeliest_token_each_time(run: Path) -> None:
    (line,) = unified(
        "generate", run, "--prompt", "e", "--temperature", "0", "--max-tokens", "3", "--json"
    ).stdout.split("\n")[:-1]
    said = json.loads(line)
    folder = run / "b" / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(said["prompt"], return_tensors="pt").input_ids
    if tokenizer.bos_token_id is not None and ids[0, 0] != tokenizer.bos_token_id:
        ids = torch.cat([torch.tensor([[tokenizer.bos_token_id]]), ids], 1)
    begin = ids.shape[1]
    for _ in range(said["answers"][0]["tokens"]):
        ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert tokenizer.decode(ids[0, begin:], skip_special_tokens=True) == said["answers"][0]["text"]


def test_a_prompt_may_come_from_the_input_and_prompts_from_rows(run: Path, tmp_path: Path) -> None:
    given = unified("generate", run, "--prompt", "e", "--max-tokens", "6").stdout
    assert unified("generate", run, "--max-tokens", "6", text="e\n").stdout == given
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in ("e", "d", "f")))
    out = unified("generate", run, "--data", f"{{name: files, path: {rows}, held_out: 0}}", "--rows", "2",
                  "--max-tokens", "6", "--json").stdout  # fmt: skip
    said = [json.loads(line) for line in out.splitlines()]
    assert [(one["row"], one["prompt"]) for one in said] == [(0, "e"), (1, "d")]
    assert said[0]["answers"][0]["text"] == given.strip("\n")


def test_a_chat_template_is_used_where_there_is_one_unless_it_is_declined(chatty: Path) -> None:
    def prompt(*options: str) -> str:
        out = unified("generate", chatty, "--prompt", "hi", "--max-tokens", "2", "--json", *options).stdout
        return str(json.loads(out)["prompt"])

    assert prompt() == "u=hi#a="
    assert prompt("--system", "be kind") == "s=be kind#u=hi#a="
    assert prompt("--plain") == "hi"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--prompt", "e", "--data", "random_walks"], "give --prompt or --data, not both"),
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "e", "--max-tokens", "1000"], "the model holds 48"),
        (["--prompt", "e", "--system", "x"], "needs a chat template"),
        (["--data", "no_such_data"], "no_such_data"),
    ],
)
def test_what_cannot_be_answered_is_refused(options: list[str], said: str, run: Path) -> None:
    result = unified("generate", run, *options)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_scalar_model_answers_nothing(tmp_path: Path) -> None:
    scalar = tiny_scalar()
    save_model(scalar.module, scalar.tokenizer(), tmp_path / "model")
    result = unified("generate", tmp_path / "model", "--prompt", "a")
    assert result.exit_code == 2
    assert "a policy is needed" in result.stderr


def test_without_a_prompt_at_a_terminal_it_says_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", type("Terminal", (), {"isatty": lambda self: True})())
    with pytest.raises(UserError, match="there is no prompt"):
        read_prompts([])


# --- evaluate and merge ---


def test_evaluate_measures_what_the_stage_measures_and_leaves_a_manifest(run: Path, tmp_path: Path) -> None:
    options = ["--data", WALKS, "--reward", "random_walks", "--rows", "5", "--max-tokens", "4", "--samples", "2"]
    result = unified("evaluate", run, *options, "--set", "pass_at=[1]", "-o", tmp_path / "e", "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)["summary"]
    assert summary["eval/prompts"] == 5
    assert {"eval/reward", "eval/reward_se", "eval/length"} <= summary.keys()
    manifest = json.loads((tmp_path / "e" / "evaluate" / "manifest.json").read_text())
    assert manifest["settings"]["model"] == str(run / "b" / "model")
    assert manifest["summary"] == summary


def test_evaluate_without_anything_to_measure_and_with_an_unknown_reward_is_refused(run: Path, tmp_path: Path) -> None:
    nothing = unified("evaluate", run, "--data", WALKS, "-o", tmp_path / "e")
    assert nothing.exit_code == 2
    assert "there is nothing to measure" in nothing.stderr
    unknown = unified("evaluate", run, "--data", WALKS, "--reward", "random_wlaks", "-o", tmp_path / "e")
    assert unknown.exit_code == 2
    assert "did you mean 'random_walks'?" in unknown.stderr
    assert not (tmp_path / "e").exists()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder).state_dict())


def test_merge_is_the_weighted_mean_of_the_weights(run: Path, tmp_path: Path) -> None:
    result = unified("merge", run / "a", run, "--weights", "1,3", "-o", tmp_path / "soup")
    assert result.exit_code == 0, result.output
    a, b, made = (weights(f) for f in (run / "a" / "model", run / "b" / "model", tmp_path / "soup" / "merge" / "model"))
    assert any(not torch.equal(a[name], b[name]) for name in a)
    for name, tensor in made.items():
        torch.testing.assert_close(tensor, 0.25 * a[name] + 0.75 * b[name])


def test_merge_with_weights_that_do_not_fit_is_refused(run: Path, tmp_path: Path) -> None:
    for given, said in (("1,2,3", "2 models but 3 weights"), ("one,two", "these are no numbers")):
        result = unified("merge", run / "a", run, "--weights", given, "-o", tmp_path / "soup")
        assert result.exit_code == 2
        assert said in result.stderr


# --- export ---


def test_an_exported_model_is_the_same_function_and_others_load_it(run: Path, tmp_path: Path) -> None:
    result = unified("export", run, tmp_path / "out" / "walker", "--license", "mit")
    assert result.exit_code == 0, result.output
    folder = tmp_path / "out" / "walker"
    names = {p.name for p in folder.iterdir()}
    assert {"README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
    model, theirs = (AutoModelForCausalLM.from_pretrained(f) for f in (run / "b" / "model", folder))
    ids = AutoTokenizer.from_pretrained(folder)("e", return_tensors="pt").input_ids
    torch.testing.assert_close(theirs(ids).logits, model(ids).logits)


def test_the_card_tells_data_rewards_metrics_lineage_and_licences_and_no_folder_of_this_machine(
    run: Path, tmp_path: Path
) -> None:
    unified("export", run, tmp_path / "walker", "--license", "mit", "--data-license", "public domain")
    card = (tmp_path / "walker" / "README.md").read_text()
    assert fields_of(card) == {
        "library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["unified"], "license": "mit",
    }  # fmt: skip
    sections = {part.split("\n")[0]: part for part in card.split("\n## ")[1:]}
    assert list(sections) == ["How it was made", "Data", "Rewards", "Metrics", "Licence", "Use"]
    made = [line for line in sections["How it was made"].splitlines() if line.startswith("- **")]
    assert made == ["- **base**", "- **a**, train, from base", "- **b**, train, from stage:a"]  # the start first
    assert "- a: `{name: random_walks," in sections["Data"]
    assert "| a | reward | " in sections["Metrics"]
    assert "of the model: mit" in sections["Licence"]
    assert "of the data: public domain" in sections["Licence"]
    assert str(run) not in card
    assert str(tmp_path) not in card


def test_the_front_matter_of_a_card_says_what_a_program_reads_even_for_odd_names(chatty: Path, tmp_path: Path) -> None:
    result = unified("export", chatty, tmp_path / "x", "--license", "other: [really]", "--name", "A")
    assert result.exit_code == 0
    card = (tmp_path / "x" / "README.md").read_text()
    assert fields_of(card)["license"] == "other: [really]"
    assert "## How it was made\n\n- not stated" in card
    assert yaml.safe_load(card.split("---\n")[1]) == fields_of(card)


def test_weights_are_exported_in_the_type_that_is_asked_for(run: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    unified("export", run, tmp_path / "half", "--dtype", "bfloat16")
    assert {t.dtype for t in load_file(tmp_path / "half" / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"


def test_export_writes_over_nothing_and_refuses_a_type_that_is_none(run: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for options, said in ((["there"], "is there already"), (["new", "--dtype", "int3"], "--dtype is one of float32")):
        result = unified("export", run, tmp_path / options[0], *options[1:])
        assert result.exit_code == 2
        assert said in result.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "there"]
    assert list((tmp_path / "there").iterdir()) == []


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one stage that trained a LoRA adapter and left it as one."""
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("runs") / "tuned"
    stage = {"algorithm": "sft", "data": "random_walks", "learning_rate": 1e-2, "max_steps": 3, "adapter": {"r": 4}}
    api.run({"name": "tuned", "model": NEW, "stages": {"a": stage}}, output=folder)
    assert (folder / "a" / "model" / "adapter_config.json").is_file()
    return folder


def test_an_adapter_folder_is_asked_and_sampled_like_the_whole_model(tuned: Path, tmp_path: Path) -> None:
    assert unified("export", tuned, tmp_path / "whole").exit_code == 0
    asked = ["--prompt", "e", "--prompt", "k", "--n", "3", "--max-tokens", "6", "--json"]
    answers = []
    for model in (tuned / "a" / "model", tmp_path / "whole", tuned / "a" / "model-base"):
        result = unified("generate", model, *asked)
        assert result.exit_code == 0, result.output
        answers.append([[a["text"] for a in json.loads(line)["answers"]] for line in result.stdout.splitlines()])
    assert answers[0] == answers[1]
    assert answers[0] != answers[2], "what was learned has no part in the answers"
    said = unified("chat", tuned, "--max-tokens", "4", "--temperature", "0", text="hi\n")
    assert said.exit_code == 0
    of_whole = unified("chat", tmp_path / "whole", "--max-tokens", "4", "--temperature", "0", text="hi\n")
    assert said.stdout == of_whole.stdout


def test_a_sample_stage_asks_an_adapter_folder_like_the_whole_model(tuned: Path, tmp_path: Path) -> None:
    assert unified("export", tuned, tmp_path / "whole").exit_code == 0
    source = {"name": "rollouts", "group_size": 2, "max_tokens": 6}
    data = {"name": "random_walks", "view": "prompts"}
    stage = {"kind": "sample", "data": data, "num_prompts": 3, "held_out": 0, "source": source, "unfinished": "keep"}
    written = []
    for name, model in (("adapter", tuned / "a" / "model"), ("folded", tmp_path / "whole")):
        api.run({"name": name, "model": str(model), "stages": {"s": stage}}, output=tmp_path / name)
        rows = [json.loads(line) for line in (tmp_path / name / "s" / "data" / "train.jsonl").read_text().splitlines()]
        assert len(rows) == 3
        written.append(rows)
    assert written[0] == written[1]


def test_an_adapter_is_folded_into_the_model_that_it_adapts(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    policy = tiny_policy()
    save_model(policy.module, policy.tokenizer(), tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, task_type="CAUSAL_LM", init_lora_weights=False))
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    adapted.save_pretrained(tmp_path / "adapter")
    result = unified("export", tmp_path / "adapter", tmp_path / "whole")
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "whole" / "adapter_config.json").exists()
    ids = torch.arange(3, 9)[None]
    whole, plain = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("whole", "base"))
    torch.testing.assert_close(whole(ids).logits, adapted.eval()(ids).logits)
    assert not torch.allclose(whole(ids).logits, plain(ids).logits)


# --- the commands themselves ---


def commands() -> list[tuple[str, Any]]:
    import typer.main

    group: Any = typer.main.get_command(app)
    out = [(name, command) for name, command in group.commands.items() if name != "plugin"]
    return [*out, *((f"plugin {name}", c) for name, c in group.commands["plugin"].commands.items())]


def test_every_command_has_at_most_fifteen_options() -> None:
    counted = {name: sum(p.param_type_name == "option" for p in c.params) for name, c in commands()}
    assert len(counted) > 15
    assert {name: n for name, n in counted.items() if n > 15} == {}


@pytest.mark.parametrize("name", [name for name, _ in commands()])
def test_help_shows_an_example(name: str) -> None:
    shown = " ".join(unified(*name.split(), "--help").stdout.split())
    assert f"xample: unified {name}" in shown


def test_the_end_of_a_run_says_where_the_model_is_and_the_next_commands(tmp_path: Path) -> None:
    stage = {"algorithm": "sft", "data": "random_walks", "max_steps": 1}
    (tmp_path / "r.yaml").write_text(json.dumps({"name": "r", "model": NEW, "stages": {"only": stage}}))
    printed = " ".join(unified("run", tmp_path / "r.yaml", "--output", tmp_path / "out").stdout.split())
    model = tmp_path / "out" / "only" / "model"
    assert f"The last model is in {model}" in printed
    for command in ("train ALGORITHM --model {}", "chat {}", "export {} FOLDER"):
        assert f"unified {command.format(model)}" in printed
