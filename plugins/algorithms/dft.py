"""DFT: imitation in which every token weighs by its own probability, so that unlikely ones do not dominate.

GC = p, the probability of the token under the policy, without gradient; loss = -p log p. All tokens of a step weigh the
same otherwise.
Use: demonstrations that are not the policy's own, where plain imitation fits rare tokens at the price of others.
Watch: `logp`: its mean improves mostly on tokens that were likely before; from random weights it learns slowly.
Source: Wu et al. 2025, arXiv:2508.05629.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from unified import Algorithm, Batch, Settings, hookimpl
from unified_plugins.algorithms import sft


class DFTSettings(Settings):
    """DFT has nothing to set."""


def coefficient(batch: Batch) -> Tensor:
    """The probability of each token, [batch, time]."""
    return batch.logp.exp()


def loss(batch: Batch) -> Tensor:
    """The weighted negative log-likelihood of each token, [batch, time]; the weight has no gradient."""
    return -batch.logp.detach().exp() * batch.logp


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer DFT to recipes as `algorithm: dft`."""
    (plain,) = sft.unified_algorithms()
    return [
        replace(plain, name="dft", settings=DFTSettings, coefficient=coefficient, loss=loss, reads=frozenset({"logp"}))
    ]
