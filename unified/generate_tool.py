"""The `generate` command: answers of a model to prompts, by the project's own rendering and rollout engine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unified.data import Answer, Example, PromptGroup, Sampling, Text
from unified.errors import Problem, UserError
from unified.recipe import paths_as_files
from unified.registry import call_named
from unified.settings import Chosen, Settings, choice, parse
from unified.tree import Node, Place, read_yaml

if TYPE_CHECKING:
    from unified.models import Artifact

#: prompts that are answered together
AT_ONCE = 64
#: longest answer where --max-tokens is not given, in tokens
LONGEST = 256


class Speaker:
    """A policy that answers text or conversations.

    A prompt is rendered as in training, and sampled by the engine of stages that name none. What it answers depends on
    the seed and the prompt, not on the other prompts.
    """

    def __init__(self, artifact: Artifact, *, seed: int = 0, engine: Chosen | None = None, fit: bool = False) -> None:
        """Load the model. UserError where it is none, or no policy.

        fit: an answer that would not fit behind its prompt ends where the model is full, in place of an error.
        """
        from accelerate import Accelerator

        from unified.precision import use_fast_float32
        from unified.set_up import make_renderer
        from unified.stream import Sampler

        device = Accelerator().device
        use_fast_float32(device)
        self.tokenizer = artifact.tokenizer()
        model = artifact.load("policy").requires_grad_(False).eval().to(device)
        self.renderer = make_renderer(self.tokenizer, {"policy": model}, None)
        self._sampler = Sampler(engine, model, self.tokenizer, 0, ("generate", seed))
        self.fit = fit

    @property
    def chats(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return getattr(self.tokenizer, "chat_template", None) is not None

    def rendered(self, prompt: Text) -> PromptGroup:
        """A prompt as the model gets it, and as it reads."""
        messages = None if isinstance(prompt, str) else prompt
        return PromptGroup(self.renderer.prompt_ids(prompt), text=self.renderer.text(prompt), messages=messages)

    def answer(
        self, prompts: Sequence[PromptGroup], sampling: Sampling, n: int = 1,
        told: Callable[[int, int, int], None] | None = None,
    ) -> list[list[Answer]]:  # fmt: skip
        """n answers to each rendered prompt. UserError for one without a token, or that leaves too little room.

        told: called with (number of the prompt, of the answer, token) while the answers are drawn.
        """
        rooms = [self._room(prompt, sampling.max_tokens) for prompt in prompts]
        answers: list[list[Answer]] = [[] for _ in prompts]
        for room in sorted(set(rooms)):  # each prompt by its own room: its answers do not depend on the other prompts
            here = [number for number, own in enumerate(rooms) if own == room]
            tell = _numbered(told, here) if told is not None else None
            made = replace(self._sampler, told=tell)([prompts[i] for i in here], n, replace(sampling, max_tokens=room))
            for number, own in zip(here, made, strict=True):
                answers[number] = own
        return answers

    def _room(self, prompt: PromptGroup, wanted: int) -> int:
        """How many tokens an answer may have, at most `wanted`. UserError where that does not fit."""
        length, limit = len(prompt.prompt), self.renderer.max_length
        if not length:
            raise UserError("the prompt has no tokens, so nothing can be sampled", "give a prompt with some text")
        if length + (1 if self.fit else wanted) > limit:
            may = "" if self.fit else f" and the answer may have {wanted}"
            hint = "give a shorter prompt" + ("" if self.fit else ", or a lower --max-tokens")
            raise UserError(f"the prompt has {length} tokens{may}, but the model holds {limit}", hint)
        return min(wanted, limit - length)


def _numbered(told: Callable[[int, int, int], None], numbers: Sequence[int]) -> Callable[[int, int, int], None]:
    """`told`, with the numbers of prompts as the caller counts them."""

    def tell(prompt: int, answer: int, token: int) -> None:
        told(numbers[prompt], answer, token)

    return tell


@dataclass(frozen=True)
class Asked:
    """A prompt as it reads with its answers, the number of its row in the data (None: given by hand)."""

    prompt: str
    answers: list[Answer]
    row: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """For a program: lengths in tokens, `logp` the sum over the tokens of an answer, in nats."""
        said = [
            {"text": a.text, "tokens": len(a.ids), "finish": a.finish, "logp": sum(a.sampling_logp or [])}
            for a in self.answers
        ]
        return {**({} if self.row is None else {"row": self.row}), "prompt": self.prompt, "answers": said}


def ask(
    speaker: Speaker, prompts: Sequence[str], sampling: Sampling, *, n: int = 1, plain: bool = False,
    system: str | None = None,
) -> Iterator[Asked]:  # fmt: skip
    """Answers to texts: as a user's message where the tokenizer has a chat template, unless `plain`."""
    chat = speaker.chats and not plain
    if system is not None and not chat:
        raise UserError("a system message needs a chat template, and not --plain")
    groups = [speaker.rendered(conversation(text, system) if chat else text) for text in prompts]
    for group, answers in zip(groups, speaker.answer(groups, sampling, n), strict=True):
        yield Asked(group.text, answers)


def conversation(text: str, system: str | None = None) -> list[Mapping[str, Any]]:
    """A user's message, behind a system message where there is one."""
    first = [{"role": "system", "content": system}] if system is not None else []
    return [*first, {"role": "user", "content": text}]


def ask_rows(
    speaker: Speaker, data: str, sampling: Sampling, *, n: int = 1, split: str = "train", rows: int | None = None
) -> Iterator[Asked]:
    """Answers to the prompts of a dataset (a name, a file, or its settings), the first `rows` of a split.

    UserError for data that cannot be read, and for a prompt that is too long.
    """
    examples = open_rows(data, split)
    number = len(examples) if rows is None else min(rows, len(examples))
    for start in range(0, number, AT_ONCE):
        numbers = range(start, min(start + AT_ONCE, number))
        chunk = [examples[i] for i in numbers]
        made = speaker.renderer.groups(chunk, numbers=numbers, reserve=1 if speaker.fit else sampling.max_tokens)
        groups = []
        for i, one in zip(numbers, made, strict=True):
            if isinstance(one, ValueError):
                raise UserError(f"row {i} of {data}: {one}", "lower --max-tokens, or leave the row out") from one
            groups.append(one[0])
        for i, group, answers in zip(numbers, groups, speaker.answer(groups, sampling, n), strict=True):
            yield Asked(group.text, answers, i)


class _Rows(Settings):
    data: Chosen = choice("dataset", description="whose prompts are answered")


def open_rows(data: str, split: str) -> Sequence[Example]:
    """The rows of a split of what a person wrote for a dataset. UserError with what is wrong."""
    problems: list[tuple[Place, Problem]] = []
    place = Place(f"--data {data}")
    root = Node({"data": read_yaml(data, str(place), problems, lines=False)}, place)
    root = paths_as_files(root, _Rows, Path.cwd())
    settings, found = parse(_Rows, root.plain(), owner="the command")
    problems += [(root.place_of(p.at), p) for p in found]
    if problems:
        raise UserError("\n".join(problem.text(str(at)) for at, problem in problems))
    part: Any = settings.data.part
    rows: Sequence[Example] = call_named(
        part.open, settings=settings.data.settings, split=split, seed=0, folder=Path.cwd()
    )
    return rows


def read_prompts(prompts: Sequence[str]) -> list[str]:
    """The prompts that were given, `-` for the text that stands on the standard input.

    Without any, that text, unless a person sits there. UserError where there is nothing to answer.
    """
    if not prompts and sys.stdin.isatty():
        raise UserError("there is no prompt", "give --prompt TEXT, --data FILE, or text on the standard input")
    read = [sys.stdin.read().rstrip("\n") if text == "-" else text for text in (prompts or ["-"])]
    if not all(read):
        raise UserError("the prompt is empty", "give --prompt TEXT, --data FILE, or text on the standard input")
    return read
