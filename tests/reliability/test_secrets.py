"""No secret is written down or said, and the client of servers speaks to nobody else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.rewards.test_judges import _group, _judged, _serving
from tests.workshop import Workshop, write_base
from unified import PluginError, UserError, load_recipe, masked
from unified.check import check_recipe
from unified.registry import using
from unified.settings import choose

#: shapes of keys, none of which opens anything
KEYS = ["hf_" + "a1B2" * 6, "sk-" + "a1B2" * 6, "ghp_" + "a1B2" * 6, "AKIA" + "A1B2" * 4, "glpat-" + "a1B2" * 5]


RECIPE = "name: demo\nmodel: ./iron\nstages: {one: {mark: a}}\n"


# --- secrets ---


@pytest.mark.parametrize("key", ["api_key", "password", "token", "hf_token", "client_secret", "AWS_SECRET_ACCESS_KEY"])
def test_a_recipe_that_holds_a_secret_is_refused_without_saying_it(key: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(f"name: a\nstages:\n  one:\n    mark: x\n    {key}: open sesame\n")
    with using(Workshop().catalogue()), pytest.raises(UserError) as found:
        check_recipe(load_recipe(tmp_path / "r.yaml"))
    text = str(found.value)
    assert f"r.yaml:5: '{key}' holds what looks like a secret" in text
    assert "environment variable" in text
    assert "sesame" not in text


@pytest.mark.parametrize("secret", [*KEYS, "http://user:sesame@host/x"])
@pytest.mark.parametrize("where", ["recipe", "profile", "set"])
def test_a_text_that_looks_like_a_key_is_refused_wherever_it_stands(secret: str, where: str, tmp_path: Path) -> None:
    mark = secret if where == "recipe" else "x"
    profile = f"profiles: {{p: {{stages: {{one: {{mark: '{secret}'}}}}}}}}\n" if where == "profile" else ""
    write_base(tmp_path / "iron")
    (tmp_path / "r.yaml").write_text(f"name: a\nmodel: ./iron\nstages: {{one: {{mark: '{mark}', heat: 1}}}}\n{profile}")
    sets = [f"stages.one.mark={secret}"] if where == "set" else []
    with using(Workshop().catalogue()), pytest.raises(UserError, match="looks like a secret") as found:
        check_recipe(load_recipe(tmp_path / "r.yaml", sets))
    assert secret not in str(found.value)
    assert "sesame" not in str(found.value)


@pytest.mark.parametrize(
    "written",
    [
        "max_tokens: 8",
        "eos_token: </s>",
        "api_key_env: JUDGE_KEY",
        "columns: {token: Token}",
        "key: id",
        "sort_key: length",
    ],
)
def test_what_is_no_secret_is_not_taken_for_one(written: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(f"name: a\nstages: {{one: {{{written}}}}}\n")
    with using(Workshop().catalogue()):
        assert not [t for t in load_recipe(tmp_path / "r.yaml").problem_texts() if "secret" in t]


def test_a_key_in_the_place_of_the_name_of_its_variable_is_refused_and_not_shown() -> None:
    _, problems = choose("reward", {"name": "server", "url": "http://h/", "api_key_env": "open sesame"})
    assert "is the name of an environment variable" in problems[0].message


def test_values_of_variables_that_are_named_as_secrets_are_masked_and_others_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "open sesame")
    monkeypatch.setenv("HARMLESS", "an ordinary word")
    assert masked("it said: open sesame, an ordinary word") == "it said: ***, an ordinary word"
    assert masked("Authorization: Bearer abcdefgh1") == "Authorization: Bearer ***"
    assert masked("see http://user:pass@host/a?x=1&token=abc&y=2") == "see http://***@host/a?x=1&token=***&y=2"
    for key in KEYS:
        assert masked(f"<{key}>") == "<***>"


def test_what_a_run_leaves_behind_holds_no_secret(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "open sesame")

    def raising(stage: Any) -> None:
        raise RuntimeError(f"the judge refused open sesame and {KEYS[0]}")

    run(RECIPE)
    run.workshop.during = raising
    with pytest.raises(PluginError) as found:
        run(RECIPE, "stages.one.mark=b")
    assert "***" in masked(str(found.value))
    texts = [p.read_text(errors="replace") for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert len(texts) >= 3
    assert any("RuntimeError: the judge refused *** and ***" in text for text in texts)
    assert not any("sesame" in text or KEYS[0] in text for text in texts)


def test_the_command_line_masks_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from unified.cli import app

    monkeypatch.setenv("HF_TOKEN", "open sesame")
    done = CliRunner().invoke(app, ["check", str(tmp_path / "open sesame.yaml")])
    assert done.exit_code == 2
    assert "sesame" not in done.output
    assert "***" in done.output


# --- the reward server ---


def test_a_reward_server_is_asked_directly_whatever_proxy_the_environment_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def far(*_: Any) -> Any:
        return 200, {"rewards": [9.0]}

    def near(*_: Any) -> Any:
        return 200, {"rewards": [1.0]}

    with _serving(far) as (proxy, overheard), _serving(near) as (url, heard):
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        assert _judged([_group("p", "a")], name="server", url=url) == [[1.0]]
        assert (len(heard), len(overheard)) == (1, 0)
        _judged([_group("p", "a")], name="server", url=url, environment_proxies=True, retries=0)
        assert len(overheard) == 1


def test_a_server_that_repeats_the_key_it_was_sent_does_not_get_it_into_a_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "open sesame")

    def reply(_: int, __: str, ___: Any, headers: Any) -> Any:
        return 403, {"error": f"bad {headers['Authorization']}"}

    with _serving(reply) as (url, _), pytest.raises(UserError) as found:
        _judged([_group("p", "a")], name="server", url=url, api_key_env="JUDGE_KEY")
    assert "it replied 403" in str(found.value)
    assert "sesame" not in str(found.value)


def test_a_reply_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unified_plugins.rewards._http._LARGEST_REPLY", 1000)
    long = _serving(lambda *_: (200, {"rewards": ["x" * 5000]}))
    with long as (url, _), pytest.raises(UserError, match="more than 1,000 bytes"):
        _judged([_group("p", "a")], name="server", url=url)
