"""Signs that training goes wrong, read from the metrics of a stage: each is told once, until it has gone again.

A sign names what is seen, what has been published against it, and where. Thresholds were tried on the metrics of the
mini runs of the recipes, which do well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

#: collected batches in a row that must show a sign, so that one unlucky batch is none
PATIENCE = 3
#: batches, or steps, that medians are of; fewer than half of it say nothing yet
WINDOW = 40
#: nats per token, mean of -log p of sampled answers: 98 % of the mass on what was taken. Without a counterforce the
#: entropy goes to 0 and the gains end there (Cui et al. 2025, arXiv:2505.22617, figure 1); mini runs end near 0.1
LOW_ENTROPY = 0.02
#: nats per token. Of a policy that has lost the text of its reference, not of one that has learned a task: mini runs
#: that do well reach 2.2; a uniform choice among 50,000 tokens is at most 10.8 away
LARGE_KL = 4.0
#: times the median of the batches before, and the nats per token that a KL must have for it
KL_FACTOR, SOME_KL = 10.0, 1.0
#: times the median of the batches before, with at least this share of the answers cut off, and this many tokens longer
LENGTH_FACTOR, LENGTH_CUT_OFF, LENGTH_MORE = 1.5, 0.5, 16.0
#: share of answers that are cut off when all are; shorter ones than so many tokens may be meant to have one length
ALL_CUT_OFF, SHORT = 0.99, 16.0
#: share of answers whose judgement failed. What fails is seldom a random choice of the answers
MANY_MISSING = 0.1
#: share of the 4-grams of an answer that stood in it before, the measure of Welleck et al. 2019 (arXiv:1908.04319): a
#: text that says everything twice has half of them
MUCH_REPEATED = 0.5
#: times the median norm, and times the largest of the window: reward models that fit their pairs have norms with a long
#: tail. Of 149 mini runs that do well two have such steps, of 30 and 43 medians
SPIKE_FACTOR, SPIKE_OVER_LARGEST = 20.0, 2.0

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Sign:
    """A kind of trouble: what was seen, with what to do and who has published it."""

    kind: str
    message: str
    values: Mapping[str, float]


@dataclass
class Watch:
    """What a stage has shown so far.

    judged: whether the reward is to move the policy; without, groups without spread are nothing to tell. history: the
    values before, by metric. streak: batches in a row that showed a sign. active: signs that are told and not gone.
    told: how often each was.
    """

    judged: bool = True
    history: dict[str, list[float]] = field(default_factory=dict)
    streak: dict[str, int] = field(default_factory=dict)
    active: dict[str, bool] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)

    def look(self, metrics: Metrics) -> list[Sign]:
        """Signs that begin with this collected batch."""
        found = []
        for kind, see in SIGNS.items():
            seen = see(self, metrics)
            if seen is None:  # this batch cannot tell
                continue
            message, values = seen
            self.streak[kind] = self.streak.get(kind, 0) + 1 if message else 0
            if self._begins(kind, self.streak[kind] >= PATIENCE):
                found.append(Sign(kind, message, values))
        for name in ("kl", "completions/mean_length"):
            if name in metrics and not any(self.streak.get(k) for k in _OF[name]):  # trouble is no measure of trouble
                self._remember(name, metrics[name])
        return found

    def gradient(self, name: str, norm: float, limit: float) -> Sign | None:
        """The gradient norm of one optimiser step: a sign where it leaps over the limit and far over those before.

        limit: the norm at which it is clipped; leaps below it change no step.
        """
        before = self.history.get(name, [])
        usual = median(before) if before else 0.0
        leaps = (
            len(before) >= WINDOW // 2
            and norm > max(SPIKE_FACTOR * usual, SPIKE_OVER_LARGEST * max(before))
            and norm > limit
        )
        begins = self._begins(f"gradient_spike/{name}", leaps)
        self._remember(name, norm)
        if not begins:
            return None
        factor = norm / usual if usual else float("inf")
        message = (
            f"{name} is {norm:.3g}, {factor:.3g} times the median of the last {len(before)} steps. If it stays, or the "
            "loss leaps with it, go back to a checkpoint before it and leave out some batches (Chowdhery et al. 2022, "
            "arXiv:2204.02311, section 5.1), or lower learning_rate or max_grad_norm"
        )
        return Sign("gradient_spike", message, {"norm": norm, "factor": factor})

    def before(self, name: str) -> float | None:
        """The median of a metric so far; None while there are too few."""
        values = self.history.get(name, [])
        return median(values) if len(values) >= WINDOW // 4 else None

    def _remember(self, name: str, value: float) -> None:
        self.history[name] = [*self.history.get(name, []), float(value)][-WINDOW:]

    def _begins(self, kind: str, seen: bool) -> bool:
        begins = seen and not self.active.get(kind, False)
        self.active[kind] = seen
        if begins:
            self.told[kind.partition("/")[0]] = self.told.get(kind.partition("/")[0], 0) + 1
        return begins

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"history": {k: list(v) for k, v in self.history.items()}, "streak": dict(self.streak),
                "active": dict(self.active), "told": dict(self.told)}  # fmt: skip

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint kept."""
        self.history = {k: list(v) for k, v in state["history"].items()}
        self.streak, self.active, self.told = dict(state["streak"]), dict(state["active"]), dict(state["told"])


#: what a sign sees in the metrics of a batch: a message ("" where all is well) and numbers, or None: it cannot tell
Seen = tuple[str, dict[str, float]] | None


def low_entropy(watch: Watch, metrics: Metrics) -> Seen:
    """The policy has no choice left."""
    value = metrics.get("completions/nats")
    if value is None:
        return None
    message = (
        f"the policy samples almost without choice: {value:.3g} nats per token. If the reward is not as high as it can "
        "be, it explores no more: pay for entropy, widen the upper clip (Yu et al. 2025, arXiv:2503.14476, "
        "section 3.1), hold back tokens of high covariance (Cui et al. 2025, arXiv:2505.22617), or raise temperature"
    )
    return (message if value < LOW_ENTROPY else "", {"nats": value})


def no_spread(watch: Watch, metrics: Metrics) -> Seen:
    """No group has two rewards that differ."""
    value = metrics.get("frac_reward_zero_std")
    if value is None or not watch.judged:
        return None
    message = (
        "every answer of a prompt has the same reward, in all groups: there is nothing to learn from them. Sample "
        "others in their place (dynamic sampling: a filter of groups without spread, and `refill`; Yu et al. "
        "2025, arXiv:2503.14476, section 3.2), or take prompts that are neither solved nor out of reach"
    )
    return (message if value >= 1.0 else "", {"share": value})


def nothing_learned(watch: Watch, metrics: Metrics) -> Seen:
    """No optimiser step took place."""
    value = metrics.get("steps_skipped", 0.0)
    message = (
        "no optimiser step took place: no answer of the batch counted. See dropped/... and nonfinite/... in the "
        "metrics; filters that drop every group need `refill`, or other prompts (dynamic sampling: Yu et al. "
        "2025, arXiv:2503.14476, section 3.2)"
    )
    return (message if value > 0 else "", {"steps": value})


def large_kl(watch: Watch, metrics: Metrics) -> Seen:
    """The policy is far from its reference."""
    value = metrics.get("kl")
    if value is None:
        return None
    usual = watch.before("kl")
    leaps = usual is not None and value > max(KL_FACTOR * usual, SOME_KL)
    message = (
        f"the policy is {value:.3g} nats per token from its reference"
        + (f"; the median before was {usual:.3g}" if leaps else "")
        + ". Rewards of a model mean little out there (Gao et al. 2023, arXiv:2210.10760): raise the KL weight, let a "
        "controller hold a target (Ziegler et al. 2019, arXiv:1909.08593, section 2.2), or lower learning_rate"
    )
    return (message if leaps or value > LARGE_KL else "", {"kl": value})


def length_runs_away(watch: Watch, metrics: Metrics) -> Seen:
    """Answers grow into the limit."""
    value, cut = metrics.get("completions/mean_length"), metrics.get("completions/clipped_ratio", 0.0)
    if value is None:
        return None
    usual = watch.before("completions/mean_length")
    grown = usual is not None and value > max(LENGTH_FACTOR * usual, usual + LENGTH_MORE)
    message = (
        f"answers run into the longest length: {value:.4g} tokens, the median before was {usual or 0.0:.4g}, and "
        f"{cut:.0%} are cut off. Punish the last tokens before the limit and leave cut-off answers out (Yu et "
        "al. 2025, arXiv:2503.14476, section 3.4), weigh tokens without a mean over each answer's length (Liu et al. "
        "2025, arXiv:2503.20783, section 3), or raise max_tokens"
    )
    return (message if grown and cut >= LENGTH_CUT_OFF else "", {"length": value, "cut_off": cut})


def all_cut_off(watch: Watch, metrics: Metrics) -> Seen:
    """No answer ends by itself."""
    cut, length = metrics.get("completions/clipped_ratio"), metrics.get("completions/mean_length", 0.0)
    if cut is None:
        return None
    message = (
        f"all answers are cut off, after {length:.4g} tokens: none ends by itself, and nobody knows how they would. "
        "Raise max_tokens, punish length softly before it (Yu et al. 2025, arXiv:2503.14476, section 3.4), or "
        "see whether the chat template and the end-of-sequence token are those the model was trained with"
    )
    return (message if cut >= ALL_CUT_OFF and length >= SHORT else "", {"cut_off": cut, "length": length})


def many_missing(watch: Watch, metrics: Metrics) -> Seen:
    """Judgements fail."""
    value = metrics.get("missing_share", 0.0)
    message = (
        f"{value:.0%} of the answers could not be judged and are left out. What cannot be judged is seldom a random "
        "choice: the policy learns to be judged, not to be right. The first reason stands in the metrics' step; see "
        "the reward's limits and its server (docs/data.md, and `max_missing`)"
    )
    return (message if value >= MANY_MISSING else "", {"share": value})


def repeats_itself(watch: Watch, metrics: Metrics) -> Seen:
    """Answers go round in circles."""
    value = metrics.get("completions/repeated")
    if value is None:
        return None
    message = (
        f"answers repeat themselves: {value:.0%} of their 4-grams stood in them before. Punish "
        "repeated n-grams (Yeo et al. 2025, arXiv:2502.03373, appendix C.2), or unlearn them (unlikelihood, Welleck "
        "et al. 2019, arXiv:1908.04319)"
    )
    return (message if value >= MUCH_REPEATED else "", {"repeated": value})


#: kind -> what it looks for
SIGNS: dict[str, Callable[[Watch, Metrics], Seen]] = {
    "entropy_collapse": low_entropy,
    "no_spread": no_spread,
    "nothing_learned": nothing_learned,
    "kl_blow_up": large_kl,
    "length_run_away": length_runs_away,
    "all_cut_off": all_cut_off,
    "rewards_missing": many_missing,
    "repetition": repeats_itself,
}
#: metric with a median -> the signs that must not be there for a value to enter it
_OF = {"kl": ("kl_blow_up",), "completions/mean_length": ("length_run_away",)}
#: every kind of warning there is
KINDS = (*SIGNS, "gradient_spike", "nonfinite")
