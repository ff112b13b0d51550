"""Answers for the next prompts of an online stream: asked for now, or sampled while the model learned before."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from unified.ahead import Ahead
from unified.data import PromptGroup
from unified.pushed_weights import policy_sampler, push_weights, sampler_with, together
from unified.stream import Sampler, Stream, pushes, seed_of

if TYPE_CHECKING:
    from unified.running import Run


def answered(run: Run, stream: Stream, n: int) -> list[PromptGroup]:
    """This process's share of the next n prompts with their answers. Every process calls it."""
    staleness = run.settings.max_staleness
    # where the rows that drive are not sampled nothing is asked for ahead, and weights are pushed as they change
    if staleness and pushes(run.settings.engine) and run.streams[0].online:
        driver = stream is run.streams[0]
        if driver and run.rollouts.taken != run.iteration:
            return _taken(run, stream, n, staleness)
        if run.rollouts.pushed is None:  # a run that goes on in the middle of a batch
            push_weights(run)
        # a refill, or rows of another term: other batches may be under way, so that weights stay as they are
        return _asked(run, stream, n, sampler_with(run, _place(run, stream, run.iteration)), ahead=driver)
    return _asked(run, stream, n, policy_sampler(run, _place(run, stream, run.iteration)))


def _place(run: Run, stream: Stream, batch: int) -> tuple[object, ...]:
    """What the seeds of a batch start from."""
    return "rollout", run.stage.seed, stream.label, batch


def _asked(run: Run, stream: Stream, n: int, sampler: Sampler, *, ahead: bool = False) -> list[PromptGroup]:
    """Answers with the weights that the engine holds. ahead: the prompts lie behind those that were drawn ahead.

    Then the position, which a checkpoint keeps, stays behind the batch that was taken: a run that goes on from there
    may see these prompts again.
    """
    before = stream.position
    stream.position = run.rollouts.position if ahead else before
    drawn = [replace(g, draw=number) for number, g in stream.draw(n)]
    here = (run.stage.seed, stream.label, run.iteration, stream.position)
    if ahead:
        run.rollouts.position = stream.position
        stream.position = before if run.rollouts.queue else stream.position
    work = partial(stream.collect, run.processes.mine(drawn), sampler, seed_of("source", *here))
    if not pushes(run.settings.engine):
        return work()
    return together(run, work) or []


def _taken(run: Run, stream: Stream, n: int, staleness: int) -> list[PromptGroup]:
    """The batch that was asked for ahead, and if it was the last of them the next ones are asked for."""
    rollouts = run.rollouts
    if not rollouts.queue:
        rollouts.position = stream.position
        _ask_ahead(run, stream, n, run.iteration, run.iteration + staleness)
    batch = rollouts.queue[0]
    groups = together(run, batch.result) or []
    rollouts.queue.popleft()
    rollouts.taken = run.iteration
    # behind the last one all that was drawn is done with, also what refills drew
    stream.position = batch.position if rollouts.queue else max(batch.position, rollouts.position)
    stream.left_out = dict(Counter(stream.left_out) + Counter(batch.left_out))
    age = run.iteration - batch.pushed.batch
    if batch.batch != run.iteration or not 0 <= age <= staleness:
        raise AssertionError(f"batch {batch.batch}, {age} behind, was taken in the place of {run.iteration}")
    run.add("staleness", float(age))
    if not rollouts.queue:
        _ask_ahead(run, stream, n, run.iteration + 1, run.iteration + staleness)
    return groups


def _ask_ahead(run: Run, stream: Stream, n: int, first: int, last: int) -> None:
    """Push the policy as it is, draw the prompts of some batches, and have them answered in a thread.

    Batches that the run will not get to, by its prompts or by its steps, are not asked for.
    """
    settings, rollouts = run.settings, run.rollouts
    sizes, step, left = [], run.step, run.total_prompts - rollouts.position
    whole = settings.collect_size or settings.batch_size
    for batch in range(first, last + 1):
        if batch > run.iteration:
            step += settings.inner_epochs * -(-n // settings.batch_size)
        size = n if batch == run.iteration else min(whole, left)
        if size <= 0 or (batch > run.iteration and step >= run.steps):
            break
        sizes.append((batch, size))
        left -= size
    if not sizes:
        return
    push_weights(run)
    pushed = rollouts.pushed
    assert pushed is not None
    before, left_out = stream.position, stream.left_out
    tokenizer = rollouts.copy_of(run.tokenizer)
    stream.position = rollouts.position
    batches = []
    for batch, size in sizes:
        stream.left_out = {}
        drawn = [replace(g, draw=number) for number, g in stream.draw(size)]
        sampler = replace(sampler_with(run, _place(run, stream, batch)), tokenizer=tokenizer)
        seed = seed_of("source", run.stage.seed, stream.label, batch, stream.position)
        work = partial(stream.collect, run.processes.mine(drawn), sampler, seed)
        batches.append(Ahead(batch, size, stream.position, stream.left_out, pushed, work))
    rollouts.position, stream.position, stream.left_out = stream.position, before, left_out
    rollouts.start(batches)
