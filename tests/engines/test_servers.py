"""Engines on servers: tokens and log-probs as the trainer has them, and no answer of other weights than the pushed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engines.peer import Starts, _logp, serving
from tests.tools import tiny_policy
from unified import Answer, Artifact, LostEngine, NewWeights, Sampling, UserError, call_named, catalogue, save_model

PROMPTS = [[5, 6, 7], [8, 9], [3, 4, 5, 6]]
PROBE = tuple(range(3, 19))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starts]:
    """Starts servers that hold the weights of seed 0."""
    save_model(tiny_policy().module, tiny_policy().own_tokenizer, tmp_path / "base")
    with serving(tmp_path / "base") as begin:
        yield begin


def weights_on(folder: Path, made: Artifact, seed: int) -> NewWeights:
    """A model as it is pushed."""
    save_model(made.module, made.own_tokenizer, folder / f"v{seed}")
    digest = hashlib.sha256(str(folder / f"v{seed}").encode()).hexdigest()
    return NewWeights(folder / f"v{seed}", seed, digest, False, PROBE, tuple(_logp(made.module.eval(), list(PROBE))))


def weights_of(folder: Path, seed: int) -> tuple[Artifact, NewWeights]:
    """A model that is not what the servers start with (unless it is of seed 0), and as what it is pushed."""
    made = tiny_policy(seed=seed)
    return made, weights_on(folder, made, seed)


def settings_of(name: str, *urls: str, **written: Any) -> Any:
    more = {"update_path": "/update_weights_from_disk"} if name == "openai" else {"model": "policy"}
    return catalogue().get("engine", name).settings(urls=list(urls), **{**more, **written})


def push(name: str, weights: NewWeights, settings: Any) -> Any:
    return call_named(catalogue().get("engine", name).push, weights=weights, settings=settings)


def sample(
    name: str, made: Any, receipt: Any, settings: Any, *, n: int = 2, seed: int = 0, **how: Any
) -> list[list[Answer]]:
    seeds = [[1000 * seed + 10 * i + k for k in range(n)] for i in range(len(PROMPTS))]
    return call_named(  # type: ignore[no-any-return]
        catalogue().get("engine", name).generate, model=made.module, tokenizer=made.own_tokenizer, prompts=PROMPTS, n=n,
        sampling=Sampling(**{"max_tokens": 6, **how}), settings=settings, seeds=seeds, receipt=receipt,
    )  # fmt: skip


def worst(made: Any, answers: list[list[Answer]], temperature: float = 1.0, top_k: int = 0) -> float:
    """The largest distance of a reported log-prob from one plain forward of the trainer's model."""
    found = 0.0
    for prompt, own in zip(PROMPTS, answers, strict=True):
        for answer in own:
            with torch.no_grad():
                scores = made.module.eval()(torch.tensor([[*prompt, *answer.ids]])).logits[0, len(prompt) - 1 : -1]
            scores = scores / temperature
            if top_k:
                scores = torch.where(scores >= scores.topk(top_k).values[:, -1:], scores, -torch.inf)
            read = scores.log_softmax(-1)[torch.arange(len(answer.ids)), torch.tensor(answer.ids)]
            found = max(found, float((read - torch.tensor(answer.sampling_logp)).abs().max()))
    return found


@pytest.mark.parametrize("name", ["vllm", "openai"])
def test_after_a_push_answers_are_of_the_pushed_weights_with_their_log_probs_and_version(
    name: str, start: Starts, tmp_path: Path
) -> None:
    peer = start()
    settings = settings_of(name, peer.url)
    for seed in (3, 4):
        made, weights = weights_of(tmp_path, seed)
        receipt = push(name, weights, settings)
        assert receipt["metrics"]["mismatch"] < 1e-5
        answers = sample(name, made, receipt, settings, n=3)
        assert [len(own) for own in answers] == [3, 3, 3]
        assert worst(made, answers) < 1e-5
        assert {a.version for own in answers for a in own} == {seed}
        assert all(0 < len(a.ids) <= 6 and a.text for own in answers for a in own)
        ended = [a for own in answers for a in own if a.ids[-1] == made.own_tokenizer.eos_token_id]
        assert all((a.finish == "stop") == (a in ended) for own in answers for a in own)
    assert worst(weights_of(tmp_path, 3)[0], answers) > 1e-2  # the weights before would show


@pytest.mark.parametrize("name", ["vllm", "openai"])
def test_log_probs_are_of_the_distribution_sampled_from(name: str, start: Starts, tmp_path: Path) -> None:
    settings = settings_of(name, start().url)
    made, weights = weights_of(tmp_path, 3)
    receipt = push(name, weights, settings)
    assert worst(made, sample(name, made, receipt, settings, temperature=0.5, top_k=4), 0.5, 4) < 1e-5
    (first, second), *_ = sample(name, made, receipt, settings, temperature=0.0)
    assert first.ids == second.ids
    assert first.sampling_logp == [0.0] * len(first.ids)


def test_an_answer_follows_from_its_seed_and_stop_texts_end_it(start: Starts, tmp_path: Path) -> None:
    settings = settings_of("vllm", start().url)
    made, weights = weights_of(tmp_path, 3)
    receipt = push("vllm", weights, settings)
    once, again = (sample("vllm", made, receipt, settings) for _ in range(2))
    assert [[a.ids for a in own] for own in once] == [[a.ids for a in own] for own in again]
    other = sample("vllm", made, receipt, settings, seed=1)
    assert [[a.ids for a in own] for own in once] != [[a.ids for a in own] for own in other]
    letters = "".join(made.own_tokenizer.decode(a.ids[:1]) for own in once for a in own)
    for answer in (a for own in sample("vllm", made, receipt, settings, stop=tuple(letters)) for a in own):
        assert (answer.finish, len(answer.ids)) == (
            "stop",
            1,
        )  # the first token is a stop text, and the answer keeps it


@pytest.mark.parametrize("name", ["vllm", "openai"])
def test_a_server_that_was_started_anew_gets_the_weights_again_before_anything_is_sampled(
    name: str, start: Starts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peer = start()
    settings = settings_of(name, peer.url)
    made, weights = weights_of(tmp_path, 3)
    receipt = push(name, weights, settings)
    peer.kill()
    anew = start(peer.port)
    assert worst(made, sample(name, made, receipt, settings)) < 1e-5
    assert anew.count("/collective_rpc") + anew.count("/update_weights_from_disk") == 1


@pytest.mark.parametrize("name", ["vllm", "openai"])
def test_a_server_that_is_killed_in_the_middle_is_waited_for_and_no_answer_is_of_its_first_weights(
    name: str, start: Starts, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = start(dies_after=2)
    settings = settings_of(name, peer.url, wait_seconds=20)
    made, weights = weights_of(tmp_path, 3)
    receipt = push(name, weights, settings)
    module = __import__("unified_plugins.engines._servers", fromlist=["_say"])
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if "waiting for up to 20 s" in text:
            start(peer.port)
        elif "lost in the middle" in text:
            peer.kill()

    monkeypatch.setattr(module, "_say", say)
    answers = sample(name, made, receipt, settings, n=4)
    assert [len(own) for own in answers] == [4, 4, 4]
    assert worst(made, answers) < 1e-5
    assert "its answers are asked for again" in said[0]
    assert "no server answers" in said[1]
    assert said[2].endswith(f"{peer.url} is back, and holds the weights again")


def test_answers_of_a_server_that_came_back_unseen_in_the_middle_are_thrown_away(
    start: Starts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # after the first answer the server forgets its weights, as one that was started anew between two requests
    peer = start()
    settings = settings_of("vllm", peer.url, at_once=1)
    made, weights = weights_of(tmp_path, 3)
    receipt = push("vllm", weights, settings)
    real, seen = peer.reply, []

    def reply(route: str, body: Any) -> tuple[int, Any]:
        if route == "/inference/v1/generate" and body["sampling_params"].get("prompt_logprobs") is None:
            seen.append(peer.version)
            if len(seen) == 2:
                peer.version, peer.model = "default", tiny_policy().module.eval()
        return real(route, body)

    monkeypatch.setattr(peer, "reply", reply)
    assert worst(made, sample("vllm", made, receipt, settings, n=4)) < 1e-5
    assert len(seen) == 13  # 12 answers, and the one of other weights; nothing more is asked of it before the push
    assert peer.count("/collective_rpc") == 2


def test_two_servers_share_the_answers_and_one_goes_on_alone(
    start: Starts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = start(), start()
    settings = settings_of("vllm", first.url, second.url)
    made, weights = weights_of(tmp_path, 3)
    receipt = push("vllm", weights, settings)
    assert worst(made, sample("vllm", made, receipt, settings, n=4)) < 1e-5
    assert [p.count("/collective_rpc") for p in (first, second)] == [1, 1]
    assert [p.count("/inference/v1/generate") for p in (first, second)] == [7, 7]  # 12 answers, and a probe each
    second.kill()
    answers = sample("vllm", made, receipt, settings, n=4)
    assert worst(made, answers) < 1e-5
    assert first.count("/inference/v1/generate") == 7 + 12
    third, weights = weights_of(tmp_path, 4)
    assert worst(third, sample("vllm", third, push("vllm", weights, settings), settings)) < 1e-5
    assert "the others go on without it" in capsys.readouterr().err


@pytest.mark.parametrize(("policy", "message"), [("stop", "no server answers"), ("wait", "waiting for up to 0.05 s")])
def test_without_a_server_the_run_is_told_to_stop(
    policy: str, message: str, start: Starts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peer = start()
    settings = settings_of("vllm", peer.url, on_lost=policy, wait_seconds=0.05)
    made, weights = weights_of(tmp_path, 3)
    receipt = push("vllm", weights, settings)
    peer.kill()
    with pytest.raises(LostEngine, match="no server answers: http"):
        sample("vllm", made, receipt, settings)
    assert (message in capsys.readouterr().err) == (policy == "wait")


@pytest.mark.parametrize(
    ("faults", "name", "message"),
    [
        ({"deaf": True}, "vllm", "does not hold the policy of optimiser step 3.*nats per token"),
        ({"deaf": True}, "openai", "does not hold the policy of optimiser step 3.*nats per token"),
        ({"raw": True}, "vllm", "--logprobs-mode processed_logprobs"),
        ({"old": True}, "vllm", "VLLM_SERVER_DEV_MODE=1"),
    ],
)
def test_a_server_that_cannot_be_learned_from_is_refused(
    faults: dict[str, bool], name: str, message: str, start: Starts, tmp_path: Path
) -> None:
    peer = start(**faults)
    with pytest.raises(UserError, match=message):
        push(name, weights_of(tmp_path, 3)[1], settings_of(name, peer.url))
    assert "step-3" not in peer.version.partition(" ")[0]  # it does not go by the name of what it does not hold


def test_a_server_without_a_route_for_weights_serves_only_what_it_holds(start: Starts, tmp_path: Path) -> None:
    settings = settings_of("openai", start().url, update_path=None)
    made, weights = weights_of(tmp_path, 0)
    assert worst(made, sample("openai", made, push("openai", weights, settings), settings)) < 1e-5
    with pytest.raises(UserError, match="write `update_path`"):
        push("openai", weights_of(tmp_path, 3)[1], settings)


def test_a_folder_is_named_as_the_server_sees_it(start: Starts, tmp_path: Path) -> None:
    peer = start()
    _, weights = weights_of(tmp_path, 3)
    (tmp_path / "there").symlink_to(tmp_path)
    mapped = {"map_from": str(tmp_path), "map_to": str(tmp_path / "there")}
    push("vllm", weights, settings_of("vllm", peer.url, **mapped))
    (body,) = [b for r, b in peer.requests if r == "/collective_rpc"]
    assert body["kwargs"]["weights_path"] == str(tmp_path / "there" / "v3")
    with pytest.raises(UserError, match="could not read the weights in /nowhere/v3"):
        push("vllm", weights, settings_of("vllm", start().url, map_from=str(tmp_path), map_to="/nowhere"))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"urls": ["ftp://host"]}, "begins with http"),
        ({"urls": ["http://key:secret@host"]}, "a key has no place in a url"),
        ({"urls": ["http://host:1", "http://host:1/v1/"]}, "one server is named twice"),
        ({"urls": []}, "at least 1 item"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(written: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        catalogue().get("engine", "vllm").settings(**written)


@pytest.mark.parametrize("name", ["vllm", "openai"])
def test_the_contract_of_engines_holds_for_those_on_servers(name: str, start: Starts, tmp_path: Path) -> None:
    from unified.testing import check_part

    peer = start()  # it takes any model that it is given
    about = {"urls": [peer.url], **({"update_path": "/update_weights_from_disk"} if name == "openai" else {})}
    assert check_part("engine", name, about) == []
    assert peer.count("/collective_rpc") + peer.count("/update_weights_from_disk") == 4  # once for each call


def test_a_server_that_loses_the_weights_again_and_again_is_refused(start: Starts, tmp_path: Path) -> None:
    # somebody else pushes to it: its name for the weights is another one whenever an answer is asked for
    peer = start()
    settings = settings_of("vllm", peer.url)
    made, weights = weights_of(tmp_path, 3)
    receipt = push("vllm", weights, settings)
    real = peer.reply

    def reply(route: str, body: Any) -> tuple[int, Any]:
        if route == "/inference/v1/generate" and body["sampling_params"].get("prompt_logprobs") is None:
            peer.version = "step-9-another"
        return real(route, body)

    peer.reply = reply  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"5 times.*lost them again"):
        sample("vllm", made, receipt, settings)


def test_a_server_that_is_slow_to_come_is_asked_as_often_as_it_takes(
    start: Starts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = start()
    settings = settings_of("vllm", peer.url, wait_seconds=1.0)  # asked every tenth of a second
    made, weights = weights_of(tmp_path, 3)
    peer.kill()
    module = __import__("unified_plugins.engines._servers", fromlist=["asyncio"])
    real, slept = module.asyncio.sleep, []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 8:
            start(peer.port)
        await real(0)

    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    assert worst(made, sample("vllm", made, push("vllm", weights, settings), settings)) < 1e-5
    assert len(slept) == 8
