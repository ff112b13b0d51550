"""Sampling ahead: while the model learns from one collected batch, an engine elsewhere samples the next ones.

`max_staleness: k` bounds how many collected batches the policy may have learned from since the weights that answered.
When the last batch that was sampled ahead has been taken, nothing is under way: then the engine is given the policy as
it is, and the next k batches are asked for in a thread. With k = 1 every batch is one step behind (Noukhovitch et al.
2024, arXiv:2410.18252, section 3); with larger k batches are 1 to k behind, and weights are pushed every k batches.
The thread calls the source and the engine. It does nothing that other processes take part in, and never looks at
weights.
"""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any

from unified.data import PromptGroup


@dataclass(frozen=True)
class Pushed:
    """What the engine holds: version (optimiser steps), batch (collected batches done then), and its receipt."""

    version: int
    batch: int
    receipt: Any


class Outline:
    """What a thread may know of the policy while it learns: its configurations and vocabulary, and no weights."""

    def __init__(self, model: Any) -> None:
        self.config = copy.deepcopy(model.config)
        self.generation_config = copy.deepcopy(getattr(model, "generation_config", None))
        self.num_embeddings: int | None = getattr(model.get_input_embeddings(), "num_embeddings", None)

    def get_input_embeddings(self) -> Outline:
        """What has as many embeddings as the model."""
        return self


@dataclass
class Ahead:
    """A batch whose answers are asked for before they are needed.

    batch: its number. prompts: of all processes. position, left_out: of the stream once it is taken. pushed: the
    weights that answer. done: set when `groups` or `error` is there.
    """

    batch: int
    prompts: int
    position: int
    left_out: dict[str, int]
    pushed: Pushed
    work: Callable[[], list[PromptGroup]]
    done: threading.Event = field(default_factory=threading.Event)
    groups: list[PromptGroup] = field(default_factory=list)
    error: BaseException | None = None

    def run(self) -> None:
        """Ask for the answers; what is raised is kept for whoever takes the batch."""
        try:
            self.groups = self.work()
        except BaseException as error:
            self.error = error
        finally:
            self.done.set()

    def fail(self, error: BaseException) -> None:
        """Not to be asked for any more."""
        self.error = error
        self.done.set()

    def result(self) -> list[PromptGroup]:
        """The answers, once they are there; raises what was raised."""
        self.wait()
        if self.error is not None:
            raise self.error
        return self.groups

    def wait(self) -> None:
        """Until it is done. A signal is heard meanwhile."""
        while not self.done.wait(1.0):
            pass


@dataclass
class Rollouts:
    """What a run knows of an engine elsewhere. Nothing of it is in a checkpoint: a run that goes on pushes anew.

    pushed: what the engine holds; None before the first push. queue: batches asked for and not yet taken. position:
    rows of the stream that were drawn for them. taken: the number of the batch that was taken last. outline,
    tokenizer: what the engine sees instead of the model, and a copy for the thread; None until they are needed.
    stopped: the run has ended, nothing more is to be asked for.
    """

    pushed: Pushed | None = None
    queue: deque[Ahead] = field(default_factory=deque)
    position: int = 0
    taken: int = -1
    outline: Outline | None = None
    tokenizer: Any = None
    stopped: bool = False

    def outline_of(self, model: Any) -> Outline:
        """The outline of the run's policy, whose configuration stays as it is."""
        self.outline = self.outline or Outline(model)
        return self.outline

    def copy_of(self, tokenizer: Any) -> Any:
        """A copy of the run's tokenizer for the thread: tokenizers are not to be used by two at a time."""
        self.tokenizer = self.tokenizer or copy.deepcopy(tokenizer)
        return self.tokenizer

    @contextmanager
    def until_left(self) -> Iterator[None]:
        """Around the run: when it is left, by an error too, the thread asks for no further batch."""
        try:
            yield
        finally:
            self.stopped = True

    def wait(self) -> None:
        """Until nothing is under way. What was raised is told to whoever takes the batch."""
        for batch in self.queue:
            batch.wait()

    def start(self, batches: Sequence[Ahead]) -> None:
        """Ask for batches, one after the other, in a thread that does not keep the program alive.

        Behind one that failed none is asked for: the run ends there, with the same error.
        """
        self.queue.extend(batches)
        here = copy_context()

        def work() -> None:
            failed: BaseException | None = None
            for batch in batches:
                if failed is None and not self.stopped:
                    here.run(batch.run)
                    failed = batch.error
                else:
                    batch.fail(failed or RuntimeError("the run has ended"))

        threading.Thread(target=work, name="sampling ahead", daemon=True).start()
