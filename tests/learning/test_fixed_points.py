"""Learning, not only gradients: on tasks small enough to know the answer, coefficients lead where theory says.

The policies are tables of logits and the expectation over actions is exact, so there is no noise to hide behind. Facts:
the KL to the reference as k1 in the reward, or as k2 in the loss, has the fixed point π_ref e^{r/β} / Z; as k3 in the
loss it has another, β π_ref / (λ − r), because the gradient of k3 is that of the forward KL.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from unified import Batch, catalogue
from unified.coefficient import Term, coefficients
from unified.settings import parse

ACTIONS, BETA = 16, 0.5


def term(name: str, **written: Any) -> Term:
    part = catalogue().get("algorithm", name)
    settings, problems = parse(part.settings, written, owner=name)
    assert not problems, problems
    return Term(part, settings)


def bandit(**written: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient ascent on the exact Σ π(a) GC(a) ∇log π(a): the policy it ends at, the reward, and the reference."""
    torch.manual_seed(0)
    reward, reference = (
        torch.randn(ACTIONS, dtype=torch.float64),
        torch.randn(ACTIONS, dtype=torch.float64).log_softmax(0),
    )
    logits = reference.clone().requires_grad_()
    chosen = term("grpo", ratio="none", advantage={"name": "group", "std": "none"}, **{"kl_weight": BETA, **written})
    for _ in range(6000):
        logp = logits.log_softmax(0)
        now = logp.detach()[:, None]
        fields = {"logp": now, "old_logp": now, "ref_logp": reference[:, None], "reward": reward}
        mask = torch.ones(ACTIONS, 1, dtype=torch.bool)
        batch = Batch({**fields, "loss_mask": mask, "group": torch.zeros(ACTIONS, dtype=torch.long)})
        given = chosen.call("credit", batch=batch)
        batch = batch.plus(advantage=batch.expand(given["advantage"]))
        gc = coefficients(chosen, batch)["logp"][:, 0]
        (step,) = torch.autograd.grad((logp.exp().detach() * gc * logp).sum(), logits)
        logits.data += 0.5 * step
    return logits.detach().softmax(0), reward, reference.exp()


def gibbs(reward: Tensor, reference: Tensor) -> Tensor:
    return torch.softmax(reference.log() + reward / BETA, 0)


def forward_kl_point(reward: Tensor, reference: Tensor) -> Tensor:
    """β π_ref / (λ − r), λ by bisection so that it sums to 1."""
    low, high = float(reward.max()) + 1e-9, float(reward.max()) + 100.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (BETA * reference / (middle - reward)).sum() > 1 else (low, middle)
    return BETA * reference / (low - reward)


def variation(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().sum() / 2)


@pytest.mark.parametrize(
    "written",
    [{"kl": "k1", "kl_place": "reward"}, {"kl": "k1", "kl_place": "advantage"}, {"kl": "k2", "kl_place": "loss"}],
    ids=["k1 in the reward", "k1 in the advantage", "k2 in the loss"],
)
def test_the_reverse_kl_leads_to_the_gibbs_policy(written: dict[str, Any]) -> None:
    policy, reward, reference = bandit(**written)
    assert variation(policy, gibbs(reward, reference)) < 1e-3
    value = (policy * (reward - BETA * (policy / reference).log())).sum()
    assert float(value) == pytest.approx(float(BETA * torch.logsumexp(reference.log() + reward / BETA, 0)), abs=1e-4)


def test_k3_in_the_loss_leads_elsewhere_to_the_point_of_the_forward_kl() -> None:
    policy, reward, reference = bandit(kl="k3", kl_place="loss")
    assert variation(policy, forward_kl_point(reward, reference)) < 1e-3
    assert variation(policy, gibbs(reward, reference)) > 5e-3


def test_k1_in_the_loss_is_no_pull_at_all_in_expectation() -> None:
    # −β on every action: Σ π ∇log π = 0, so the policy goes where it would go without a KL
    policy, _, _ = bandit(kl="k1", kl_place="loss")
    without, _, _ = bandit(kl="k1", kl_place="loss", kl_weight=1e-12)
    assert variation(policy, without) < 1e-9
    assert float(policy.max()) > 0.99


def preferred(gap: Tensor, seed: int) -> Tensor:
    """Whether the first of each pair is preferred, drawn from the Bradley-Terry model."""
    return torch.rand(gap.shape, generator=torch.Generator().manual_seed(seed), dtype=gap.dtype) < torch.sigmoid(gap)


def test_tabular_preferences_recover_the_true_reward_up_to_a_constant_per_prompt() -> None:
    torch.manual_seed(1)
    prompts, answers, beta, pairs = 3, 5, 0.5, 60_000
    truth = torch.randn(prompts, answers, dtype=torch.float64)
    reference = torch.randn(prompts, answers, dtype=torch.float64).log_softmax(1)
    prompt = torch.randint(prompts, (pairs,))
    first, second = torch.randint(answers, (pairs,)), torch.randint(answers - 1, (pairs,))
    second = second + (second >= first)
    wins = preferred(truth[prompt, first] - truth[prompt, second], 2)
    rows, columns = prompt.repeat_interleave(2), torch.stack([first, second], 1).flatten()
    reward = torch.stack([wins, ~wins], 1).flatten().double()
    group = torch.arange(pairs).repeat_interleave(2)
    logits = reference.clone().requires_grad_()
    chosen = term("dpo", beta=beta)
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for _ in range(250):
        logp = logits.log_softmax(1)[rows, columns]
        fields = {
            "logp": logp.detach()[:, None],
            "ref_logp": reference[rows, columns][:, None],
            "reward": reward,
            "group": group,
        }
        batch = Batch({**fields, "loss_mask": torch.ones(2 * pairs, 1, dtype=torch.bool)})
        gc = coefficients(chosen, batch)["logp"][:, 0]
        optimizer.zero_grad()
        (-(gc * logp).sum() / pairs).backward()
        optimizer.step()
    implicit = beta * (logits.detach().log_softmax(1) - reference)
    for own, true in zip(implicit, truth, strict=True):
        assert float(torch.corrcoef(torch.stack([own, true]))[0, 1]) > 0.99


@pytest.mark.parametrize("answers", [2, 4], ids=["pairs", "rankings of four"])
def test_a_scalar_model_comes_within_a_point_of_the_bayes_ceiling(answers: int) -> None:
    # scores are linear in 8 features; labels are noisy, so the best accuracy is E max(σ(Δ), σ(−Δ))
    torch.manual_seed(3)
    width, prompts, held_out = 8, 4000, 40_000
    truth = torch.randn(width, dtype=torch.float64)
    features = torch.randn(prompts * answers, width, dtype=torch.float64)
    noise = -torch.log(
        -torch.log(torch.rand(prompts * answers, dtype=torch.float64))
    )  # Gumbel: rankings of Plackett-Luce
    reward = (features @ truth + noise).view(prompts, answers).argsort(1).argsort(1).flatten().double()
    group = torch.arange(prompts).repeat_interleave(answers)
    weights = torch.zeros(width, dtype=torch.float64, requires_grad=True)
    chosen = term("reward_model")
    optimizer = torch.optim.Adam([weights], lr=0.05)
    for _ in range(200):
        score = features @ weights
        fields = {"score": score.detach()[:, None], "reward": reward, "group": group}
        batch = Batch({**fields, "loss_mask": torch.ones(len(score), 1, dtype=torch.bool)})
        gc = coefficients(chosen, batch)["score"][:, 0]
        optimizer.zero_grad()
        (-(gc * score).sum() / prompts).backward()
        optimizer.step()
    a, b = torch.randn(2, held_out, width, dtype=torch.float64)
    gap = (a - b) @ truth
    wins = preferred(gap, 4)
    accuracy = float((((a - b) @ weights.detach() > 0) == wins).double().mean())
    ceiling = float(torch.sigmoid(gap.abs()).mean())
    assert abs(accuracy - ceiling) < 0.01
    assert ceiling < 0.95  # there is noise to be seen
