"""The page of counts: its table says what the suites found, and a suite that did not run is no success."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.reliability.__main__ import BEGIN, END, PAGE, SUITES, count_programs, main, renewed, run_suite, table

FOUND: dict[str, dict[str, Any] | str] = {
    "kills": {"points": 3, "equal": 3, "by_place": {"in generation": {"points": 3, "equal": 3}}},
    "faults": {"faults": 2, "by_kind": {"reward": {"left out and counted": 2}}, "as_expected": 2},
    "hostile": {"recipes": {"tried": 2, "refused": 2}, "files": {"tried": 1, "taken": 1},
                "steps": {"tried": 1, "finite": 1}, "defects": 0},
    "sandbox": {"programs": 88, "held": 88},
}  # fmt: skip


def test_the_table_has_a_line_for_every_kind_and_says_whether_all_was_as_promised() -> None:
    made, good = table(FOUND)
    assert good
    assert "| killed in generation | 3 | 3 ended the same, bit for bit |" in made
    assert "| mutated recipes | 2 | 2 refused |" in made
    assert "| hostile programs | 88 | 88 held |" in made
    for name, broken in [
        ("kills", {"points": 3, "equal": 2, "by_place": {}}),
        ("faults", {"faults": 0, "by_kind": {}, "as_expected": 0}),
        ("hostile", {**FOUND["hostile"], "defects": 1}),  # type: ignore[dict-item]
        ("sandbox", {"programs": 88, "held": 87}),
        ("kills", "there is no tests/reliability/kills.py"),
    ]:
        assert not table({**FOUND, name: broken})[1]


def test_a_suite_that_is_missing_is_said_and_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_suite("nothing", short=True) == "there is no tests/reliability/nothing.py"
    assert main(["--short", "--only", "kills"], lambda name, short: f"{name} cannot run") == 1
    assert "| kills | not run | kills cannot run |" in capsys.readouterr().out


def test_in_short_or_in_part_the_page_stays_as_it_is() -> None:
    before = PAGE.read_text()
    assert main(["--short"], lambda name, short: FOUND[name]) == 0
    assert main(["--only", "kills"], lambda name, short: FOUND[name]) == 0
    assert PAGE.read_text() == before


def test_the_page_has_a_place_for_the_table_and_only_that_is_written_anew() -> None:
    page = PAGE.read_text()
    made = renewed(page, "TABLE")
    assert made.partition(BEGIN)[0] == page.partition(BEGIN)[0]
    assert made.partition(END)[2] == page.partition(END)[2]
    assert f"{BEGIN}\nTABLE\n{END}" in made
    with pytest.raises(ValueError, match="has no"):
        renewed("nothing", "TABLE")


def test_the_page_names_the_command_of_every_suite() -> None:
    page = PAGE.read_text()
    assert "make reliability" in page
    for name in SUITES:
        assert (f"tests.reliability.{name}" if name != "sandbox" else "test_sandbox.py") in page


def test_a_program_counts_as_held_where_every_test_of_it_passed(tmp_path: Path) -> None:
    (tmp_path / "r.xml").write_text(
        "<t><testcase name='test_x[crash]'/><testcase name='test_y[crash]'><failure/></testcase>"
        "<testcase name='test_x[fifo]'/><testcase name='test_x[other]'/>"
        "<testcase name='test_x[abort]'><skipped/></testcase></t>"
    )
    assert count_programs(tmp_path / "r.xml", {"crash", "fifo", "abort"}) == {"programs": 2, "held": 1}
    assert count_programs(tmp_path / "r.xml", {"abort"}) == "no sandbox can be had on this machine"
