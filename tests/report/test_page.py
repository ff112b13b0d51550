"""The page holds the data of runs, safely and within its size, whatever files and models wrote into them."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from tests.report.runs import chain, make_run, rows, sample
from unified import UserError
from unified.report.collect import page_data, run_of, written
from unified.report.command import after_run, write_report
from unified.report.page import SCRIPTS, embedded, page
from unified.report.stage import Limits

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2028{{script}}<!--\ud800"
LARGEST = 2_000_000


class Seen(HTMLParser):
    """Elements of a page, and the text of each script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.title = ""
        self._in = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in = tag
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self._in == "script":
            self.scripts[-1] += data
        elif self._in == "title":
            self.title += data

    def handle_endtag(self, tag: str) -> None:
        self._in = ""


def data_of(html: str) -> dict[str, Any]:
    """The data in a page, as its script reads them."""
    return json.loads(Seen(html).scripts[0])


def report(*runs: Path, output: Path | None = None) -> str:
    return write_report(runs, output).read_text(encoding="utf-8")


def test_what_models_and_files_wrote_is_data_and_never_a_part_of_the_page(tmp_path: Path) -> None:
    about = {"rows": [{"step": 1, EVIL: 1.0}], "samples": [sample(1, EVIL, EVIL, finish=EVIL)], "given": {EVIL: EVIL},
             "manifest": {"kind": EVIL, "versions": {EVIL: EVIL}, "summary": {"dropped_places": [EVIL]}}}  # fmt: skip
    plain, evil = make_run(tmp_path / "a", {"one": {}}), make_run(tmp_path / "b", {"one": about}, name=EVIL)
    seen = Seen(report(evil))
    assert [tag for tag, _ in seen.tags] == [tag for tag, _ in Seen(report(plain)).tags]
    assert len(seen.scripts) == 2
    shown = EVIL.replace("\ud800", "?")
    (stage,) = json.loads(seen.scripts[0])["runs"][0]["stages"]
    assert stage["samples"][0][1:3] == [shown, shown]
    assert "</script>" not in "".join(seen.scripts)
    assert seen.title.startswith("</script><script>alert(1)")  # as text


def test_embedded_data_hold_no_tag_and_are_read_back_as_they_were() -> None:
    value = {"<a>": ["</script>", "<!--", "ü\u2028", 1.5, None]}
    text = embedded(value)
    assert "<" not in text
    assert json.loads(text) == value


def test_the_page_names_no_other_place_and_its_policy_allows_only_its_own_style_and_script(tmp_path: Path) -> None:
    html = report(chain(tmp_path / "run"))
    seen = Seen(html)
    linked = [(k, v) for _, attrs in seen.tags for k, v in attrs.items() if k in ("src", "href", "action", "data")]
    assert linked == [("href", "data:,")]
    (policy,) = (a["content"] for t, a in seen.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert re.fullmatch(r"'sha256-[\w+/=]{44}'", rules["script-src"])
    assert re.fullmatch(r"'sha256-[\w+/=]{44}'", rules["style-src"])
    assert "connect-src" not in rules  # only a page that is served may ask its server
    names = {"http://www.w3.org/2000/svg"}  # a name, not an address that is asked
    assert set(re.findall(r"https?://[^\s\"'<>\\]+", html)) <= names


def test_the_script_never_makes_html_of_a_text() -> None:
    for name in SCRIPTS:
        script = resources.files("unified.report").joinpath(name).read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", script)
        assert len(script.splitlines()) < 400


def test_ten_thousand_steps_stay_under_two_megabytes(tmp_path: Path) -> None:
    names = [f"metric_{i}/of_a_part" for i in range(40)]
    many = rows(10_000, of=["reward", "kl", *names])
    texts = [sample(s, "why is that so? " * 30, "well, " * 300) for s in range(1, 10_001)]
    run = make_run(tmp_path / "run", {"tune": {"rows": many, "samples": texts}})
    html = report(run)
    assert len(html.encode()) < LARGEST
    (stage,) = data_of(html)["runs"][0]["stages"]
    group = next(g for g in stage["curves"]["groups"] if "reward" in g["series"])
    assert 900 < len(group["series"]["reward"]["mean"]) <= 1000
    assert stage["samples"][0][0] == 1
    assert stage["samples"][-1][0] == 10_000


def test_a_hundred_long_stages_stay_under_two_megabytes(tmp_path: Path) -> None:
    settings = {f"setting_{i}": "x" * 40 for i in range(80)}
    stage = {"rows": rows(300, of=[f"m{i}" for i in range(12)]), "samples": [sample(s, "p" * 900) for s in range(40)]}
    run = make_run(tmp_path / "run", {f"s{i}": {**stage, "given": settings} for i in range(100)})
    html = report(run)
    assert len(html.encode()) < LARGEST
    (shown,) = data_of(html)["runs"]
    assert len(shown["stages"]) == 100
    assert shown["stages"][0]["settings_left_out"] > 0  # said on the page


def test_a_stage_tells_its_state_its_settings_and_what_it_came_from(tmp_path: Path) -> None:
    run = chain(tmp_path / "run")
    (run / "second" / "manifest.json").unlink()
    about = json.loads((run / "run.json").read_text())
    about["stages"].append("third")
    (run / "run.json").write_text(json.dumps(about))
    first, second, third = run_of(run)["stages"]
    assert [s["state"] for s in (first, second, third)] == ["done", "cut off", "to do"]
    assert (first["what"], second["what"]) == ("imitate", "walk")
    assert (first["inputs"], second["inputs"]) == (["base"], ["stage:first"])  # the second from its settings
    assert first["data"] == ["walks"]
    assert ["learning_rate", "0.001"] in first["settings"]
    assert "learning_rate" in first["given"]
    assert first["speed"] == {"tokens": 4000, "seconds": 80, "mean": 50, "median": 50}  # 40 steps of 100 tokens in 2 s
    assert ["torch", "2.13.0"] in first["facts"]
    assert ["KL", "KL"] in first["missing"]
    assert [f["kl"] for f in second["frontier"]] == ["kl", "eval/kl"]


def test_a_stage_of_a_round_has_the_settings_of_its_block() -> None:
    block = {"repeat": 2, "stages": {"tune": {"learning_rate": 0.5}}}
    about = {"resolved": {"defaults": {"batch_size": 8}, "stages": {"loop": block}}}
    assert written(about, "loop.2.tune") == {"batch_size": 8, "learning_rate": 0.5}


def test_warnings_are_those_of_the_log_by_kind_with_what_to_do(tmp_path: Path) -> None:
    said = {"stage": "a", "kind": "repetition", "message": "answers repeat themselves", "remedy": "Punish"}
    told = [said | {"step": 3}, said | {"step": 3, "kind": "no_spread"}, said | {"step": 9, "message": "more"}]
    run = make_run(tmp_path / "run", {"a": {"rows": rows(9), "warnings": told}, "b": {"rows": rows(2)}})
    with (run / "a" / "warnings.jsonl").open("a") as file:
        file.write('[]\n{"half')  # the first is no warning; the second is being written
    a, b = run_of(run)["stages"]
    assert a["warnings"] == [
        ["repetition", "answers repeat themselves", 2, 3, 9, "Punish"],
        ["no_spread", "answers repeat themselves", 1, 3, 3, "Punish"],
    ]
    assert ["lines of warnings.jsonl that cannot be read", 1] in a["counts"]
    assert b["warnings"] == []


def test_histograms_of_coefficients_are_sums_of_neighbouring_rows_in_thousandths(tmp_path: Path) -> None:
    bins = [{"step": s, "gc": [[14, 1], [20, 2]], "gc_value": [[15, s]]} for s in range(1, 5)]
    bins[3]["gc"] = [[20, 4]]
    run = make_run(tmp_path / "run", {"a": {"rows": rows(4), "bins": [*bins, {"step": 5, "gc_value": "no"}]}})
    (stage,) = run_of(run, Limits(columns=2))["stages"]
    gc, value = stage["coefficients"]
    # two rows each: 2 of 6 and 4 of 6; then 1 of 7 and 6 of 7
    shares = [[14, 333, 20, 667], [14, 143, 20, 857]]
    assert gc == {"name": "gc", "first": [1, 3], "last": [2, 4], "numbers": [6, 7], "shares": shares}
    assert (value["last"], value["numbers"]) == ([2, 4], [3, 7])
    assert ["lines of coefficients.jsonl that cannot be read", 1] in stage["counts"]  # step 5


def test_an_error_of_a_stage_is_shown_until_it_is_done(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"one": {"rows": rows(2)}})
    (run / "one" / "error.log").write_text("ValueError: no\n")
    assert run_of(run)["stages"][0]["error"] == "ValueError: no"


def test_several_runs_are_compared_under_names_that_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    a, b = chain(tmp_path / "a"), chain(tmp_path / "b")
    other = chain(tmp_path / "c", name="other")
    path = write_report([a, b, other, a])  # one that is named twice is one
    assert path == Path("comparison.html")
    data = data_of(path.read_text(encoding="utf-8"))
    assert [run["label"] for run in data["runs"]] == [f"demo ({a})", f"demo ({b})", "other"]
    assert data["metrics"]["eval/kl"] == ["KL", "nats per answer"]
    assert not (a / "report.html").exists()


def test_a_report_replaces_an_earlier_one_and_nothing_else(tmp_path: Path) -> None:
    run = chain(tmp_path / "run")
    assert write_report([run]) == run / "report.html"
    assert write_report([run]) == run / "report.html"
    mine = tmp_path / "mine.html"
    mine.write_text("<p>my own page</p>")
    with pytest.raises(UserError, match="is no report"):
        write_report([run], mine)
    assert mine.read_text() == "<p>my own page</p>"
    with pytest.raises(UserError, match="is a folder"):
        write_report([run], tmp_path)


@pytest.mark.parametrize("stages", [None, "one", ["../../etc"], ["a/b"], [3], ["a..b"], [""]])
def test_a_folder_whose_stages_are_no_names_is_refused(tmp_path: Path, stages: Any) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"run": "x", "stages": stages}))
    with pytest.raises(UserError, match="does not name its stages"):
        run_of(tmp_path)


def test_an_empty_or_strange_manifest_is_no_reason_to_fail(tmp_path: Path) -> None:
    strange: list[Any] = ["{}", "[]", "{", '{"settings": 3, "summary": [], "inputs": "x", "seconds": "long"}']
    for number, text in enumerate(strange):
        run = make_run(tmp_path / f"run{number}", {"one": {"rows": rows(2)}})
        (run / "one" / "manifest.json").write_text(text)
        assert page(page_data([run_of(run)]))


def test_the_end_of_a_run_says_where_its_report_is_or_why_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    run = chain(tmp_path / "run")
    after_run(run, said.append)
    assert said == [f"Report: {run / 'report.html'}"]
    after_run(tmp_path, said.append)  # a run that never began
    assert len(said) == 1

    def broken(*_: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("unified.report.command.run_of", broken)
    after_run(run, said.append)
    assert said[1] == f"no report was written: ZeroDivisionError: oh; `unified report {run}` tries it again"
