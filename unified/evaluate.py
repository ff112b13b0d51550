"""What is measured on held-out rows: the loss and metrics of the terms, and the reward of sampled answers."""

from __future__ import annotations

from dataclasses import replace
from statistics import pstdev

import torch

from unified.data import Sampling
from unified.guard import settle
from unified.pushed_weights import policy_sampler, push_weights, together
from unified.running import Run, forward, heads_without_gradient, tabulate
from unified.step import count, credit, look_ahead, score, weigh
from unified.stream import NoSampler, Stream


def evaluate(run: Run) -> dict[str, float]:
    """All measurements, by name with "eval/" in front. Leaves the random state and the running sums as they were."""
    assert run.settings.evaluation is not None
    if run.settings.evaluation.reward is not None:
        push_weights(run)  # now, so that what this measures is not of the evaluation
    sums, run.sums = run.sums, {}
    rewards: list[float] = []
    state = torch.get_rng_state()
    try:
        stream, judged = run.held_out
        if not stream.online:
            measure_rows(run, stream)
        if run.settings.evaluation.reward is not None:
            rewards = run.processes.lists(measure_answers(run, judged))
        totals = run.processes.totals(run.sums)
    finally:
        run.sums = sums
        torch.set_rng_state(state)
    out = {}
    for name, (value, number) in totals.items():
        if not name.startswith(("gc", "tokens")) and "/gc" not in name:
            out[f"eval/{name}"] = value / number if number else value
    if rewards:
        out["eval/answers"] = float(len(rewards))
        out["eval/reward_std"] = pstdev(rewards)  # exact, so that equal rewards have exactly none
    return out


@torch.no_grad()
def measure_rows(run: Run, stream: Stream) -> None:
    """Loss and metrics of the terms on held-out rows as they stand; the same verbs as in training, without a push."""
    assert run.settings.evaluation is not None
    wanted = min(run.settings.evaluation.num_prompts, len(stream.rows))
    groups = run.processes.mine(stream.collect(stream.rows[:wanted], NoSampler(run.tokenizer), 0))
    stream.judge(groups, run.guard.note)
    kept, counts = stream.select(groups)
    for name, number in counts.items():
        if number:
            run.add(f"dropped/{name}", number, 0.0)
    table = tabulate(run, stream, kept)
    score(run, table, several_steps=False)
    credit(run, table)
    work = count(run, table, list(range(len(table.rows))))
    look_ahead(run, work)
    micros = [m for p in work.passes for m in p]
    asks = run.asks(frozenset(h for t in stream.terms for h in t.heads))
    for k in range(run.processes.most(len(micros))):
        micro = micros[k] if k < len(micros) else []
        by_role = forward(run, table if micro else None, micro, asks)
        if micro:
            weigh(run, work, micro, {h: v for named in by_role.values() for h, v in named.items()})
    settle(run)


@torch.no_grad()
def measure_answers(run: Run, stream: Stream) -> list[float]:
    """Reward, length and KL to the reference of answers sampled for held-out prompts; this process's rewards."""
    wanted = run.settings.evaluation
    assert wanted is not None
    numbered = [replace(group, draw=number) for number, group in enumerate(stream.rows[: wanted.num_prompts])]
    prompts = run.processes.mine(numbered)
    place = ("evaluation", run.stage.seed)
    sampler = policy_sampler(run, place)
    how = Sampling(temperature=wanted.temperature, max_tokens=wanted.max_tokens)
    answers = together(run, lambda: sampler(prompts, wanted.samples, how)) or []
    groups = [replace(p, answers=a) for p, a in zip(prompts, answers, strict=True)]
    stream.judge(groups, run.guard.note)
    settle(run)
    rewards = []
    for group in groups:
        for answer in group.answers:
            if answer.total_reward is None:
                run.add("dropped/missing", 1.0, 0.0)
            else:
                rewards.append(float(answer.total_reward))
                run.add("reward", rewards[-1])
            run.add("length", len(answer.ids))
            run.add("clipped_ratio", float(answer.finish == "length"))
    if run.roles.has_reference and wanted.temperature == stream.temperature:  # log-probs are of one temperature
        table = tabulate(run, stream, groups)
        both = frozenset({"logp"})
        heads = heads_without_gradient(run, table, list(range(len(table.rows))), {"policy": both, "reference": both})
        gap = (heads["policy"]["logp"] - heads["reference"]["logp"]).sum(1)
        run.add("kl", float(gap.sum()), len(table.rows))
    return rewards
