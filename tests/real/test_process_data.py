"""A process reward model, trained on real labelled steps, finds the first wrong step of answers it has not seen."""

from __future__ import annotations

import math
from collections import Counter
from itertools import accumulate
from pathlib import Path

import pytest
import torch

from tests.tools import SHARED, stage, train_settings
from unified.data import PromptGroup
from unified.loop import train
from unified.models import Artifact, artifact_at, new_policy
from unified.settings import choose

pytestmark = [
    pytest.mark.slow,
    pytest.mark.real,
    pytest.mark.skipif(not (SHARED / "data").exists(), reason="the real data are not beside the checkout"),
]

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 1024,
}  # fmt: skip


def first_wrong(chances: list[float]) -> int | None:
    """The likeliest place of the first wrong step: right before it and wrong at it; None: all steps are right."""
    right = list(accumulate((math.log(max(c, 1e-9)) for c in chances), initial=0.0))
    each = [before + math.log(max(1 - c, 1e-9)) for before, c in zip(right, chances, strict=False)]
    best = max(range(len(each)), key=each.__getitem__)
    return best if each[best] > right[-1] else None


def test_the_likeliest_first_wrong_step_by_hand() -> None:
    assert first_wrong([0.9, 0.2, 0.9]) == 1  # 0.9 * 0.8 = 0.72 against 0.1, 0.018 and 0.162 for none
    assert first_wrong([0.9, 0.9]) is None  # 0.81 against 0.1 and 0.09
    assert first_wrong([0.1]) == 0


def labelled(group: PromptGroup) -> tuple[list[int], int | None]:
    """Tokens at which the steps end, and the first step that is wrong."""
    steps = group.answers[0].steps
    assert steps
    wrong = [i for i, (_, label) in enumerate(steps) if label < 0.5]
    return [end for end, _ in steps], wrong[0] if wrong else None


def test_the_first_wrong_step_is_found_more_often_than_the_commonest_answer_is_right(tmp_path: Path) -> None:
    tokenizer = artifact_at(SHARED / "models" / "tinyllamas-stories260k").tokenizer()
    base: Artifact = new_policy(dict(CONFIG), tokenizer, 0)
    data = {
        "name": "files",
        "path": str(SHARED / "data/process/big_bench_mistake.jsonl.gz"),
        "held_out": 0.3,
        "limit": 900,
    }
    settings = train_settings(
        algorithm="prm", data=data, num_train_epochs=4, batch_size=16, learning_rate=2e-3, lr_scheduler_type="cosine",
        too_long="drop", evaluation={"num_prompts": 1000},
    )  # fmt: skip
    run, _ = train(stage(tmp_path, {"base": base}), settings)
    stream = run.held_out[0]
    chosen, _ = choose("source", "step_ends")
    assert chosen is not None
    from unified.judges import Judge
    from unified.stream import NoSampler

    groups = stream.collect(list(stream.rows), NoSampler(run.tokenizer), 0)
    assert len(groups) > 100  # held-out rows that fit
    scores = Judge(run, "scorer", run.tokenizer).score_tokens(groups)
    found, truth = [], []
    for group, (of_answer,) in zip(groups, scores, strict=True):
        ends, wrong = labelled(group)
        chances = torch.sigmoid(torch.tensor([of_answer[end - 1] for end in ends])).tolist()
        found.append(first_wrong(chances))
        truth.append(wrong)
    right = sum(a == b for a, b in zip(found, truth, strict=True)) / len(truth)
    train_truth = Counter(
        labelled(g)[1] for g in run.streams[0].collect(list(run.streams[0].rows), NoSampler(run.tokenizer), 0)
    )
    commonest = train_truth.most_common(1)[0][0]
    majority = sum(t == commonest for t in truth) / len(truth)
    error = math.sqrt(right * (1 - right) / len(truth))
    print(f"first wrong step found {right:.3f}, commonest answer {majority:.3f}, error {error:.3f}, rows {len(truth)}")
    assert right > majority + 2 * error
