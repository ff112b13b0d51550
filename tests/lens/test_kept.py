"""Pictures kept while a stage trains: nothing else changes, a run cut off keeps the same, a slider shows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.lens.pictures import data_of, policy
from tests.tools import stage, train_settings
from unified import UserError
from unified.lens.command import Wish, find
from unified.lens.pack import page_data
from unified.lens.page import page
from unified.lens.read import LENS, pictures_of_run, read_pictures
from unified.loop import train
from unified.running import Run

ONLINE = {
    "algorithm": {"name": "grpo", "kl_weight": 0.01}, "data": {"name": "random_walks", "view": "prompts"},
    "reward": "random_walks", "source": {"group_size": 3, "max_tokens": 6}, "batch_size": 4, "learning_rate": 1e-2,
    "max_steps": 6,
}  # fmt: skip
PAIRS = {"algorithm": "dpo", "data": {"name": "random_walks", "view": "pairs"}, "batch_size": 4, "learning_rate": 1e-2,
         "max_steps": 6}  # fmt: skip
KEPT = {"lens_steps": 2, "lens_rows": 2}


class Cut(Exception):  # noqa: N818 - nothing went wrong
    """Raised by a test in the middle of a run."""


def trained(folder: Path, *, cut_at: int = 0, **written: Any) -> Run:
    """Train; cut_at: until the checkpoint of that step is written."""
    context = stage(folder, {"base": policy()})

    def notify(event: str, **told: Any) -> None:
        if event == "checkpoint_saved" and told["step"] == cut_at:
            raise Cut

    context.notify = notify
    return train(context, train_settings(**written))[0]


def weights(run: Run) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in run.roles.models["policy"].parameters()])


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if "second" not in k} for line in lines]


@pytest.mark.parametrize("written", [PAIRS, ONLINE], ids=["pairs", "online"])
def test_weights_and_metrics_are_those_of_a_run_without_pictures(tmp_path: Path, written: dict[str, Any]) -> None:
    plain, with_lens = trained(tmp_path / "a", **written), trained(tmp_path / "b", **written, **KEPT)
    assert torch.equal(weights(plain), weights(with_lens))
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    assert not (tmp_path / "a" / LENS).exists()
    pictures, unreadable = read_pictures(tmp_path / "b" / LENS)
    assert ([p.step for p in pictures], unreadable) == ([0, 2, 4, 6], 0)


@pytest.mark.parametrize("cut_at", [1, 3, 4])
def test_a_run_that_is_cut_off_keeps_the_same_pictures(tmp_path: Path, cut_at: int) -> None:
    written = {**ONLINE, **KEPT, "save_steps": 1}
    straight = trained(tmp_path / "a", **written)
    with pytest.raises(Cut):
        trained(tmp_path / "b", cut_at=cut_at, **written)
    with (tmp_path / "b" / LENS).open("a") as file:
        file.write('{"step": 99, "half')  # what came after the checkpoint, and was cut off in the middle
    again = trained(tmp_path / "b", **written)
    assert torch.equal(weights(again), weights(straight))
    assert (tmp_path / "a" / LENS).read_bytes() == (tmp_path / "b" / LENS).read_bytes()


def test_the_page_of_two_steps_has_both_with_the_same_prompts_and_what_changed(tmp_path: Path) -> None:
    two = {"name": "random_walks", "view": "pairs", "rows": 2}  # those of the pictures, so that each step is on them
    trained(tmp_path, **{**PAIRS, **KEPT, "data": two, "batch_size": 2, "learning_rate": 1e-3, "max_steps": 2})
    pictures, _ = read_pictures(tmp_path / LENS)
    data = data_of(page(page_data({"one": pictures}, "test")))
    (strip,) = data["strips"]
    first, second = strip["pictures"]
    assert (first["step"], second["step"]) == (0, 2)
    assert first["prompts"] == second["prompts"]  # one list in the pool
    assert [a["tokens"] for a in first["answers"]] == [a["tokens"] for a in second["answers"]]
    gc = [data["pool"][p["columns"][0]["heads"]["logp"]["gc"][0]][0] for p in (first, second)]
    assert gc[0] == pytest.approx(0.05, rel=1e-12)  # beta sigmoid(0), at the reference itself
    assert 0 < gc[1] < gc[0]  # the margin has grown
    kl = [p.columns[0].seen[0].fields["kl"][0] for p in pictures if p.columns[0].seen[0]]
    assert kl[0] == 0
    assert kl[1] != 0


def test_terms_with_rows_of_their_own_are_columns_of_their_own(tmp_path: Path) -> None:
    terms = [{"algorithm": "dpo"}, {"algorithm": "sft", "weight": 0.5, "data": "random_walks", "per_step": 2}]
    written = {k: v for k, v in PAIRS.items() if k != "algorithm"} | {"terms": terms, "max_steps": 1}
    trained(tmp_path, **written, lens_steps=1, lens_rows=1)
    picture = read_pictures(tmp_path / LENS)[0][0]
    assert [c.name for c in picture.columns] == ["dpo", "sft"]
    assert [[one is not None for one in c.seen] for c in picture.columns] == [[True, True, False], [False, False, True]]
    assert picture.columns[1].settings == {"weight": 0.5}
    assert picture.columns[1].sums("logp")["sum"] == pytest.approx(0.5, rel=1e-12)


def test_lines_that_are_no_pictures_are_counted_and_the_later_of_two_counts(tmp_path: Path) -> None:
    trained(tmp_path, **{**PAIRS, **KEPT, "max_steps": 2})
    path = tmp_path / LENS
    text = path.read_text()
    zero, two = text.splitlines()
    path.write_text(f'{text}{{"step": 3}}\nno json\n{zero}\n{two[:-9]}')
    pictures, unreadable = read_pictures(path)
    assert ([p.step for p in pictures], unreadable) == ([0], 2)
    assert read_pictures(tmp_path / "nothing") == ([], 0)


def test_a_run_without_pictures_says_how_to_get_some(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"run": "x", "stages": ["one"]}))
    with pytest.raises(UserError, match="lens_steps"):
        pictures_of_run(tmp_path)
    with pytest.raises(UserError, match="has kept pictures"):
        find(Wish(model=str(tmp_path)))
