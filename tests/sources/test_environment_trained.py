"""Two turns with a calculator in a real training stage, on a tiny model that was taught to call it."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.sources.games import Calculator
from tests.tools import gradient, relative, stage, step_gradient, table_of, train_settings
from unified import PromptGroup, StageContext, UserError
from unified.loop import train
from unified.models import Artifact
from unified.running import Run, heads_without_gradient
from unified.set_up import set_up
from unified.step import collected, count, weigh

END, START = "<|im_end|>", "<|im_start|>"
PIECES = ['{"name": "add", "arguments": {"a": ', ', "b": ', "}}", "<tool_call>", "</tool_call>"]
WORDS = ["<pad>", START, END, *PIECES, "user", "assistant", "tool", "add", "\n", "+", "=?", *"0123456789"]
TEMPLATE = (
    "{% for t in tools or [] %}{{ t.function.name + '\n' }}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SUMS = [(1, 2), (2, 3), (4, 4)]


@cache
def words() -> Any:
    """A tokenizer with a token for each piece of such a conversation."""
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<pad>"))
    pieces = "|".join(p.replace("{", r"\{").replace("}", r"\}").replace("+", r"\+") for p in WORDS[3:])
    made.pre_tokenizer = pre_tokenizers.Split(Regex(pieces.replace("?", r"\?")), "isolated")
    made.decoder = decoders.Fuse()
    made.add_special_tokens([AddedToken(w, special=True, normalized=False) for w in WORDS[:3]])
    out = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token=END)
    out.chat_template = TEMPLATE
    return out


def call(a: int, b: int) -> str:
    return f'<tool_call>{{"name": "add", "arguments": {{"a": {a}, "b": {b}}}}}</tool_call>'


def conversation(a: int, b: int, says: int) -> list[int]:
    """Both turns, as the template writes them."""
    turns = [("user", f"{a}+{b}=?"), ("assistant", call(a, b)), ("tool", str(a + b)), ("assistant", str(says))]
    text = "".join(f"{START}{role}\n{content}{END}\n" for role, content in turns)
    ids: list[int] = words()("add\n" + text).input_ids
    assert 0 not in ids  # every piece has a token
    return ids


@cache
def taught() -> dict[str, torch.Tensor]:
    """Weights that call the tool nearly always, and then say the sum or one more, half the time each."""
    torch.manual_seed(0)
    model = _model()
    rows = torch.tensor([conversation(a, b, a + b + wrong) for a, b in SUMS for wrong in (0, 1)])  # [6, length]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        logp = model(input_ids=rows).logits[:, :-1].log_softmax(-1)
        loss = -logp.gather(2, rows[:, 1:, None]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _model() -> Any:
    config = AutoConfig.for_model(
        "llama", vocab_size=len(WORDS), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=96, pad_token_id=0, eos_token_id=2,
        bos_token_id=None,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def policy() -> Artifact:
    model = _model()
    model.load_state_dict(taught())
    return Artifact("policy", module=model, own_tokenizer=words())


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def settings(folder: Path, **written: Any) -> Any:
    file = folder / "sums.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    asked = [{"prompt": [{"role": "user", "content": f"{a}+{b}=?"}], "answer": a + b} for a, b in SUMS]
    file.write_text("".join(json.dumps(one) + "\n" for one in asked))
    data = {"name": "files", "path": str(file), "held_out": 0}
    source = {"name": "environment", "environment": f"{Calculator.__module__}:Calculator", "group_size": 6,
              "max_turns": 2, "turn_tokens": 12, "max_tokens": 48, "cut_off_reward": 0.0}  # fmt: skip
    about = {"algorithm": "grpo", "data": data, "reward": "given", "source": source, "batch_size": 3}
    return train_settings(**{**about, "learning_rate": 1e-2, "max_steps": 2, **written})


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[PromptGroup]]:
    """A stage, and one batch of its episodes."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("environment")
    run = set_up(stage(folder, {"base": policy()}), settings(folder))
    groups = collected(run, run.streams[0], 3)
    assert sum(len(group.answers) for group in groups) == 18
    return run, groups


def by_hand(ids: list[int]) -> list[bool]:
    """True on what the assistant says, told by the markers of the template: up to and with the first end marker."""
    mask, on = [], True
    opening = words()(f"{START}assistant\n").input_ids
    for i, token in enumerate(ids):
        mask.append(on)
        if token == 2:
            on = False
        if ids[max(0, i - 2) : i + 1] == opening:
            on = True
    return mask


def test_episodes_have_two_turns_with_the_tools_result_between_them_and_rewards_that_differ(
    sampled: tuple[Run, list[PromptGroup]],
) -> None:
    _, groups = sampled
    whole = 0
    for group, (a, b) in zip(sorted(groups, key=lambda g: g.key), SUMS, strict=True):
        for answer in group.answers:
            assert answer.loss_mask == by_hand(answer.ids)
            said = answer.text[-1:]
            if answer.text == f"{call(a, b)}\ntool\n{a + b}\nassistant\n{said}" and said.isdigit():
                assert (
                    group.prompt + answer.ids == conversation(a, b, int(said))[:-1]
                )  # but for the line break at the end
                assert answer.reward == float(int(said) == a + b)
                whole += 1
    assert whole >= 9  # at least half of the 18 call the tool rightly, so that the test says something
    assert len({answer.reward for group in groups for answer in group.answers}) == 2


def test_the_coefficients_of_what_the_tool_wrote_are_exactly_zero_and_those_of_the_answer_are_not(
    sampled: tuple[Run, list[PromptGroup]],
) -> None:
    run, groups = sampled
    table = table_of(run, groups)
    rows = list(range(len(table.rows)))
    heads = heads_without_gradient(run, table, rows, {"policy": frozenset({"logp"})})["policy"]
    work = count(run, table, rows)
    pushes = weigh(run, work, rows, {"logp": heads["logp"]})["logp"]  # [18, time]
    mask = torch.zeros_like(pushes, dtype=torch.bool)
    for i, row in enumerate(table.rows):
        mask[i, : len(row.answer)] = torch.tensor(by_hand(row.answer))
    assert (~mask).any(1).sum() >= 9
    assert (pushes[~mask] == 0).all()
    varied = [len({a.reward for a in group.answers}) > 1 for group in groups]
    pushed = torch.tensor([on for on, group in zip(varied, groups, strict=True) for _ in group.answers])
    assert (pushes[pushed][mask[pushed]] != 0).all()
    assert pushed.any()


def test_the_gradient_is_that_of_the_same_rows_with_masks_made_by_hand(sampled: tuple[Run, list[PromptGroup]]) -> None:
    run, groups = sampled

    def masked(mask: Any) -> list[PromptGroup]:
        return [replace(g, answers=[replace(a, loss_mask=mask(a.ids)) for a in g.answers]) for g in groups]

    found = step_gradient(run, groups)
    assert found.norm() > 0
    assert torch.equal(found, step_gradient(run, masked(by_hand)))
    assert relative(step_gradient(run, masked(lambda ids: [True] * len(ids))), found) > 0.01
    run.optimizer.zero_grad(set_to_none=True)
    assert gradient(run).norm() == 0


def test_what_was_sampled_has_the_log_probs_that_the_trainer_gives_it_behind_the_tools_text(
    sampled: tuple[Run, list[PromptGroup]],
) -> None:
    run, groups = sampled
    table = table_of(run, groups)
    heads = heads_without_gradient(run, table, list(range(18)), {"policy": frozenset({"logp"})})["policy"]
    mask = table.batch.loss_mask
    assert mask.sum() > 100
    torch.testing.assert_close(table.batch.sampling_logp[mask], heads["logp"][mask], atol=1e-4, rtol=0)
    assert (table.batch.sampling_logp[~mask] == 0).all()


def test_what_an_environment_tells_of_its_episodes_is_logged_by_its_name_and_the_rows_own_numbers_are_not(
    sampled: tuple[Run, list[PromptGroup]],
) -> None:
    run, groups = sampled
    answers = [answer for group in groups for answer in group.answers]
    logged = run.streams[0].judge(groups)
    for name in ("turns", "tool_calls", "letters"):
        given = [answer.columns[name] for answer in answers if name in answer.columns]
        assert logged[name] == (sum(given), len(given))
    assert logged["turns"][1] == 18
    assert logged["letters"][0] > 0
    assert all("answer" in answer.columns for answer in answers)
    assert "answer" not in logged


class StoppedError(Exception):
    """Raised by a test in the middle of a run."""


def weights(run: Run) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in run.roles.models["policy"].parameters()])


def test_a_stage_of_two_steps_repeats_and_resumes_to_the_same_weights(tmp_path: Path) -> None:
    made = settings(tmp_path, save_steps=1)
    first, summary = train(stage(tmp_path / "a", {"base": policy()}), made)
    assert summary["steps"] == 2
    assert not torch.equal(weights(first), torch.cat([p.flatten() for p in policy().module.parameters()]))
    again, _ = train(stage(tmp_path / "b", {"base": policy()}), made)
    assert torch.equal(weights(first), weights(again))

    broken: StageContext = stage(tmp_path / "c", {"base": policy()})

    def stop(step: int, steps: int, metrics: Any) -> None:
        if step == 2:
            raise StoppedError

    broken.progress = stop
    with suppress(StoppedError):
        train(broken, made)
    assert (tmp_path / "c" / "checkpoint").exists()
    resumed, _ = train(stage(tmp_path / "c", {"base": policy()}), made)
    assert torch.equal(weights(first), weights(resumed))


def test_a_stage_goes_on_without_the_episodes_that_failed_and_stops_where_too_many_did(tmp_path: Path) -> None:
    source = {"name": "environment", "environment": "tests.sources.games:Faulty", "group_size": 6, "max_turns": 1,
              "turn_tokens": 12, "max_tokens": 48, "max_failed": 0.9}  # fmt: skip
    some = settings(tmp_path, source={**source, "arguments": {"how": "raises", "every": False}}, max_missing=0.9)
    _, summary = train(stage(tmp_path / "some", {"base": policy()}), some)
    assert summary["steps"] == 2
    assert 0 < summary["last/dropped/missing"] < 18
    all_ = settings(tmp_path, source={**source, "arguments": {"how": "raises"}})
    with pytest.raises(UserError, match=r"failed in 18 of 18 episodes, first in one of row \d: step 1 raised Zero"):
        train(stage(tmp_path / "all", {"base": policy()}), all_)
    few = settings(tmp_path, source={**source, "arguments": {"how": "raises", "every": False}}, max_missing=0.0)
    with pytest.raises(UserError, match="could not judge"):
        train(stage(tmp_path / "few", {"base": policy()}), few)
