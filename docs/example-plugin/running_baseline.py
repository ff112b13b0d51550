"""REINFORCE with a running baseline: the credit of an answer is its reward, less the mean reward of earlier batches.

GC = r - b for every token of an answer, b the exponential mean of the rewards of the batches before this one. Answers
are compared with the past and not with each other, so that one answer a prompt is enough.
Source: Williams 1992, Simple statistical gradient-following algorithms, section 4 (reinforcement comparison). The mean
is freed of its start at 0 as in Kingma and Ba 2015, arXiv:1412.6980, section 3.
"""

from torch import Tensor

from unified import Algorithm, Batch, Field, Settings, hookimpl

#: the version of the plugin contract that this was written for
unified_api = 1


class RunningBaselineSettings(Settings):
    """What a recipe may set."""

    memory: float = Field(0.9, ge=0, lt=1, description="share of the old mean that stays, per collected batch")


def initial_state(settings: RunningBaselineSettings) -> dict[str, float]:
    """Nothing has been seen: `sum` of weighed rewards, `weight` of all that were added."""
    return {"sum": 0.0, "weight": 0.0}


def baseline(state: dict[str, float]) -> float:
    """The mean so far, in units of reward; 0 before the first batch."""
    return state["sum"] / state["weight"] if state["weight"] else 0.0


def credit(batch: Batch, state: dict[str, float]) -> dict[str, Tensor]:
    """{"advantage": [batch]}, in units of reward."""
    return {"advantage": batch.total_reward - baseline(state)}


def coefficient(batch: Batch) -> Tensor:
    """GC of logp, [batch, time]; no current head is read, so it is known before the forward."""
    return batch.advantage


def loss(batch: Batch) -> Tensor:
    """The objective with its sign turned, [batch, time], to be minimised."""
    return -batch.advantage * batch.logp


def metrics(batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
    """The mean reward of the answers that count; `update` reads it."""
    return {"mean_reward": ((batch.total_reward * batch.counts).sum(), batch.counts.sum())}


def update(state: dict[str, float], totals: dict[str, float], settings: RunningBaselineSettings) -> dict[str, float]:
    """The next state; unchanged after a batch in which no answer counted."""
    if "mean_reward" not in totals:
        return state
    new = 1 - settings.memory
    return {
        "sum": settings.memory * state["sum"] + new * totals["mean_reward"],
        "weight": settings.memory * state["weight"] + new,
    }


@hookimpl
def unified_algorithms() -> list[Algorithm]:
    """Offer it to recipes as `algorithm: running_baseline`."""
    return [
        Algorithm(
            "running_baseline",
            RunningBaselineSettings,
            coefficient=coefficient,
            loss=loss,
            credit=credit,
            metrics=metrics,
            update=update,
            initial_state=initial_state,
            aggregation="sequence-sum",
            source="rollouts",
            reward="required",
        )
    ]
