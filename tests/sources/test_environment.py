"""Episodes of several turns: which tokens they consist of, who wrote them, what they are worth, what may go wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.sources import games
from tests.templates.families import FAMILIES, ends, tokenizer
from unified import Answer, Example, PromptGroup, Renderer, Sampling, UserError, call_named, catalogue
from unified.settings import parse

HERE = Path(__file__).parent
CALL = '<tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool_call>'
ASKED = [{"role": "user", "content": "ABC"}]


@dataclass
class Script:
    """In the place of a policy: says the given turns one after another (ids, or texts that end by themselves)."""

    tokenizer: Any
    turns: list[Any]
    asked: list[list[list[int]]] = field(default_factory=list)
    samplings: list[Sampling] = field(default_factory=list)

    def __call__(self, prompts: list[PromptGroup], n: int, sampling: Sampling) -> list[list[Answer]]:
        said = self.turns[len(self.asked)]
        self.asked.append([list(p.prompt) for p in prompts])
        self.samplings.append(sampling)
        whole = said if isinstance(said, list) else [*self.tokenizer(said).input_ids, self.tokenizer.eos_token_id]
        ids = whole[: sampling.max_tokens]
        finish: Any = "stop" if len(ids) == len(whole) else "length"
        logp = [-1.0 - t for t in range(len(ids))]
        return [[Answer(list(ids), self.decode(ids), None, None, list(logp), finish, version=3)] for _ in prompts]

    def decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


def settings(environment: str, **written: Any) -> Any:
    made, problems = parse(
        catalogue().get("source", "environment").settings,
        {"environment": f"tests.sources.games:{environment}", "group_size": 1, **written},
        owner="source",
    )
    assert not problems, problems
    return made


def play(environment: str, script: Script, *rows: PromptGroup, seed: int = 0, **written: Any) -> list[PromptGroup]:
    part = catalogue().get("source", "environment")
    about = {"settings": settings(environment, **written), "sample": script, "seed": seed, "folder": HERE}
    groups: list[PromptGroup] = call_named(part.collect, prompts=list(rows), **about)
    return groups


def row(name: str, prompt: Any = ASKED, **columns: Any) -> PromptGroup:
    """A prompt as a stage hands it to a source that samples."""
    return Renderer(tokenizer(name), 10**6, ends(name)).group(Example(prompt, columns=columns), row=5, reserve=1)


def turns_of(answer: Answer) -> list[list[int]]:
    """The runs of tokens in the loss mask."""
    out: list[list[int]] = []
    before = False
    for token, on in zip(answer.ids, answer.loss_mask or [True] * len(answer.ids), strict=True):
        if on:
            out += [] if before else [[]]
            out[-1].append(token)
        before = on
    return out


def conversation(name: str, answer: list[dict[str, Any]], **columns: Any) -> PromptGroup:
    """The same conversation as data, as the renderer writes it."""
    return Renderer(tokenizer(name), 10**6, ends(name)).group(Example(ASKED, [answer], columns=columns))


# --- tokens ---


#: its tokenizer has a token ": " across the end of the opening "ASSISTANT:", which is what a server samples behind
ACROSS = "vicuna"


@pytest.mark.parametrize("name", [n for n, family in FAMILIES.items() if not family.rewrites and n != ACROSS])
def test_the_ids_and_the_mask_of_an_episode_are_those_of_the_whole_conversation_as_the_template_writes_it(
    name: str,
) -> None:
    said = [{"role": "assistant", "content": "abc"}, {"role": "user", "content": "NO"}]
    wanted = conversation(name, [*said, *said, {"role": "assistant", "content": "cba"}])
    turns = turns_of(wanted.answers[0])
    assert len(turns) == 3
    script = Script(tokenizer(name), turns)
    (found,) = play("Echo", script, row(name), arguments={"turns": 3, "reward": 0.5})
    answer = found.answers[0]
    assert found.prompt + answer.ids == wanted.prompt + wanted.answers[0].ids
    assert answer.loss_mask == wanted.answers[0].loss_mask
    # each turn was asked for behind exactly what stands before it
    starts = [len(found.prompt) + i for i in starts_of(answer)]
    assert [asked[0] for asked in script.asked] == [(found.prompt + answer.ids)[:start] for start in starts]
    assert answer.sampling_logp is not None
    apart = [-1.0 - t for turn in turns for t in range(len(turn))]
    assert [x for x, on in zip(answer.sampling_logp, answer.loss_mask, strict=True) if on] == apart
    assert {x for x, on in zip(answer.sampling_logp, answer.loss_mask, strict=True) if not on} == {0.0}
    assert (answer.reward, answer.finish, answer.version, answer.columns["turns"]) == (1.5, "stop", 3, 3)


def starts_of(answer: Answer) -> list[int]:
    """Where the runs of tokens in the loss mask begin."""
    mask = [False, *(answer.loss_mask or [])]
    return [i for i in range(len(mask) - 1) if mask[i + 1] and not mask[i]]


def test_where_a_token_would_reach_over_the_opening_of_a_turn_the_text_is_the_templates_all_the_same() -> None:
    said = [{"role": "assistant", "content": "abc"}, {"role": "user", "content": "NO"}]
    wanted = conversation(ACROSS, [*said, {"role": "assistant", "content": "cba"}])
    script = Script(tokenizer(ACROSS), ["abc", "cba"])  # whose text begins with a space
    (found,) = play("Echo", script, row(ACROSS), arguments={"turns": 2, "reward": 1})
    read = [tokenizer(ACROSS).decode(g.prompt + g.answers[0].ids) for g in (found, wanted)]
    assert read[0] == read[1]


def test_a_tool_is_shown_called_and_its_result_read_and_none_of_that_text_carries_a_gradient() -> None:
    script = Script(tokenizer("qwen-2.5"), [CALL, "so 5"])
    (found,) = play("Calculator", script, row("qwen-2.5", answer=5))
    schema = found_schema(found.text)
    tool = {"role": "tool", "name": "add", "content": "5"}
    said = [{"role": "assistant", "content": CALL}, tool, {"role": "assistant", "content": "so 5"}]
    wanted = conversation("qwen-2.5", said, tools=[schema])
    answer = found.answers[0]
    assert found.prompt + answer.ids == wanted.prompt + wanted.answers[0].ids
    assert answer.loss_mask == wanted.answers[0].loss_mask
    decode = tokenizer("qwen-2.5").decode
    assert [decode(turn) for turn in turns_of(answer)] == [f"{CALL}<|im_end|>", "so 5<|im_end|>"]
    theirs = decode([i for i, on in zip(answer.ids, answer.loss_mask or [], strict=True) if not on])
    assert theirs == "\n<|im_start|>user\n<tool_response>\n5\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    assert answer.reward == 1.0
    about = {"answer": 5, "turns": 2, "tool_calls": 1, "failed_calls": 0, "failed": 0, "letters": 4}
    assert answer.columns == about
    assert found.columns == {"answer": 5}


def found_schema(text: str) -> dict[str, Any]:
    """The schema of `add`, as its signature and docstring say it; the prompt must show it."""
    number = {"type": "integer"}
    properties = {"a": {**number, "description": "the first"}, "b": {**number, "description": "the second"}}
    about = {"type": "object", "properties": properties, "required": ["a", "b"]}
    schema = {"name": "add", "description": "Add two numbers.", "parameters": about}
    if "return" in text:
        schema["return"] = number
    assert '"description": "the second"' in text
    return {"type": "function", "function": schema}


def test_behind_a_prompt_of_text_stands_what_the_environment_says_as_it_is() -> None:
    name = "tulu"
    script = Script(tokenizer(name), ["abc", "cba"])
    (found,) = play("Echo", script, row(name, "ABC: "), arguments={"turns": 2, "reward": 1, "say": "NO, AB\n"})
    encode, eos = tokenizer(name), tokenizer(name).eos_token_id
    parts = [[*encode("abc").input_ids, eos], encode("NO, AB\n").input_ids, [*encode("cba").input_ids, eos]]
    assert found.answers[0].ids == [i for part in parts for i in part]
    assert turns_of(found.answers[0]) == [parts[0], parts[2]]


def test_an_end_token_that_is_not_the_templates_is_kept_and_the_templates_is_written_behind_it() -> None:
    # it was sampled, so it stays; the end of the turn that the template knows was not, and stands outside the mask
    name = "phi-3"  # its template ends a turn by <|end|>, and its tokenizer an answer by <|endoftext|>
    script = Script(tokenizer(name), ["abc", "cba"])
    (found,) = play("Echo", script, row(name), arguments={"turns": 2, "reward": 1})
    text = tokenizer(name).decode(found.answers[0].ids)
    assert "".join(text.split()) == "abc<|endoftext|><|end|><|user|>NO<|end|><|assistant|>cba<|endoftext|>"
    first, _ = turns_of(found.answers[0])
    assert tokenizer(name).decode(first) == "abc<|endoftext|>"


@pytest.mark.parametrize(("name", "what"), [("qwen-3", "leaves out or changes earlier reasoning"),
                                            ("deepseek-r1", "rewrites its past")])  # fmt: skip
def test_a_template_that_rewrites_its_past_is_refused_unless_the_past_is_to_be_kept(name: str, what: str) -> None:
    with pytest.raises(UserError, match=what):
        play("Echo", Script(tokenizer(name), ["abc", "cba"]), row(name), arguments={"turns": 2})
    reasoned = "<think>\nab\n</think>\n\nabc"
    script = Script(tokenizer(name), [reasoned, "cba"])
    (found,) = play("Echo", script, row(name), past="keep", arguments={"turns": 2, "reward": 1})
    assert tokenizer(name).decode(turns_of(found.answers[0])[0]).startswith(reasoned)


def test_what_an_environment_tells_one_episode_alone_stands_before_its_first_turn_outside_the_mask() -> None:
    games.Secret.told.clear()
    name = "chatml"
    script = Script(tokenizer(name), ["abc"])
    (found,) = play("Secret", script, row(name), group_size=4)
    seeds = {seed for _, seed in games.Secret.told}
    assert [prompt for prompt, _ in games.Secret.told] == [ASKED] * 4
    assert len(seeds) == 4  # each episode has one of its own
    letters = set()
    for asked, answer in zip(script.asked[0], found.answers, strict=True):
        assert found.prompt + answer.ids[: len(asked) - len(found.prompt)] == asked
        assert tokenizer(name).decode(turns_of(answer)[0]) == "abc<|im_end|>"
        assert sum(answer.loss_mask or []) == len(answer.ids) - (len(asked) - len(found.prompt))
        text = tokenizer(name).decode(asked)
        letters.add(text.removesuffix("<|im_end|>\n<|im_start|>assistant\n")[-1])
        assert answer.text == "abc"
    assert letters == {"ABCDEFGHIJ"[seed % 10] for seed in seeds}
    again = play("Secret", Script(tokenizer(name), ["abc"]), row(name), group_size=4)
    assert again == [found]
    assert play("Secret", Script(tokenizer(name), ["abc"]), row(name), group_size=4, seed=1) != [found]


# --- limits and rewards ---


def one(environment: str, turns: list[Any], **written: Any) -> Answer:
    (found,) = play(environment, Script(tokenizer("chatml"), turns), row("chatml"), **written)
    return found.answers[0]


def test_the_rewards_of_the_turns_are_added_up_or_stand_at_the_last_token_of_each() -> None:
    about = {"turns": 2, "reward": 0.25}
    assert one("Echo", ["abc", "cba"], arguments=about).reward == 0.5
    answer = one("Echo", ["abc", "cba"], arguments=about, rewards="turn")
    assert isinstance(answer.reward, list)
    ends_ = [i for i, token in enumerate(answer.ids) if token == tokenizer("chatml").eos_token_id]
    at = [i for i, number in enumerate(answer.reward) if number]
    assert at == [ends_[0], ends_[2]]  # the middle one ends what the environment said
    assert [answer.reward[i] for i in at] == [0.25, 0.25]
    assert all(answer.loss_mask[i] for i in at)  # type: ignore[index]


def test_an_episode_over_its_turns_ends_with_the_last_one_and_is_cut_off() -> None:
    answer = one("Echo", ["abc", "cba"], max_turns=2, arguments={"reward": 1.0})
    assert (answer.finish, answer.reward, answer.columns["turns"]) == ("length", 2.0, 2)
    assert answer.loss_mask is not None
    assert answer.loss_mask[-1]  # nothing of the environment stands behind the last turn


def test_a_turn_that_is_cut_off_is_judged_and_ends_the_episode() -> None:
    answer = one("Echo", ["abcabcabc"], turn_tokens=2, arguments={"reward": 0.5})
    assert (len(answer.ids), answer.finish, answer.reward, answer.columns["turns"]) == (2, "length", 0.5, 1)


def test_no_answer_is_longer_than_max_tokens_and_one_without_room_for_a_turn_ends() -> None:
    whole = one("Echo", ["abc", "cba", "abc"], arguments={"turns": 3, "reward": 1.0})
    seen = set()
    for limit in range(1, len(whole.ids) + 1):
        script = Script(tokenizer("chatml"), ["abc", "cba", "abc"])
        (found,) = play("Echo", script, row("chatml"), max_tokens=limit, arguments={"turns": 3, "reward": 1.0})
        answer = found.answers[0]
        assert len(answer.ids) <= limit
        assert answer.ids == whole.ids[: len(answer.ids)]
        assert answer.finish == ("stop" if limit == len(whole.ids) else "length")
        seen.add(answer.columns["turns"])
    assert seen == {1, 2, 3}


def test_what_the_tools_add_to_the_prompt_counts_as_the_answers_so_that_the_models_context_holds_it() -> None:
    prompt = row("qwen-2.5", answer=5)
    (found,) = play("Calculator", Script(tokenizer("qwen-2.5"), [CALL, "5"]), prompt, max_tokens=600)
    assert len(found.prompt + found.answers[0].ids) <= len(prompt.prompt) + 600
    assert found.answers[0].finish == "stop"
    with pytest.raises(UserError, match=r"max_tokens \(5\) leaves no room for a turn"):
        play("Calculator", Script(tokenizer("qwen-2.5"), [CALL, "5"]), prompt, max_tokens=5)


def test_an_episode_without_a_reward_is_missing_and_one_that_was_cut_off_may_be_given_one() -> None:
    assert one("Echo", ["abc"], arguments={"turns": 1}).reward is None
    assert one("Echo", ["abc"], max_turns=1).reward is None
    assert one("Echo", ["abc"], max_turns=1, cut_off_reward=-1.0).reward == -1.0
    assert one("Echo", ["abc"], arguments={"turns": 1}, cut_off_reward=-1.0).reward is None  # it was not cut off


def test_a_turn_that_a_stop_text_ended_is_ended_by_the_template() -> None:
    name = "chatml"
    (found,) = play("Echo", Script(tokenizer(name), [tokenizer(name)("abc\n").input_ids, "cba"]), row(name),
                    arguments={"turns": 2, "reward": 1}, stop=["\n"])  # fmt: skip
    text = tokenizer(name).decode(found.answers[0].ids)
    assert text == "abc\n<|im_end|>\n<|im_start|>user\nNO<|im_end|>\n<|im_start|>assistant\ncba<|im_end|>"
