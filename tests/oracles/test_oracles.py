"""What other libraries compute, we compute: each case in `passing.txt`, and copies of ten for a lone checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.oracles.cases import FOLDER, Case, DiffersError, NotMappedError, load, names
from tests.oracles.table import check

HERE = Path(__file__).parent
PASSING = (HERE / "passing.txt").read_text().split()
COPIED = sorted((HERE / "copied").glob("*.json"))
needs_folder = pytest.mark.skipif(not FOLDER.exists(), reason="the oracle cases do not lie beside this checkout")


@needs_folder
@pytest.mark.parametrize("name", PASSING)
def test_our_numbers_are_those_of_the_peer(name: str) -> None:
    case = load(name)
    # every case holds three or four draws, those with whole models one
    assert check(case) == len(case.data["instances"]) >= (1 if case.data["family"] == "e2e" else 3)


@needs_folder
def test_the_folder_holds_every_case_that_must_pass() -> None:
    assert len(PASSING) >= 224
    assert sorted(set(PASSING) - set(names())) == []


@pytest.mark.parametrize("path", COPIED, ids=lambda p: p.stem)
def test_our_numbers_are_those_of_the_peer_in_the_copied_cases(path: Path) -> None:
    assert check(load(path)) == 1


def test_ten_cases_are_copied() -> None:
    assert len(COPIED) == 10


def _changed(**changes: object) -> Case:
    case = load(HERE / "copied" / "reward__trl_rm_bradley_terry.json")
    return Case(case.name, {**case.data, **changes})


def test_a_config_key_that_the_table_does_not_know_is_refused() -> None:
    case = _changed()
    with pytest.raises(NotMappedError, match="unknown config keys: flavour"):
        check(_changed(config={**case.data["config"], "flavour": 1}))


def test_an_expected_value_that_nothing_is_compared_with_is_refused() -> None:
    one = _changed().data["instances"][0]
    with pytest.raises(NotMappedError, match="nothing to compare with gcx"):
        check(_changed(instances=[{**one, "expected": {**one["expected"], "gcx": [1.0]}}]))


def test_a_number_off_by_a_millionth_is_noticed() -> None:
    one = _changed().data["instances"][0]
    with pytest.raises(DiffersError, match=r"seed 0: loss: largest difference 1\.\d*e-06"):
        check(_changed(instances=[{**one, "expected": {**one["expected"], "loss": one["expected"]["loss"] + 1.1e-6}}]))


def test_a_case_without_an_instance_is_no_success() -> None:
    with pytest.raises(DiffersError, match="no instance"):
        check(_changed(instances=[]))
