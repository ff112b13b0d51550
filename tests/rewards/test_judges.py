"""Rewards that ask somebody else: a reward server, an endpoint, or a language model of the recipe."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from unified import Answer, PromptGroup, Sampling, UserError, call_named
from unified.settings import choose

Reply = tuple[int, Any]


def _group(prompt: str, *texts: str, **columns: Any) -> PromptGroup:
    return PromptGroup([1], [Answer([2], text) for text in texts], prompt, columns)


def _chosen(**written: Any) -> Any:
    chosen, problems = choose("reward", written)
    assert chosen is not None, [p.text() for p in problems]
    return chosen


def _judged(groups: list[PromptGroup], models: Any = None, **written: Any) -> Any:
    chosen = _chosen(**written)
    return call_named(chosen.part.judge, groups=groups, settings=chosen.settings, models=models or {})


@contextmanager
def _serving(reply: Callable[[int, str, Any, Any], Reply]) -> Iterator[tuple[str, list[Any]]]:
    """A real server; reply(number of the request, path, payload, headers) -> (status, JSON). Yields its url, and what
    it was sent."""
    heard: list[Any] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                heard.append(payload)
                number = len(heard) - 1
            status, body = reply(number, self.path, payload, self.headers)
            data = json.dumps(body).encode()
            self.send_response(status)
            if status == 307:
                self.send_header("Location", body["to"])
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", heard
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _lengths(_: int, __: str, payload: Any, ___: Any) -> Reply:
    return 200, {"rewards": [len(a) for a in payload["answers"]]}


# --- reward server ---


def test_a_server_is_asked_in_batches_and_its_numbers_keep_their_order() -> None:
    groups = [_group("p", "a", "bb", level=3), _group("q", "ccc")]
    with _serving(_lengths) as (url, heard):
        assert _judged(groups, name="server", url=url, batch=2, columns=["level"]) == [[1.0, 2.0], [3.0]]
    assert sorted(heard, key=lambda p: p["prompts"]) == [
        {"prompts": ["p", "p"], "answers": ["a", "bb"], "columns": [{"level": 3}, {"level": 3}]},
        {"prompts": ["q"], "answers": ["ccc"], "columns": [{"level": None}]},
    ]


def test_a_busy_server_is_asked_again_and_a_null_stays_missing() -> None:
    def reply(number: int, path: str, payload: Any, headers: Any) -> Reply:
        return (503, {}) if number < 2 else (200, {"rewards": [None, 0.5]})

    with _serving(reply) as (url, heard):
        assert _judged([_group("p", "a", "b")], name="server", url=url, backoff=0) == [[None, 0.5]]
    assert len(heard) == 3


def test_answers_of_a_batch_that_failed_are_missing_and_the_others_are_not() -> None:
    def reply(number: int, path: str, payload: Any, headers: Any) -> Reply:
        return (400, {"error": "no"}) if payload["answers"] == ["bad"] else (200, {"rewards": [1]})

    with _serving(reply) as (url, heard):
        given = _judged([_group("p", "good", "bad", "good")], name="server", url=url, batch=1)
    assert given == [[1.0, None, 1.0]]
    assert len(heard) == 3  # what is wrong with a request stays wrong: it is not sent again


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"rewards": [1]}, 'no {"rewards": [...]} with 2 entries'),
        ({"rewards": ["high", 1]}, "a reward must be a number or null, not 'high'"),
        ({"rewards": [True, 1]}, "a reward must be a number or null, not True"),
        ([], 'no {"rewards": [...]} with 2 entries'),
    ],
)
def test_a_reply_of_another_form_stops_the_stage_with_what_is_wrong(body: Any, said: str) -> None:
    with _serving(lambda *_: (200, body)) as (url, _), pytest.raises(UserError) as raised:
        _judged([_group("p", "a", "b")], name="server", url=url, retries=0)
    assert said in str(raised.value)
    assert url in str(raised.value)


def test_a_redirect_to_another_host_is_not_followed() -> None:
    with _serving(_lengths) as (other, heard):
        with _serving(lambda *_: (307, {"to": other})) as (url, _), pytest.raises(UserError, match="307"):
            _judged([_group("p", "a")], name="server", url=url)
        assert heard == []


def test_a_server_that_is_late_counts_as_one_that_is_away() -> None:
    free = threading.Event()

    def reply(number: int, path: str, payload: Any, headers: Any) -> Reply:
        free.wait(20)
        return 200, {"rewards": [1]}

    with _serving(reply) as (url, heard):
        try:
            with pytest.raises(UserError, match="Timeout"):
                _judged([_group("p", "a")], name="server", url=url, timeout=0.2, retries=1, backoff=0)
        finally:
            free.set()
    assert len(heard) == 2


@pytest.mark.parametrize(
    ("url", "said"),
    [("localhost:80", "begins with http:// or https://"), ("http://me:secret@host/", "a key has no place in a url")],
)
def test_a_url_that_cannot_be_meant_is_refused_by_the_check(url: str, said: str) -> None:
    assert said in choose("reward", {"name": "server", "url": url})[1][0].text()


# --- judges ---


class Scripted:
    """A judge with a tokenizer without chat template; `say(question, vote)` is its opinion."""

    class tokenizer:  # noqa: N801
        chat_template = None

    def __init__(self, say: Callable[[str, int], str]) -> None:
        self.say, self.asked = say, list[Any]()

    def answer(self, prompts: list[Any], sampling: Sampling, n: int = 1, draws: Any = None) -> list[list[Answer]]:
        self.asked += prompts
        return [[Answer([1], self.say(p, i)) for i in range(n)] for p in prompts]


def test_a_rubric_is_filled_in_and_the_mean_of_the_votes_becomes_a_number_from_0_to_1() -> None:
    votes = ["so so. Score: 3", "Score: 1 at first, then Score: 4", "no idea"]
    judge = Scripted(lambda question, vote: votes[vote])
    written = {"template": "{prompt}|{answer}|{level}|{x y}", "name": "rubric", "model": "self", "votes": 3}
    given = _judged([_group("2+2", "4", level="easy")], {"self": judge}, **written)
    assert judge.asked == ["2+2|4|easy|{x y}"]
    assert given == [[pytest.approx((3 / 5 + 4 / 5) / 2)]]  # the third opinion could not be read


def test_an_answer_of_which_no_opinion_can_be_read_is_missing() -> None:
    judge = Scripted(lambda question, vote: "Score: 7" if "bad" in question else "Score: 5")
    assert _judged([_group("p", "good", "bad")], {"self": judge}, name="rubric", model="self") == [[1.0, None]]


def test_points_may_be_words() -> None:
    judge = Scripted(lambda question, vote: "it is good" if "fine" in question else "it is poor")
    written = {"pattern": r"(\w+)$", "points": {"good": 2, "poor": 1}, "low": 0, "high": 2}
    assert _judged([_group("p", "fine", "odd")], {"m": judge}, name="rubric", model="m", **written) == [[1.0, 0.5]]


def test_in_pairs_the_better_answer_wins_in_both_orders() -> None:
    def say(question: str, vote: int) -> str:
        first, second = question.split("|")
        return "Better: A" if len(first) > len(second) else "Better: B" if len(first) < len(second) else "Better: none"

    judge = Scripted(say)
    given = _judged(
        [_group("p", "aaa", "b", "ccc"), _group("q", "only")], {"m": judge}, name="pairwise", model="m",
        template="{first}|{second}",
    )  # fmt: skip
    # aaa beats b and draws with ccc; b loses twice; the only answer of q has nobody to be compared with
    assert given == [[0.75, 0.0, 0.75], [None]]
    assert judge.asked[:2] == ["aaa|b", "b|aaa"]


def test_a_judge_who_always_prefers_the_first_place_gives_a_draw() -> None:
    judge = Scripted(lambda question, vote: "Better: A")
    assert _judged([_group("p", "x", "y")], {"m": judge}, name="pairwise", model="m") == [[0.5, 0.5]]


def test_a_comparison_that_can_be_read_in_one_order_only_does_not_count() -> None:
    judge = Scripted(lambda question, vote: "Better: A" if question == "x|y" else "?")
    given = _judged([_group("p", "x", "y")], {"m": judge}, name="pairwise", model="m", template="{first}|{second}")
    assert given == [[None, None]]


def test_an_endpoint_is_asked_as_often_as_there_are_votes_with_the_key_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "s3cret")
    seen: list[Any] = []

    def reply(number: int, path: str, payload: Any, headers: Any) -> Reply:
        seen.append((path, headers["Authorization"], payload["model"], payload["messages"][0]["role"]))
        return 200, {"choices": [{"message": {"content": f"Score: {1 + 2 * (number % 2)}"}}]}

    with _serving(reply) as (url, _):
        endpoint = {"url": f"{url}/v1", "model": "big", "api_key_env": "JUDGE_KEY"}
        assert _judged([_group("p", "a")], name="rubric", endpoint=endpoint, votes=4) == [[pytest.approx(0.4)]]
    assert seen == [("/v1/chat/completions", "Bearer s3cret", "big", "user")] * 4


def test_an_endpoint_without_its_key_is_refused_by_name() -> None:
    endpoint = {"url": "http://127.0.0.1:9", "model": "big", "api_key_env": "NO_SUCH_KEY"}
    with pytest.raises(UserError, match="NO_SUCH_KEY"):
        _judged([_group("p", "a")], name="rubric", endpoint=endpoint)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (
            {"name": "rubric", "model": "self", "endpoint": {"url": "http://h", "model": "m"}},
            "name the judge by `model` or by `endpoint`",
        ),
        ({"name": "rubric", "model": "self", "votes": 3, "temperature": 0}, "3 votes at temperature 0 are one vote"),
        ({"name": "rubric", "model": "self", "template": "{prompt}"}, "the template shows no {answer}"),
        ({"name": "rubric", "model": "self", "pattern": "("}, "is no regular expression"),
        ({"name": "pairwise", "model": "self", "template": "{first}"}, "the template shows no {second}"),
    ],
)
def test_a_judge_that_cannot_work_is_refused_by_the_check(written: dict[str, Any], said: str) -> None:
    assert said in "\n".join(p.text() for p in choose("reward", written)[1])


def test_the_policy_itself_is_no_model_to_load_and_another_judge_is() -> None:
    for name, expected in ((None, {"self": "policy"}), ("stage:sft", {"stage:sft": "policy"})):
        chosen = _chosen(name="rubric", model=name)
        assert call_named(chosen.part.models, settings=chosen.settings) == expected


@pytest.mark.parametrize("name", ["self", "input"])
def test_the_policy_cannot_be_asked_for_a_score(name: str) -> None:
    from unified import training

    chosen = _chosen(name="model", model=name)
    with pytest.raises(UserError, match=f"reward 'model' cannot ask '{name}' for a score"):
        training.part_uses(("reward",), chosen)


def test_equal_questions_about_different_prompts_get_draws_of_their_own() -> None:
    seen: list[Any] = []

    class Noting(Scripted):
        def answer(self, prompts: list[Any], sampling: Sampling, n: int = 1, draws: Any = None) -> list[list[Answer]]:
            seen.append(list(draws))
            return super().answer(prompts, sampling, n)

    groups = [_group("p", "a", "a"), _group("p", "a")]
    groups[0].draw, groups[1].draw = 4, 9
    _judged(groups, {"self": Noting(lambda question, vote: "Score: 1")}, name="rubric", model="self")
    assert seen == [[4, 4, 9]]
