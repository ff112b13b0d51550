"""`unified chat`: turns behind one another, answers that appear as they are drawn, Ctrl-C that ends one of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.tools import chatty_model
from unified import Answer, Sampling, UserError
from unified.chat_tool import HELP, Growing, converse
from unified.cli import app
from unified.found_model import find_model
from unified.generate_tool import Speaker


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a chat template."""
    return chatty_model(tmp_path_factory.mktemp("chatty") / "model")


def unified(*arguments: str | Path, text: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], input=text, catch_exceptions=False)


class Echo:
    """In the place of a Speaker: says which turns it was shown; the answer to `stop` is interrupted.

    The answer to `grow` is told token by token, each the number of a letter, and interrupted after the third. The
    answers to `cut` are of two tokens, and cut off there.
    """

    class tokenizer:  # noqa: N801
        @staticmethod
        def decode(ids: list[int], **_: Any) -> str:
            return bytes(ids).decode(errors="replace")

    def rendered(self, turns: Sequence[Mapping[str, Any]]) -> Any:
        return [dict(turn) for turn in turns]

    def answer(self, prompts: Sequence[Any], sampling: Sampling, told: Any) -> list[list[Answer]]:
        (turns,) = prompts
        if turns[-1]["content"] == "grow":
            for letter in b"abc":
                told(0, 0, letter)
            raise KeyboardInterrupt
        if turns[-1]["content"] == "stop":
            raise KeyboardInterrupt
        if turns[-1]["content"] == "long":
            raise UserError("the prompt has too many tokens")
        if turns[-1]["content"] == "cut":
            return [[Answer([1, 2], "so", finish="length")]]
        return [[Answer([1], " ".join(f"{t['role'][0]}:{t['content']}" for t in turns))]]


def talk(*lines: str, system: str | None = None) -> list[str]:
    said: list[str] = []
    converse(Echo(), iter(lines), said.append, Sampling(), system)  # type: ignore[arg-type]
    return "".join(said).splitlines()


def test_each_turn_is_answered_behind_all_that_was_said_before() -> None:
    assert talk("a", "b") == ["u:a", "u:a a:u:a u:b"]
    assert talk("a", system="x") == ["s:x u:a"]


def test_reset_forgets_all_but_the_system_message_and_quit_ends() -> None:
    assert talk("a", "/reset", "b", "/quit", "c", system="x") == [
        "s:x u:a", "(the conversation begins anew)", "s:x u:b",
    ]  # fmt: skip


def test_an_answer_that_is_stopped_or_impossible_takes_the_turn_back() -> None:
    assert talk("stop", "a")[1:] == ["u:a"]
    refused, _, answered = talk("long", "a")
    assert refused.startswith("(the prompt has too many tokens")
    assert answered == "u:a"


def test_an_answer_appears_as_it_is_drawn_and_ctrl_c_ends_it_but_not_the_conversation() -> None:
    said: list[str] = []
    converse(Echo(), iter(["grow", "b"]), said.append, Sampling())  # type: ignore[arg-type]
    assert said[:4] == ["a", "b", "c", "\n(stopped; what there is of the answer stays)\n"]
    assert "".join(said[4:]) == "u:grow a:abc u:b\n"  # what there was of it is part of the conversation


def test_bytes_that_are_no_whole_character_yet_wait_and_nothing_is_shown_twice() -> None:
    said: list[str] = []
    growing = Growing(Echo.tokenizer, said.append)
    for byte in "aé".encode():
        growing.take(0, 0, byte)
    assert said == ["a", "é"]
    growing.end("aé!")
    assert said == ["a", "é", "!", "\n"]


def test_an_answer_that_reads_otherwise_as_a_whole_is_shown_again() -> None:
    said: list[str] = []
    growing = Growing(Echo.tokenizer, said.append)
    growing.take(0, 0, ord("a"))
    growing.end("b")
    assert "".join(said) == "a\nb\n"


def test_an_answer_that_is_cut_off_says_so_in_one_line_with_what_cut_it() -> None:
    def cut(most: int) -> list[str]:
        said: list[str] = []
        converse(Echo(), iter(["cut", "b"]), said.append, Sampling(max_tokens=most))  # type: ignore[arg-type]
        return "".join(said).splitlines()

    assert cut(2) == ["so", "(cut off after 2 tokens: --max-tokens)", "u:cut a:so u:b"]  # it is no part of the answer
    full = "(cut off after 2 tokens: the model holds no more; /reset forgets the conversation)"
    assert cut(256) == ["so", full, "u:cut a:so u:b"]


def test_an_unknown_command_says_which_there_are_and_is_not_sent() -> None:
    assert talk("/what", "a") == [f"({HELP})", "u:a"]


def test_ctrl_c_between_answers_and_the_end_of_the_input_end_the_conversation() -> None:
    def lines() -> Iterator[str]:
        yield "a"
        raise KeyboardInterrupt

    said: list[str] = []
    assert converse(Echo(), lines(), said.append, Sampling()) == 1  # type: ignore[arg-type]
    assert said == ["u:a", "\n"]
    assert talk() == []


def test_a_conversation_through_a_pipe_is_that_of_the_model(chatty: Path) -> None:
    piped = unified("chat", chatty, "--max-tokens", "3", "--seed", "5", text="hi\nyou\n/quit\n")
    assert piped.exit_code == 0
    speaker, turns, wanted, cut = Speaker(find_model(str(chatty)).artifact(), seed=5), [], [], 0
    for line in ("hi", "you"):
        turns.append({"role": "user", "content": line})
        ((answer,),) = speaker.answer([speaker.rendered(turns)], Sampling(max_tokens=3))
        turns.append({"role": "assistant", "content": answer.text})
        wanted.append(answer.text)
        cut += answer.finish == "length"
    assert piped.stdout == "".join(f"{text}\n" for text in wanted)
    assert piped.stderr.count("(cut off after 3 tokens: --max-tokens)\n") == cut > 0


def test_without_a_length_an_answer_ends_where_the_model_is_full_whatever_is_asked_beside(chatty: Path) -> None:
    artifact, most = find_model(str(chatty)).artifact(), Sampling(max_tokens=10_000)
    speaker = Speaker(artifact, seed=5, fit=True)
    limit = speaker.renderer.max_length
    prompts = [speaker.rendered(text) for text in ("a b a b a b", "a")]
    together = [answers[0].ids for answers in speaker.answer(prompts, most)]
    alone = [Speaker(artifact, seed=5, fit=True).answer([prompt], most)[0][0].ids for prompt in prompts]
    assert together == alone
    assert all(len(prompt.prompt) + len(ids) <= limit for prompt, ids in zip(prompts, together, strict=True))
    with pytest.raises(UserError, match="the answer may have 10000, but the model holds"):
        Speaker(artifact, seed=5).answer(prompts, most)
    with pytest.raises(UserError, match=f"tokens, but the model holds {limit}"):
        speaker.answer([speaker.rendered("a " * limit)], most)
