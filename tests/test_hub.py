"""A model that is neither here nor can be fetched is said so at once, without the retries of the hub's client."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from unified import UserError
from unified.cli import app
from unified.errors import did_you_mean
from unified.hub import refuse_unreachable


@pytest.fixture
def cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No network, no proxy, an empty cache; the names that were looked up."""
    asked: list[str] = []

    def nowhere(host: str, *_: Any, **__: Any) -> Any:
        asked.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://hub.example")
    monkeypatch.setattr("unified.hub.getproxies", dict)
    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    monkeypatch.chdir(tmp_path)
    return asked


def test_a_model_that_is_not_here_is_refused_after_one_lookup_of_the_hub(cut_off: list[str]) -> None:
    said = CliRunner().invoke(app, ["generate", "nope", "--prompt", "b"], catch_exceptions=False)
    assert said.exit_code == 2
    assert "there is no folder nope" in said.output
    assert "hub.example" in said.output
    assert cut_off == ["hub.example"]


def test_behind_a_proxy_and_where_the_client_stays_offline_no_name_is_looked_up(
    cut_off: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError):
        refuse_unreachable("nope")
    monkeypatch.setattr("unified.hub.getproxies", lambda: {"https": "http://proxy.example:3128"})
    refuse_unreachable("nope")
    monkeypatch.setattr("unified.hub.getproxies", dict)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refuse_unreachable("nope")
    assert cut_off == ["hub.example"]


def test_letters_that_changed_places_are_nearer_than_a_letter_that_is_another() -> None:
    # difflib: "grop" and "group" share 8 of 9 letters in order, "grop" and "grpo" 6 of 8
    assert did_you_mean("grop", ["group", "grpo"]) == "grpo"
    assert did_you_mean("grup", ["group", "grpo"]) == "group"
    assert did_you_mean("xyz", ["group", "grpo"]) is None
