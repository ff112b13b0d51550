"""A stranger's rule takes the place of a built-in one, with or without a closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unified import Chosen, Field, Rule, Settings, UserError
from unified_plugins.rules import apply


class SoftSettings(Settings):
    """Of a rule that no paper has."""

    power: float = Field(2.0, description="exponent of the ratio")


def soft(ratio: Tensor, advantage: Tensor, *, power: float) -> Tensor:
    """ratio^power advantage."""
    return ratio**power * advantage


def _offers(logp: Tensor) -> dict[str, Tensor]:
    return {"ratio": logp.exp(), "advantage": torch.tensor([3.0]), "logp": logp}


def test_a_rule_without_a_closed_form_is_differentiated() -> None:
    chosen = Chosen(Rule("soft", SoftSettings, of="ratio", value=soft), SoftSettings(power=2.0))
    # d/dx 3 e^(2x) = 6 e^(2x) = 6 at x = 0
    torch.testing.assert_close(apply.coefficient(chosen, _offers, torch.zeros(1), ascend=True), torch.tensor([6.0]))
    torch.testing.assert_close(apply.coefficient(chosen, _offers, torch.zeros(1), ascend=False), torch.tensor([-6.0]))


def test_a_rule_that_names_what_is_not_offered_is_told_what_is() -> None:
    def wrong(ratio: Tensor, reward: Tensor, *, power: float) -> Tensor:
        return ratio * reward * power

    with pytest.raises(UserError, match=r"(?s)asks for 'reward'.*advantage, logp, power, ratio"):
        apply.value(
            Chosen(Rule("wrong", SoftSettings, of="ratio", value=wrong), SoftSettings()), _offers(torch.zeros(1))
        )
