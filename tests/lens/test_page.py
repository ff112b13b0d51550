"""The page: one file, within its size, in which nothing that a model wrote is more than text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from tests.lens.pictures import data_of, group, picture
from tests.report.test_page import EVIL, Seen
from unified import UserError
from unified.lens.pack import LARGEST, page_data
from unified.lens.page import MARK, page, write_page
from unified.lens.picture import Column, Picture, Shown
from unified.lens.picture import Seen as SeenByOne
from unified.report.page import embedded


def written(step: int | None = None, *, answers: int = 2, tokens: int = 5, seed: int = 0) -> Picture:
    """A picture of one algorithm, every number another one."""
    shown = [
        Shown(0, list(range(tokens)), [f"t{t}" for t in range(tokens)], [True] * tokens, 1.0) for _ in range(answers)
    ]
    values = [[((seed * answers + a) * tokens + t + 1) / 7919 for t in range(tokens)] for a in range(answers)]
    seen = [SeenByOne({"logp": (0.5, v)}, {"logp": [-x for x in v]}) for v in values]  # type: ignore[list-item]
    return Picture(["prompt"], shown, [Column("one", {}, {"logp": "sequence"}, list(seen))], step=step)


def test_what_a_model_wrote_is_data_and_never_a_part_of_the_page() -> None:
    made = picture("dpo", groups=[group(1.0, 0.0)])
    made.prompts, made.notes, made.silent = [EVIL], [EVIL], {EVIL: EVIL}
    made.answers[0].tokens[0] = EVIL
    made.columns[0].name, made.columns[0].settings = EVIL, {EVIL: EVIL}
    html = page(page_data({EVIL: [made]}, EVIL, [EVIL]))
    seen = Seen(html)
    assert [tag for tag, _ in seen.tags].count("script") == 2
    assert "img" not in [tag for tag, _ in seen.tags]
    assert html.count("alert(1)") == html.count("\\u003cscript>alert(1)") + 1  # and once in the title, as text
    plain = EVIL.replace("\ud800", "?")
    data = data_of(html)
    assert data["pool"][data["strips"][0]["pictures"][0]["answers"][0]["tokens"]][0] == plain
    assert data["strips"][0]["name"] == plain
    assert seen.title.startswith(plain)


def test_the_page_asks_for_nothing_and_runs_nothing_but_its_own_script() -> None:
    html = page(page_data({"": [written()]}, "test"))
    seen = Seen(html)
    (policy,) = [
        a["content"] for tag, a in seen.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    digest = base64.b64encode(hashlib.sha256(seen.scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert re.findall(r"https?://", html) == []
    assert not {"innerHTML", "insertAdjacentHTML", "document.write"} & set(re.findall(r"[\w.]+", html))
    assert [a for _, a in seen.tags if any(k.startswith("on") or k == "style" for k in a)] == []


def test_all_digits_stand_in_the_page_where_they_fit() -> None:
    data = data_of(page(page_data({"": [written()]}, "test")))
    head = data["strips"][0]["pictures"][0]["columns"][0]["heads"]["logp"]
    assert [data["pool"][place] for place in head["gc"]] == [
        [(a * 5 + t + 1) / 7919 for t in range(5)] for a in range(2)
    ]
    assert data["notes"] == []


def test_the_data_of_a_page_leave_room_for_the_rest_under_2_mb() -> None:
    rest = len(page(page_data({"": [written()]}, "test")).encode())
    assert rest < 40_000
    assert LARGEST + rest < 2_000_000


def test_a_long_run_is_thinned_out_evenly_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unified.lens.pack.LARGEST", 200_000)
    pictures = [written(step, answers=4, tokens=100, seed=step) for step in range(60)]
    html = page(page_data({"one": pictures}, "test"))
    data = data_of(html)
    assert len(embedded(data)) <= 200_000 < len(embedded(data)) * 1.3
    steps = [p["step"] for p in data["strips"][0]["pictures"]]
    assert (steps[0], steps[-1]) == (0, 59)
    assert 10 < len(steps) < 60
    gaps = {b - a for a, b in pairwise(steps)}
    assert max(gaps) - min(gaps) <= 1
    assert data["notes"] == [
        "numbers are shown with 6 digits; --json has all of them",
        f"steps of one: {len(steps)} of 60 are shown, for a page holds no more; --json has all of them",
    ]


def test_answers_that_are_too_many_for_a_page_are_left_out_from_the_end_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("unified.lens.pack.LARGEST", 100_000)
    data = page_data({"": [written(answers=50, tokens=200)]}, "test")
    shown = data["strips"][0]["pictures"][0]["answers"]
    assert 10 < len(shown) < 50
    assert data["notes"][-1].startswith(f"answers of the rows: {len(shown)} of 50 are shown")
    assert len(embedded(data)) <= 100_000


def test_numbers_that_are_not_finite_are_missing_and_not_broken() -> None:
    made = written()
    assert made.columns[0].seen[0] is not None
    made.columns[0].seen[0].fields["logp"][1] = None
    data = data_of(page(page_data({"": [made]}, "test")))
    column = data["strips"][0]["pictures"][0]["columns"][0]
    assert data["pool"][column["fields"]["logp"][0]][1] is None


def test_a_picture_comes_back_from_its_json_as_it_was() -> None:
    made = picture("dpo", "ppo", "kto", groups=[group(1.0, None, 0.0)])
    assert Picture.of(json.loads(json.dumps(made.as_dict()))) == made
    for broken in ({}, {**made.as_dict(), "answers": []}, {**made.as_dict(), "columns": [{}]}):
        with pytest.raises((KeyError, TypeError, ValueError)):
            Picture.of(broken)


def test_a_page_replaces_an_earlier_one_and_nothing_else(tmp_path: Path) -> None:
    path, data = tmp_path / "lens.html", page_data({"": [written()]}, "test")
    write_page(path, data)
    write_page(path, data)
    assert path.read_text().startswith(MARK)
    path.write_text("mine")
    with pytest.raises(UserError, match="no page of the lens"):
        write_page(path, data)
    assert path.read_text() == "mine"
    with pytest.raises(UserError, match="is a folder"):
        write_page(tmp_path, data)
