"""A run is served to this machine only, and what is written while the server runs is what it answers next."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from tests.report.runs import chain, make_run, rows
from tests.report.test_page import data_of
from unified import UserError
from unified.lock import RunLock
from unified.report.command import watch
from unified.report.watch import Server


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", {"first": {"rows": rows(3), "manifest": {}}, "second": {"rows": rows(2)}})


@pytest.fixture
def server(run: Path) -> Iterator[Server]:
    with Server(run) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join(timeout=10)
        assert not thread.is_alive()


def ask(server: Server, path: str, **headers: str) -> tuple[HTTPResponse, str]:
    connection = HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer, body


def changes(server: Server, since: int) -> dict[str, Any]:
    return json.loads(ask(server, f"/changes?since={since}")[1])


def steps(told: dict[str, Any]) -> dict[str, Any]:
    return {stage["name"]: stage["steps"] for stage in told["run"]["stages"]}


def test_only_what_changed_is_told_and_half_a_line_is_told_when_it_is_whole(server: Server, run: Path) -> None:
    first = data_of(ask(server, "/")[1])
    assert first["live"] is True
    assert steps({"run": first["runs"][0]}) == {"first": 3, "second": 2}
    same = changes(server, first["number"])
    assert (same["number"], steps(same)) == (first["number"], {})

    with (run / "second" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, "loss": 1.0, "fresh": 2.0}) + '\n{"step": 4, "lo')
    told = changes(server, first["number"])
    assert steps(told) == {"second": 3}
    assert told["metrics"]["fresh"] == ["Other", ""]
    assert told["names"] == ["first", "second"]

    with (run / "second" / "metrics.jsonl").open("a") as file:
        file.write('ss": 1.0}\n')
    assert steps(changes(server, told["number"])) == {"second": 4}
    assert steps(changes(server, 0)) == {"first": 3, "second": 4}


def test_a_stage_that_is_added_while_it_is_watched_appears(server: Server, run: Path) -> None:
    number = changes(server, 0)["number"]
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**about, "stages": [*about["stages"], "third"]}))
    told = changes(server, number)
    assert told["names"] == ["first", "second", "third"]
    assert [(s["name"], s["state"]) for s in told["run"]["stages"]] == [("third", "to do")]


def test_a_stage_is_running_while_somebody_holds_the_run_and_cut_off_after(server: Server, run: Path) -> None:
    states = []
    with RunLock(run):
        told = changes(server, 0)
        states.append((told["run"]["running"], told["run"]["stages"][1]["state"]))
    told = changes(server, told["number"])
    states.append((told["run"]["running"], [s["state"] for s in told["run"]["stages"]][-1]))
    assert states == [(True, "running"), (False, "cut off")]


def test_it_listens_on_this_machine_only_and_answers_no_other_name(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert ask(server, "/")[0].status == 200
    assert ask(server, "/", Host="localhost:1")[0].status == 200
    for name in ("evil.example", "evil.example:80", ""):
        assert ask(server, "/changes", Host=name)[0].status == 403  # a foreign name that was made to point here


def test_answers_are_not_kept_and_may_load_nothing(server: Server) -> None:
    answer, _ = ask(server, "/")
    assert answer.headers["Cache-Control"] == "no-store"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "connect-src 'self'" in answer.headers["Content-Security-Policy"]
    assert ask(server, "/run.json")[0].status == 404
    assert ask(server, "/../run.json")[0].status == 404
    assert ask(server, "/changes?since=-1")[0].status == 200
    assert ask(server, "/changes?since=" + "9" * 400)[0].status == 200


def test_a_folder_that_goes_away_is_said_and_the_server_goes_on(server: Server, run: Path) -> None:
    (run / "run.json").rename(run / "gone.json")
    answer, body = ask(server, "/changes?since=0")
    assert (answer.status, "holds no run" in body) == (503, True)
    (run / "gone.json").rename(run / "run.json")
    assert steps(changes(server, 0)) == {"first": 3, "second": 2}


def test_a_port_that_is_taken_is_a_mistake_that_can_be_mended(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(UserError, match="give another --port, or 0"):
            Server(chain(tmp_path / "run"), other.getsockname()[1])


def test_ctrl_c_ends_it_in_good_order(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Server, poll_interval: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", interrupted)
    said: list[str] = []
    watch(run, 0, said.append)
    assert said[0].startswith(f"watching {run} at http://127.0.0.1:")
    assert said[1:] == ["stopped"]
