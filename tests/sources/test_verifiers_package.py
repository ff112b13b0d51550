"""Environments of the package `verifiers` at play. Needs it; test_verifiers_installed.py installs it and runs this."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.docs.snippets import Snippet
from tests.sources.test_environment import ASKED, CALL, Script, conversation, found_schema, row, turns_of
from tests.sources.test_environment_trained import by_hand, call, policy
from tests.sources.test_environment_trained import conversation as as_written
from tests.sources.test_verifiers import shown
from tests.templates.families import tokenizer
from tests.tools import stage, table_of, train_settings
from unified import Answer, PromptGroup, UserError, call_named, catalogue, load_recipe
from unified.check import check_recipe
from unified.loop import train
from unified.running import heads_without_gradient
from unified.set_up import set_up
from unified.settings import parse
from unified.step import collected, count, weigh
from unified_plugins.sources._environment_calls import calls_in
from unified_plugins.sources._verifiers_package import load

pytest.importorskip("verifiers")

HERE = Path(__file__).parent


def settings(name: str, kind: str = "source", **written: Any) -> Any:
    about = {"group_size": 1} if kind == "source" else {}
    part = catalogue().get(kind, "verifiers")
    made, problems = parse(part.settings, {"environment": name, **about, **written}, owner=kind)
    assert not problems, problems
    return made


def play(name: str, script: Any, *rows: PromptGroup, **written: Any) -> list[PromptGroup]:
    part = catalogue().get("source", "verifiers")
    made = settings(f"word_games.py:{name}", **written)
    given = {"prompts": list(rows), "settings": made, "sample": script, "seed": 0, "folder": HERE}
    groups: list[PromptGroup] = call_named(part.collect, **given)
    return groups


def one(name: str, turns: list[Any], family: str = "chatml", **written: Any) -> tuple[PromptGroup, Answer]:
    (found,) = play(name, Script(tokenizer(family), turns), row(family, answer="c"), **written)
    return found, found.answers[0]


# --- tokens and rewards ---


def test_a_tool_is_shown_called_and_read_and_nothing_but_what_was_sampled_carries_a_gradient() -> None:
    family = "qwen-2.5"
    script = Script(tokenizer(family), [CALL, "so 5"])
    (found,) = play("sums", script, row(family, answer="5"))
    schema = found_schema(found.text)
    schema["function"].pop("return", None)  # the package's schemas do not tell what a tool gives
    tool = {"role": "tool", "name": "add", "content": "5"}
    said = [{"role": "assistant", "content": CALL}, tool, {"role": "assistant", "content": "so 5"}]
    answer, wanted = found.answers[0], conversation(family, said, tools=[schema])
    assert tokenizer(family).decode(answer.ids) == tokenizer(family).decode(wanted.answers[0].ids)
    assert answer.ids == wanted.answers[0].ids
    assert answer.loss_mask == wanted.answers[0].loss_mask
    assert [tokenizer(family).decode(t) for t in turns_of(answer)] == [f"{CALL}<|im_end|>", "so 5<|im_end|>"]
    assert answer.sampling_logp is not None
    assert {x for x, on in zip(answer.sampling_logp, answer.loss_mask or [], strict=True) if not on} == {0.0}
    assert answer.reward == 1.5  # right, and half for having called
    about = {"turns": 2, "tool_calls": 1, "failed_calls": 0, "failed": 0, "failed_measures": 0}
    parts = {"right": 1, "called": 1, "num_turns": 2, "total_tool_calls": 1, "add_calls": 1}
    assert answer.columns == {**about, **parts}


def test_what_a_tool_gives_is_told_with_the_name_of_the_tool_and_an_episode_is_over_when_we_say_so() -> None:
    from unified_plugins.sources._verifiers_rollout import Rollout

    game = Rollout(load("sums", "word_games.py", {}, HERE), {})
    assert game.reset(ASKED, {"answer": "5"}) == []
    assert game.opening is None
    (made,) = calls_in(CALL, "hermes", {})
    given = game.step(f"so: {CALL}", [made], "stop")
    assert given == {"observation": [{"role": "tool", "content": "5", "name": "add"}]}
    game.finish()
    assert [m.content for m in game.state["completion"]] == ["so: "]  # nothing was said behind it
    assert (game.state["is_completed"], game.state["is_truncated"], game.state["error"]) == (True, True, None)


def test_a_call_that_cannot_be_read_stays_text_and_ends_a_tool_environment_as_on_a_server() -> None:
    _, answer = one("sums", ["<tool_call>nonsense</tool_call> c"], "qwen-2.5")
    assert (answer.columns["failed_calls"], answer.columns["total_tool_calls"], answer.columns["turns"]) == (1, 0, 1)
    assert (answer.reward, answer.finish) == (1.0, "stop")


def test_turns_with_a_user_stand_in_one_answer_as_the_template_writes_them() -> None:
    said = [{"role": "assistant", "content": "abc"}, {"role": "user", "content": "NO"}]
    wanted = conversation("chatml", [*said, *said, {"role": "assistant", "content": "cba"}])
    found, answer = one("echo", ["abc", "abc", "cba"], arguments={"turns": 3})
    assert found.prompt + answer.ids == wanted.prompt + wanted.answers[0].ids
    assert answer.loss_mask == wanted.answers[0].loss_mask
    assert (answer.reward, answer.finish, found.reasons) == (3.0, "stop", [])


@pytest.mark.parametrize("limit", [{"max_turns": 2}, {"max_tokens": 60}, {"turn_tokens": 2}])
def test_an_episode_that_a_limit_cuts_off_is_judged_by_the_rubric(limit: dict[str, int]) -> None:
    found, answer = one("echo", ["abc"] * 9, **limit)
    assert answer.reward == answer.columns["turns"] == answer.columns["num_turns"] > 0
    assert (answer.finish, found.reasons) == ("length", [])


def test_an_environment_that_begins_with_another_prompt_than_the_rows_is_followed() -> None:
    found, answer = one("echo", ["abc"], arguments={"how": "begins elsewhere", "turns": 1})
    assert found.prompt == row("chatml", [{"role": "user", "content": "CBA"}]).prompt
    assert (answer.text, answer.reward) == ("abc", 1.0)


def test_functions_of_all_answers_to_a_prompt_see_them_together_and_those_of_another_prompt_apart() -> None:
    class Growing(Script):
        """Each answer is one letter longer than the one before it."""

        def __call__(self, prompts: Any, n: int, sampling: Any) -> Any:
            given = super().__call__(prompts, n, sampling)
            return [[replace(a, text="a" * (1 + i)) for a in answers] for i, answers in enumerate(given)]

    rows = [replace(row("chatml"), key=k, draw=k) for k in range(2)]
    groups = play("ranked", Growing(tokenizer("chatml"), ["abc"]), *rows, group_size=3)
    assert [[a.reward for a in g.answers] for g in groups] == [[0, 1, 2], [0, 1, 2]]
    assert [a.columns["rank"] for a in groups[1].answers] == [0, 1, 2]


# --- what goes wrong ---


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raises", "step 1 raised LookupError: no board"),
        ("forgets", "step 1 raised ValueError: the environment changed what was said before"),
        ("image", "step 1 raised ValueError: a message holds more than text"),
        ("speaks", "step 1 gave a message of the role `assistant`"),
        ("no setup", "reset raised InfraError: no sandbox"),
        ("late", "step 1 took longer than 2 s"),
    ],
)
def test_an_environment_that_goes_wrong_is_named_and_its_answer_missing(how: str, said: str) -> None:
    limits = {"timeout_s": 2} if how == "late" else {}
    found, answer = one("echo", ["abc", "abc"], arguments={"how": how}, max_failed=1.0, **limits)
    assert found.reasons[0].startswith(said)
    assert (answer.reward, answer.failed, any(answer.loss_mask or [])) == (None, True, False)
    with pytest.raises(UserError, match=r"environment 'echo' failed in 1 of 1 episodes, first in one of row 5: "):
        one("echo", ["abc", "abc"], arguments={"how": how}, max_failed=0.5, **limits)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("raises", "raised IndexError: list index out of range"),
        ("none", "gave None"),
        ("nan", "gave nan"),
        ("text", "gave 'much', which is no number"),
    ],
)
def test_a_reward_that_raises_or_is_no_number_is_missing_with_its_reason_and_never_zero(how: str, why: str) -> None:
    found, answer = one("judged", ["xa"], arguments={"how": how})
    assert (answer.reward, answer.failed) == (None, False)
    assert found.reasons == [f"rubric: strict {why}"]
    assert "strict" not in answer.columns
    found, answer = one("judged", ["ba"], arguments={"how": how})
    assert (answer.reward, found.reasons, answer.columns["strict"]) == (2.25, [], 2)
    found, answer = one("judged", ["xa"], arguments={"how": how, "weight": 0.0})
    assert (answer.reward, found.reasons) == (0.25, [])  # a measure alone is left out, and counted
    assert "strict" not in answer.columns
    assert answer.columns["failed_measures"] == 1


def test_a_function_of_a_group_that_fails_leaves_all_its_answers_missing() -> None:
    (found,) = play("ranked", Script(tokenizer("chatml"), ["abc"]), row("chatml"), group_size=2, arguments={"wrong": 1})
    assert [a.reward for a in found.answers] == [None, None]
    assert found.reasons == ["rubric: rank raised ValueError: gave 1 numbers for 2 rollouts"] * 2


def test_what_cannot_be_made_is_said_and_the_signals_stay_whose_they_are() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    one("single", ["c"])
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    with pytest.raises(UserError, match="environment 'nothing' is int, no environment of verifiers"):
        one("nothing", ["c"])
    with pytest.raises(UserError, match=r"environment 'judged' cannot be made: TypeError: .*'how'"):
        one("judged", ["c"])


# --- rows ---


def rows_of(name: str, split: str, **written: Any) -> Any:
    about = {"split": split, "seed": 0, "folder": HERE}
    return call_named(
        catalogue().get("dataset", "verifiers").open, settings=settings(name, "dataset", **written), **about
    )


def test_the_rows_of_an_environment_have_its_system_prompt_and_its_columns() -> None:
    first, *others = rows_of("word_games.py:single", "train")
    asked = [{"role": "system", "content": "BA"}, *ASKED]
    assert first.prompt == asked
    about = {"question": "ABC", "answer": "c", "info": {"level": 0}, "example_id": 0}
    assert first.columns == about
    assert len(others) == 4  # all are trained on, where there are others to evaluate on
    assert len(rows_of("word_games.py:single", "held_out")) == 2


def test_an_installed_environment_is_found_by_its_name_and_its_rows_are_split() -> None:
    about = {"held_out": 1, "arguments": {"pairs": [[1, 1], [1, 2], [2, 2]]}}
    sums = [rows_of("word-games", split, **about) for split in ("train", "held_out")]
    asked = [{example.prompt[0]["content"] for example in side} for side in sums]
    assert asked[0] | asked[1] == {"1+1=?", "1+2=?", "2+2=?"}
    assert [len(side) for side in asked] == [2, 1]
    assert len(rows_of("word-games", "train", held_out=0, limit=2)) == 2


def test_each_row_of_a_group_of_environments_is_played_and_judged_by_its_own() -> None:
    games = {
        example.columns["info"]["env_id"]: example for example in rows_of("word_games.py:group", "train", held_out=0)
    }
    reward, reasons = {}, {}
    for name, example in games.items():
        asked = row("chatml", example.prompt, **{"answer": "c", "info": example.columns["info"]})
        (found,) = play("group", Script(tokenizer("chatml"), ["xa", "xa"]), asked, arguments={})
        reward[name], reasons[name] = found.answers[0].reward, found.reasons
    assert reward == {"judged": None, "echo": 2.0}
    assert reasons["judged"] == ["rubric: strict raised IndexError: list index out of range"]


# --- a real run ---


def written(**more: Any) -> Any:
    about = {"environment": f"{HERE / 'word_games.py'}:sums"}
    source = {"name": "verifiers", **about, "group_size": 6, "turn_tokens": 12, "max_tokens": 48}
    data = {"name": "verifiers", **about, "held_out": 0}
    made = {"algorithm": "grpo", "data": data, "reward": "given", "source": source, "batch_size": 3}
    return train_settings(**{**made, "learning_rate": 1e-4, "max_steps": 3, **more})


def test_grpo_pushes_what_the_policy_said_and_nothing_that_the_tool_wrote(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    run = set_up(stage(tmp_path, {"base": policy()}), written())
    groups = collected(run, run.streams[0], 3)
    whole = 0
    for group in groups:
        a, b = (int(letter) for letter in group.text if letter.isdigit())
        for answer in group.answers:
            assert answer.loss_mask == by_hand(answer.ids)
            last = answer.text[-1:]
            if answer.text == f"{call(a, b)}\ntool\n{a + b}\nassistant\n{last}" and last.isdigit():
                assert group.prompt + answer.ids == as_written(a, b, int(last))[:-1]
                assert answer.reward == 0.5 + float(int(last) == a + b)
                whole += 1
    assert whole >= 9  # of 18: most call the tool, so that this says something
    table = table_of(run, groups)
    rows = list(range(len(table.rows)))
    heads = heads_without_gradient(run, table, rows, {"policy": frozenset({"logp"})})["policy"]
    pushes = weigh(run, count(run, table, rows), rows, {"logp": heads["logp"]})["logp"]  # [18, time]
    mask = torch.zeros_like(pushes, dtype=torch.bool)
    for i, one_row in enumerate(table.rows):
        mask[i, : len(one_row.answer)] = torch.tensor(by_hand(one_row.answer))
    assert (pushes[~mask] == 0).all()
    credited = torch.tensor([len({a.reward for a in g.answers}) > 1 for g in groups for _ in g.answers])
    advantage = table.batch.advantage
    moved = credited & (advantage if advantage.dim() == 1 else advantage.abs().amax(1)).ne(0)
    assert moved.any()
    assert (pushes[moved][mask[moved]] != 0).all()
    torch.testing.assert_close(table.batch.sampling_logp[mask], heads["logp"][mask], atol=1e-4, rtol=0)


def test_a_run_of_three_steps_logs_the_parts_of_the_rubric_by_name_and_repeats(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    logged: list[dict[str, float]] = []
    context = stage(tmp_path / "a", {"base": policy()})
    context.progress = lambda step, steps, metrics: logged.append(dict(metrics))
    first, summary = train(context, written())
    assert summary["steps"] == len(logged) == 3
    for metrics in logged:
        parts = {name: metrics[f"reward/{name}"] for name in ("right", "called", "num_turns", "add_calls")}
        assert 0 <= parts["right"] <= 1 < parts["num_turns"] <= 2
        assert 0.5 < parts["called"] <= 1
        assert metrics["reward"] == pytest.approx(parts["right"] + 0.5 * parts["called"], abs=1e-5)
        assert metrics["reward/failed"] == 0
    again, _ = train(stage(tmp_path / "b", {"base": policy()}), written())
    weights = [torch.cat([p.detach().flatten() for p in r.roles.models["policy"].parameters()]) for r in (first, again)]
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], torch.cat([p.flatten() for p in policy().module.parameters()]))


# --- the docs ---


def test_the_recipe_of_the_docs_passes_the_check_and_its_environment_gives_the_rewards_that_it_says(
    tmp_path: Path,
) -> None:
    program, block = shown()
    (tmp_path / "sums.py").write_text(program.text)
    recipe = Snippet(block.page, block.line, "yaml", "stage", block.text).recipe
    (tmp_path / "as-shown.yaml").write_text(recipe)
    assert check_recipe(load_recipe(tmp_path / "as-shown.yaml")).stages
    source = catalogue().get("source", "verifiers")
    made = settings("sums.py:load_environment", arguments={"highest": 4})
    found = call_named(
        catalogue().get("dataset", "verifiers").open,
        settings=settings("sums.py:load_environment", "dataset", arguments={"highest": 4}, held_out=0),
        split="train", seed=0, folder=tmp_path,
    )  # fmt: skip
    example = next(e for e in found if e.columns["answer"] == "5")
    family = "qwen-2.5"
    for said, reward in (("so 5", 1.0), ("so 6", 0.0)):
        asked = row(family, example.prompt, **example.columns)
        script = Script(tokenizer(family), [CALL, said])
        about = {"prompts": [asked], "settings": made, "sample": script, "seed": 0, "folder": tmp_path}
        (group,) = call_named(source.collect, **about)
        assert (group.answers[0].reward, group.answers[0].columns["add_calls"]) == (reward, 1)
