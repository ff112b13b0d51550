"""SFT: the token mean of the negative log-likelihood."""

from __future__ import annotations

import pytest
import torch

from tests.algorithms.batches import loss, mean_metrics, pushed, term
from unified import Batch

# three tokens count: log-probs -1, -2, -3
BATCH = Batch(
    {
        "logp": torch.tensor([[-1.0, -2.0], [-3.0, -50.0]], dtype=torch.float64),
        "loss_mask": torch.tensor([[True, True], [True, False]]),
    }
)


def test_every_token_of_the_step_is_pushed_by_one_over_their_number() -> None:
    wanted = torch.tensor([[1, 1], [1, 0]], dtype=torch.float64) / 3
    torch.testing.assert_close(pushed(term("sft"), BATCH)["logp"], wanted)


def test_the_loss_is_the_mean_over_tokens_in_nats() -> None:
    assert loss(term("sft"), BATCH) == pytest.approx(2.0)
    assert mean_metrics(term("sft"), BATCH) == {"logp": pytest.approx(-2.0)}
