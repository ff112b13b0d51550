"""The report in a real browser: nothing is asked for, nothing fails, every chart has its curves, in light and dark.

Screenshots are left in the folder that UNIFIED_SCREENSHOTS names, for a person's eye; without, beside pytest's files.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser import chromium
from tests.report.runs import chain, make_run, rows, sample
from tests.report.test_page import EVIL
from unified.report.command import write_report
from unified.report.watch import Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow
WIDTHS = (1360, 480)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as made:
        yield made


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("UNIFIED_SCREENSHOTS") or tmp_path / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@dataclass
class Opened:
    """A page that is open: what it complained about, and what it asked for besides itself."""

    page: Page
    trouble: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


def opened(browser: Browser, address: str, *, scheme: str = "light", width: int = 1360) -> Opened:
    page = browser.new_page(
        viewport={"width": width, "height": 900}, color_scheme="dark" if scheme == "dark" else "light"
    )
    seen = Opened(page)
    page.on("console", lambda m: seen.trouble.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: seen.trouble.append(str(error)))
    page.on("dialog", lambda dialog: (seen.trouble.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: seen.asked.append(request.url) if request.url != address else None)
    page.goto(address)
    page.wait_for_selector("#machine table")
    return seen


def charts(page: Page) -> dict[str, int]:
    """Points of every chart: of its curves, and single ones."""
    script = """figures => Object.fromEntries(figures.map(f => [f.dataset.chart,
      [...f.querySelectorAll('path.curve')].reduce((n, p) => n + (p.getAttribute('d').match(/[ML]/g) || []).length, 0)
      + f.querySelectorAll('circle').length]))"""
    return page.eval_on_selector_all("figure[data-chart]", script)


def broken_paths(page: Page) -> list[str]:
    """Shapes with a place that is no number."""
    return page.eval_on_selector_all(
        "svg *",
        "all => all.map(e => e.outerHTML).filter(t => /NaN|undefined|Infinity/.test(t)).map(t => t.slice(0, 200))",
    )


OVERLAPPING = """() => {
  const bad = [];
  for (const svg of document.querySelectorAll('figure svg')) {
    const texts = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
    for (let i = 0; i < texts.length; i++) for (let j = i + 1; j < texts.length; j++) {
      const [a, b] = [texts[i][1], texts[j][1]];
      const [wide, high] = [Math.min(a.right, b.right) - Math.max(a.left, b.left),
        Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top)];
      if (wide > 1 && high > 4)
        bad.push(svg.closest('figure').dataset.chart + ': ' + texts[i][0] + ' / ' + texts[j][0]);
    }
  }
  return bad;
}"""

CONTRAST = """() => {
  const rgb = text => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const line = v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = text => { const [r, g, b] = rgb(text).map(line); return .2126 * r + .7152 * g + .0722 * b; };
  const behind = e => { while (e && getComputedStyle(e).backgroundColor === 'rgba(0, 0, 0, 0)') e = e.parentElement;
    return e ? getComputedStyle(e).backgroundColor : 'rgb(255, 255, 255)'; };
  const worst = {};
  for (const e of document.querySelectorAll('h1, h2, h3, p, td, th, a, button, label, span, .note')) {
    if (!e.textContent.trim() || !e.getClientRects().length) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
    const key = e.tagName + '.' + e.className;
    worst[key] = Math.min(worst[key] ?? 99, (a + .05) / (b + .05));
  }
  return worst;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_report_opens_without_trouble_and_every_chart_has_its_points(
    browser: Browser, tmp_path: Path, screenshots: Path, scheme: str, width: int
) -> None:
    path = write_report([chain(tmp_path / "run")])
    seen = opened(browser, path.as_uri(), scheme=scheme, width=width)
    page = seen.page
    for axis in ("step", "tokens", "time"):
        page.select_option("#axis", axis)
        found = charts(page)
        # 40 steps of each stage; of an evaluation one row a stage
        assert found["loss"] == 40
        assert found["gc/abs"] == 80
        assert found["eval/reward"] == 1
        assert found["reward against kl"] == 80  # a curve of 40 and its dots
        assert min(found.values()) > 0
        assert len(found) >= 13
        assert broken_paths(page) == []
        assert page.evaluate(OVERLAPPING) == []
    page.fill("#smooth", "0.9")
    assert page.locator("path.raw").count() > 5
    assert broken_paths(page) == []
    assert min(page.evaluate(CONTRAST).values()) >= 4.5  # WCAG 2.1, level AA, for text
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing hangs over the edge
    page.screenshot(path=str(screenshots / f"report-{scheme}-{width}.png"), full_page=True)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(255, 255, 255)") == (scheme == "light")
    assert (seen.trouble, seen.asked) == ([], [])
    page.close()


def test_the_colours_can_be_switched_whatever_the_system_says(browser: Browser, tmp_path: Path) -> None:
    seen = opened(browser, write_report([chain(tmp_path / "run")]).as_uri(), scheme="dark")
    colours = []
    for _ in range(3):
        seen.page.click("#theme")
        colours.append(seen.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)")
    assert colours == [True, False, False]  # light, dark, as the system
    seen.page.close()


def test_values_under_the_pointer_samples_through_time_and_what_is_missing_are_said(
    browser: Browser, tmp_path: Path
) -> None:
    seen = opened(browser, write_report([chain(tmp_path / "run")]).as_uri())
    page = seen.page
    chart = page.locator("figure[data-chart='loss'] svg")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + 60)
    assert re.search(r"\d+ steps.*first, step \d+", page.inner_text("#tip").replace("\n", " "))
    assert "No KL was measured in first." in page.inner_text("#curves")
    assert "No KL was measured together with a reward in first." in page.inner_text("#frontier")
    assert "answer 40" in page.inner_text("#samples")
    page.fill("#sample-step", "0")
    assert "answer 1" in page.inner_text("#samples table")
    page.select_option("#sample-stage", index=0)
    assert "because" in page.inner_text("#samples table")
    page.click("button.chip:has-text('first')")
    assert charts(page)["gc/abs"] == 40
    assert "nothing to show" in page.inner_text("figure[data-chart='loss']")
    page.fill("#filter", "kl")
    assert {name for name in charts(page) if "against" not in name} == {"kl", "eval/kl"}
    assert "kl_weight" in page.inner_text("#settings") or page.select_option("#settings-stage", "second")
    assert "algorithm.kl_weight" in page.inner_text("#settings table")
    assert "gradient_spike" in page.inner_text("#warnings")
    assert "If it stays, lower learning_rate" in page.inner_text("#warnings")
    assert seen.trouble == []
    page.close()


def test_coefficients_lie_in_columns_of_bins_whose_shares_can_be_read(browser: Browser, tmp_path: Path) -> None:
    seen = opened(browser, write_report([chain(tmp_path / "run", steps=40)]).as_uri())
    page = seen.page
    assert page.locator("figure[data-bins='gc']").count() == 1
    # a column for each of 40 steps; in each the bins 14 and 20, and bin 8 in all but the last
    assert page.locator("figure[data-bins='gc'] rect.bin").count() == 3 * 40 - 1
    # step 1: 1, 10 and 39 of 50 tokens; bin 14 is zero, 20 is class 5: 10^-1 to 10^-0.5
    titles = page.eval_on_selector_all("figure[data-bins='gc'] rect.bin title", "all => all.map(e => e.textContent)")
    assert titles[:3] == [
        "step 1: −0.316 to −0.1, 78.0 % of 50 tokens", "step 1: 0, 2.0 % of 50 tokens",
        "step 1: 0.1 to 0.316, 20.0 % of 50 tokens",
    ]  # fmt: skip
    assert "No coefficients were counted in first." in page.inner_text("#coefficients")
    assert (seen.trouble, broken_paths(page)) == ([], [])
    page.close()


def test_texts_of_models_and_files_stay_texts(browser: Browser, tmp_path: Path) -> None:
    about = {"rows": [{"step": 1, EVIL: 1.0}], "samples": [sample(1, EVIL, EVIL, finish=EVIL)], "given": {EVIL: EVIL},
             "manifest": {"kind": EVIL, "versions": {EVIL: EVIL}, "summary": {"dropped_places": [EVIL]}}}  # fmt: skip
    seen = opened(browser, write_report([make_run(tmp_path / "run", {"one": about}, name=EVIL)]).as_uri())
    assert "</script><script>alert(1)</script><img src=x" in seen.page.inner_text("#samples")
    assert seen.page.locator("img").count() == 0
    assert (seen.trouble, seen.asked) == ([], [])
    seen.page.close()


@pytest.mark.parametrize(
    "stages",
    [{}, {"one": {}}, {"one": {"rows": []}}, {"one": {"rows": [{"step": 1, "loss": None}]}}],
    ids=["no stage", "nothing written", "no rows", "not finite"],
)
def test_a_run_with_nothing_to_draw_says_so_in_words(
    browser: Browser, tmp_path: Path, stages: dict[str, dict[str, object]]
) -> None:
    seen = opened(browser, write_report([make_run(tmp_path / "run", stages)]).as_uri())
    for part in ("curves", "frontier", "samples", "machine"):
        assert seen.page.locator(f"#{part} .empty").count() > 0, part
    assert (seen.trouble, charts(seen.page)) == ([], {})
    seen.page.close()


def test_a_comparison_of_long_runs_has_one_colour_a_run(browser: Browser, tmp_path: Path, screenshots: Path) -> None:
    long = rows(3000, of=["reward", "kl"])
    runs = [
        make_run(tmp_path / name, {"tune": {"rows": long, "given": {"learning_rate": rate}}}, name=name)
        for name, rate in (("slow", 1e-5), ("fast", 1e-3))
    ]
    seen = opened(browser, write_report(runs, tmp_path / "both.html").as_uri())
    page = seen.page
    curves = page.locator("figure[data-chart='reward'] path.curve")
    assert len({curves.nth(i).evaluate("e => getComputedStyle(e).stroke") for i in range(curves.count())}) == 2
    assert page.locator("figure[data-chart='reward'] path.band").count() == 2
    assert "mean of up to 3 rows" in page.inner_text("figure[data-chart='reward']")
    assert "learning_rate" in page.inner_text("#settings")
    assert page.inner_text("#settings tbody").split() == ["learning_rate", "1e-05", "0.001"]
    assert page.evaluate(OVERLAPPING) == []
    page.screenshot(path=str(screenshots / "comparison.png"), full_page=True)
    assert (seen.trouble, seen.asked) == ([], [])
    page.close()


def test_a_page_that_is_served_grows_with_its_run_and_says_when_nobody_answers(
    browser: Browser, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", {"tune": {"rows": rows(5)}})
    server = Server(run)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        seen = opened(browser, server.address)
        assert charts(seen.page)["loss"] == 5
        with (run / "tune" / "metrics.jsonl").open("a") as file:
            file.write("".join(json.dumps({"step": s, "loss": 0.5, "fresh": 1.0}) + "\n" for s in (6, 7)))
        seen.page.wait_for_selector("figure[data-chart='fresh'] path.curve", state="attached", timeout=15_000)
        assert charts(seen.page)["loss"] == 7
        assert seen.trouble == []
        assert {address.split("?")[0] for address in seen.asked} == {f"{server.address}changes"}
    finally:
        server.shutdown()
        thread.join(timeout=10)
        server.server_close()
    seen.page.wait_for_selector("#live.bad", timeout=15_000)
    assert "no answer from `unified watch`" in seen.page.inner_text("#live")
    seen.page.close()
