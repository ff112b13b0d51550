"""The lens in a real browser: nothing is asked for, nothing fails, every number is there, by pointer and by keyboard.

Screenshots are left in the folder that UNIFIED_SCREENSHOTS names, for a person's eye; without, beside pytest's files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser import chromium
from tests.lens.pictures import group, nudged, picture, policy
from tests.lens.test_page import written
from tests.report.test_browser import Opened
from tests.report.test_page import EVIL
from unified.lens.pack import page_data
from unified.lens.page import write_page
from unified.lens.picture import Picture

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as made:
        yield made


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("UNIFIED_SCREENSHOTS") or tmp_path / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def opened(
    browser: Browser, path: Path, strips: dict[str, list[Picture]], *, scheme: str = "light", width: int = 1360
) -> Opened:
    write_page(path, page_data(strips, "test"))
    page = browser.new_page(
        viewport={"width": width, "height": 900}, color_scheme="dark" if scheme == "dark" else "light"
    )
    seen = Opened(page)
    page.on("console", lambda m: seen.trouble.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: seen.trouble.append(str(error)))
    page.on("dialog", lambda dialog: (seen.trouble.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: seen.asked.append(request.url) if request.url != path.as_uri() else None)
    page.goto(path.as_uri())
    page.wait_for_selector("article")
    return seen


def four() -> Picture:
    """Two prompts under four algorithms, some tokens clipped."""
    groups = [group(1.0, 1.0, 0.0), group(0.0, 1.0, key=1)]
    return picture("sft", "dpo", "grpo", "ppo", "tpo", groups=groups, reference=policy(1), old=nudged(7, 0.06))


@pytest.mark.parametrize("width", [1360, 420])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_token_has_a_number_for_every_algorithm_and_its_sign(
    browser: Browser, tmp_path: Path, screenshots: Path, scheme: str, width: int
) -> None:
    made = four()
    seen = opened(browser, tmp_path / "lens.html", {"": [made]}, scheme=scheme, width=width)
    page = seen.page
    page.screenshot(path=screenshots / f"lens-{scheme}-{width}.png", full_page=True)
    assert (seen.trouble, seen.asked) == ([], [])
    rows = sum(len(c.aggregation) for c in made.columns)
    assert page.locator("article").count() == 5
    assert page.locator(".lines td:not(.total)").count() == rows * sum(len(a.ids) for a in made.answers)
    assert all(text.startswith("+") for text in page.locator("td.up").all_text_contents())
    assert all(text.startswith("−") for text in page.locator("td.down").all_text_contents())
    cut = page.locator("td.cut").all_text_contents()
    assert len(cut) == sum(c.clipped for c in made.columns) > 0
    assert all("✂" in text for text in cut)
    assert "tpo" in page.locator("main").inner_text()  # says why it has no row
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_arrow_keys_go_from_number_to_number_and_tell_what_it_was_made_of(browser: Browser, tmp_path: Path) -> None:
    page = opened(browser, tmp_path / "lens.html", {"": [four()]}).page
    first = page.locator(".lines td").first
    first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    told = page.locator("#tip").inner_text()
    assert "dpo" in told
    assert "token 1" in told
    assert "reference log-prob" in told
    assert "old log-prob" not in told  # which it does not read
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.place.join()") == "1,0,0"  # the next answer
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()


def test_the_slider_goes_over_the_steps_and_the_scale_stays(browser: Browser, tmp_path: Path) -> None:
    pictures = [written(step, seed=step) for step in (0, 10, 20)]
    seen = opened(browser, tmp_path / "lens.html", {"one": pictures, "two": pictures[:2]})
    page = seen.page
    assert page.locator("#step").inner_text() == "step 0"
    before = page.locator("td.up").all_text_contents()
    page.locator("#slider").focus()
    page.keyboard.press("End")
    assert page.locator("#step").inner_text() == "step 20"
    assert page.locator("td.up").all_text_contents() != before
    assert page.locator("td.up").last.evaluate("e => e.style.getPropertyValue('--t')") == "100%"
    page.locator("#stage").select_option("1")
    assert page.locator("#step").inner_text() == "step 0"
    assert page.locator("td.up").all_text_contents() == before
    assert seen.trouble == []


def test_what_a_model_wrote_is_shown_as_text_and_never_run(browser: Browser, tmp_path: Path) -> None:
    made = four()
    made.prompts[0], made.notes, made.silent = EVIL, [EVIL], {EVIL: EVIL}
    for shown in made.answers:
        shown.tokens[0] = EVIL
    made.columns[0].name, made.columns[0].settings = EVIL, {EVIL: EVIL}
    seen = opened(browser, tmp_path / "lens.html", {EVIL: [made]})
    seen.page.locator(".lines td").first.focus()
    assert (seen.trouble, seen.asked) == ([], [])
    assert seen.page.locator("img").count() == 0
    assert "onerror=alert(2)" in seen.page.locator("pre").first.inner_text()


def test_algorithms_can_be_hidden_and_those_that_are_alike_shown_apart(browser: Browser, tmp_path: Path) -> None:
    made = picture("grpo", {"name": "grpo", "kl_weight": 0}, "sft")  # at the reference the KL pushes nothing
    page = opened(browser, tmp_path / "lens.html", {"": [made]}).page
    heads = page.locator("article").first.locator("tbody th")
    assert heads.all_text_contents() == ["grpo (defaults) = grpo (kl_weight=0.0)", "sft"]
    page.locator("#all").check()
    assert heads.all_text_contents() == ["grpo (defaults)", "grpo (kl_weight=0.0)", "sft"]
    page.get_by_role("button", name="sft").click()
    assert heads.count() == 2
    page.locator("#show").select_option("gc")
    # sqrt(3)/3
    assert page.locator("article").first.locator("td.up").first.inner_text() == "+0.58"
