"""Servers that fail: some requests, all of them, in the middle of a push; that say nothing, or something else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.engines.peer import Peer
from tests.engines.test_servers import Starts, push, sample, settings_of, start, weights_of, worst
from tests.tools import tiny_policy
from unified import LostEngine, UserError, catalogue

__all__ = ["start"]
GENERATE = {"vllm": "/inference/v1/generate", "openai": "/v1/completions"}
RELOAD = {"vllm": "/collective_rpc", "openai": "/update_weights_from_disk"}
Reply = Callable[[str, Any], tuple[int, Any] | None]


def probes(body: Any) -> bool:
    return bool(body.get("echo") or (body.get("sampling_params") or {}).get("prompt_logprobs") is not None)


def instead(peer: Peer, reply: Reply) -> None:
    """Have a server reply what `reply` gives, where that is not None; status 0: it cuts the connection."""
    real = peer.reply

    def other(route: str, body: Any) -> tuple[int, Any]:
        given = reply(route, body)
        return real(route, body) if given is None else given

    peer.reply = other  # type: ignore[method-assign]


def ids(answers: Any) -> list[list[list[int]]]:
    return [[a.ids for a in own] for own in answers]


@pytest.mark.parametrize("policy", ["wait", "stop"])
@pytest.mark.parametrize("name", ["vllm", "openai"])
def test_a_server_that_fails_at_every_request_is_given_up_in_time(
    name: str, policy: str, start: Starts, tmp_path: Any
) -> None:
    # it says which weights it holds, so that it looks ready each time that it is asked
    peer, asked = start(), []
    settings = settings_of(name, peer.url, wait_seconds=0.2, on_lost=policy, at_once=1)
    made, weights = weights_of(tmp_path, 3)
    receipt = push(name, weights, settings)

    def fails(route: str, body: Any) -> tuple[int, Any] | None:
        if route != GENERATE[name] or probes(body):
            return None
        asked.append(route)
        return (500, {"error": {"message": "CUDA error"}}) if len(asked) < 40 else (400, "asked without end")

    instead(peer, fails)
    with pytest.raises(LostEngine, match=r"(?s)500: CUDA error.*run the same command"):
        sample(name, made, receipt, settings)
    assert len(asked) == 1 if policy == "stop" else 1 < len(asked) < 20


@pytest.mark.parametrize("status", [500, 0])
@pytest.mark.parametrize("name", ["vllm", "openai"])
def test_requests_that_fail_now_and_then_are_asked_again_with_their_seeds(
    name: str, status: int, start: Starts, tmp_path: Any
) -> None:
    peer, asked = start(), []
    settings = settings_of(name, peer.url, wait_seconds=5)
    made, weights = weights_of(tmp_path, 3)
    receipt = push(name, weights, settings)
    without = sample(name, made, receipt, settings, n=4)

    def fails(route: str, body: Any) -> tuple[int, Any] | None:
        if route == GENERATE[name] and not probes(body):
            asked.append(route)
            return (status, "no") if len(asked) % 5 == 3 else None
        return None

    instead(peer, fails)
    answers = sample(name, made, receipt, settings, n=4)
    assert len(asked) > 12
    assert ids(answers) == ids(without)
    assert worst(made, answers) < 1e-5


@pytest.mark.parametrize("status", [500, 0])
@pytest.mark.parametrize("name", ["vllm", "openai"])
def test_a_push_that_fails_in_the_middle_is_made_again(name: str, status: int, start: Starts, tmp_path: Any) -> None:
    peer, asked = start(), []

    def fails(route: str, body: Any) -> tuple[int, Any] | None:
        if route == RELOAD[name]:
            asked.append(route)
            return (status, "reset by peer") if len(asked) == 1 else None
        return None

    instead(peer, fails)
    settings = settings_of(name, peer.url, wait_seconds=1)
    made, weights = weights_of(tmp_path, 3)
    assert worst(made, sample(name, made, push(name, weights, settings), settings)) < 1e-5
    assert len(asked) == 2


@pytest.mark.parametrize("name", ["vllm", "openai"])
@pytest.mark.parametrize("said", ["<html>It works!</html>", {}, [], {"choices": []}, {"weight_version": None}, None])
def test_a_server_of_something_else_is_named_in_one_message(said: Any, name: str, start: Starts, tmp_path: Any) -> None:
    peer = start()
    instead(peer, lambda route, body: (200, said))
    with pytest.raises(UserError, match=rf"engine '{name}': {peer.url}.*") as raised:
        push(name, weights_of(tmp_path, 3)[1], settings_of(name, peer.url))
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("vllm", lambda c: c["logprobs"].update(content=c["logprobs"]["content"][:-1]), "log-probs"),
        ("vllm", lambda c: c.pop("token_ids"), "token_ids"),
        ("vllm", lambda c: c.update(logprobs=None), "generate"),
        ("vllm", lambda c: c.pop("weight_versions"), "vLLM 0.32"),
        ("openai", lambda c: c.pop("token_ids"), "no `token_ids`"),
        ("openai", lambda c: c.update(logprobs=None), "token_logprobs"),
        ("openai", lambda c: c["logprobs"].update(token_logprobs=[None] * len(c["token_ids"])), "token_logprobs"),
    ],
)
def test_an_answer_without_what_is_learned_from_is_refused(
    name: str, change: Callable[[Any], Any], message: str, start: Starts, tmp_path: Any
) -> None:
    peer = start()
    settings = settings_of(name, peer.url)
    made, weights = weights_of(tmp_path, 3)
    receipt = push(name, weights, settings)
    real = peer.reply

    def less(route: str, body: Any) -> tuple[int, Any]:
        status, reply = real(route, body)
        if route == GENERATE[name] and not probes(body):
            change(reply["choices"][0])
        return status, reply

    peer.reply = less  # type: ignore[method-assign]
    with pytest.raises(UserError, match=message):
        sample(name, made, receipt, settings)


def test_a_server_that_gives_no_token_ids_is_refused_before_anything_is_sampled(start: Starts, tmp_path: Any) -> None:
    peer = start()
    real = peer.reply

    def without(route: str, body: Any) -> tuple[int, Any]:
        status, reply = real(route, body)
        if route == "/v1/completions":
            reply["choices"][0].pop("token_ids")
        return status, reply

    peer.reply = without  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"no `token_ids`.*never tokenised again"):
        push("openai", weights_of(tmp_path, 3)[1], settings_of("openai", peer.url))


def test_a_server_that_knows_no_top_k_is_named(start: Starts, tmp_path: Any) -> None:
    peer = start()
    settings = settings_of("openai", peer.url)
    made, weights = weights_of(tmp_path, 3)
    receipt = push("openai", weights, settings)
    instead(peer, lambda r, b: (400, {"error": "unknown parameter top_k"}) if "top_k" in (b or {}) else None)
    with pytest.raises(UserError, match=rf"{peer.url}.*unknown parameter top_k"):
        sample("openai", made, receipt, settings, top_k=4)


@pytest.mark.parametrize(
    ("written", "route", "reply", "message"),
    [
        ({"push": "lora"}, GENERATE["vllm"], {"detail": "Not Found"}, "--enable-scale-out"),
        ({}, GENERATE["vllm"], {"detail": "Not Found"}, "--enable-scale-out"),
        ({}, GENERATE["vllm"], {"error": {"message": "The model `policy` does not exist."}}, "`model: policy`"),
    ],
)
def test_what_the_server_was_not_started_with_is_said(
    written: Any, route: str, reply: Any, message: str, start: Starts, tmp_path: Any
) -> None:
    peer = start()

    def says(asked: str, body: Any) -> tuple[int, Any] | None:
        if asked == "/v1/load_lora_adapter":
            peer.adapters[body["lora_name"]] = None
            return 200, "loaded"
        return (404, reply) if asked == route else None

    instead(peer, says)
    with pytest.raises(UserError, match=message):
        push("vllm", weights_of(tmp_path, 3)[1], settings_of("vllm", peer.url, **written))


@pytest.mark.parametrize("name", ["vllm", "openai"])
def test_a_key_that_is_refused_is_named_by_its_variable_and_never_shown(
    name: str, start: Starts, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = "opensesame-4711-opensesame"  # of no known shape, in a variable that is not called a key
    monkeypatch.setenv("DOOR", f"{key}\n")  # a line end behind it, as a file has
    peer, settings = start(), None
    instead(peer, lambda r, b: (401, {"error": f"Unauthorized: {key}"}))
    settings = settings_of(name, peer.url, api_key_env="DOOR")
    with pytest.raises(UserError, match=rf"{peer.url}.*key.*DOOR") as raised:
        push(name, weights_of(tmp_path, 3)[1], settings)
    instead(peer, lambda r, b: (503, {"error": f"busy, {key}"}))
    with pytest.raises(LostEngine, match="busy") as lost:
        push(name, weights_of(tmp_path, 3)[1], settings_of(name, peer.url, api_key_env="DOOR", wait_seconds=0))
    assert key not in str(raised.value) + str(lost.value) + capsys.readouterr().err
    instead(peer, lambda r, b: (401, {"error": "Unauthorized"}))
    with pytest.raises(UserError, match=r"wants a key.*\n.*api_key_env"):
        push(name, weights_of(tmp_path, 3)[1], settings_of(name, peer.url))


@pytest.mark.parametrize("key", ["clé-du-serveur-été", "two words", "line\nend"])
def test_a_key_that_no_header_can_hold_is_named_by_its_variable(
    key: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOOR", key)
    with pytest.raises(UserError, match="variable DOOR") as raised:
        push("vllm", weights_of(tmp_path, 3)[1], settings_of("vllm", "http://127.0.0.1:9", api_key_env="DOOR"))
    assert key not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://host:8000/?token=abcdefghijklmnop", "without \\? and #"),
        ("http://host:8000#frag", "without \\? and #"),
        ("http://host:99999", "port"),
        ("http://host:port", "port"),
        ("http://:8000", "names a host"),
        ("me:hunter22@host:80", "a key has no place in a url"),
    ],
)
def test_a_url_that_cannot_be_asked_is_refused_without_repeating_a_secret(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        catalogue().get("engine", "vllm").settings(urls=[url])
    said = str(raised.value).partition("[type=")[0]  # pydantic's own words follow, which the command line leaves out
    assert "abcdefghijklmnop" not in said
    assert "hunter22" not in said


def test_a_server_that_takes_connections_and_says_nothing_does_not_hold_up_the_other(
    start: Starts, tmp_path: Any
) -> None:
    first, second, go_on = start(), start(), threading.Event()
    settings = settings_of("vllm", first.url, second.url, connect_timeout=0.3, timeout=30)
    made, weights = weights_of(tmp_path, 3)
    receipt = push("vllm", weights, settings)
    waited = []

    def silent(route: str, body: Any) -> tuple[int, Any] | None:
        waited.append(go_on.wait(20))
        return None

    instead(second, silent)
    try:
        assert worst(made, sample("vllm", made, receipt, settings)) < 1e-5
        other, weights = weights_of(tmp_path, 4)
        assert worst(other, sample("vllm", other, push("vllm", weights, settings), settings)) < 1e-5
        assert waited == []  # it had said nothing when both were done
    finally:
        go_on.set()


def test_what_a_lost_server_answered_is_kept_only_where_its_weights_are_known(start: Starts, tmp_path: Any) -> None:
    # its log-probs are all that tells the weights of the server: it is started anew after the check before the call,
    # answers with its first weights, and is lost
    peer, asked = start(), []
    settings = settings_of("openai", peer.url, wait_seconds=5, at_once=1)
    made, weights = weights_of(tmp_path, 3)
    receipt = push("openai", weights, settings)

    def anew(route: str, body: Any) -> tuple[int, Any] | None:
        if route == "/v1/completions" and not probes(body):
            asked.append(route)
            if len(asked) == 2:
                peer.model = tiny_policy().module.eval()
            return (0, "") if len(asked) == 4 else None
        return None

    instead(peer, anew)
    assert worst(made, sample("openai", made, receipt, settings, n=2)) < 1e-5
    assert peer.count("/update_weights_from_disk") == 2
