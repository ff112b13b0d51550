"""Turns rows of text into prompt groups of tokens: special tokens, chat templates, length limits. Imports no torch.

A prompt is rendered once and never changes: whatever answers it, from the data or sampled, continues the same ids. Rows
ask for tokens by yielding texts, so that the texts of many rows go through one call of the tokenizer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from unified.chat import PLAIN_TEMPLATE as PLAIN_TEMPLATE
from unified.chat import Chat, Stretch, Tools
from unified.chat import tools_of as tools_of
from unified.collection import no_collection
from unified.data import Answer, Example, Message, PromptGroup, Text
from unified.edges import vocabulary_hash
from unified.errors import UserError
from unified.fit import Policy, TooLong, cut_answers, cut_left, overflow, shorter
from unified.left_out import Counts, Places, settled
from unified.tokens import Asking, Tokens, given

#: rows whose texts go through the tokenizer together
CHUNK = 1000

Done = Counter[str]


@dataclass
class _Row:
    """One row of an answer: the ids it continues, its own, where its gradient is (None: everywhere), how it reads."""

    context: list[int]
    ids: list[int]
    mask: list[bool] | None
    text: str


class Renderer:
    """Text to token ids, with one tokenizer.

    Args:
        tokenizer: a transformers tokenizer with an end-of-sequence token.
        max_length: longest prompt with answer, in tokens.
        eos_ids: further tokens that end a turn, as the generation configuration of a model lists them.
    Raises:
        UserError: the tokenizer has no end-of-sequence token.
    """

    def __init__(self, tokenizer: Any, max_length: int, eos_ids: Collection[int] = ()) -> None:
        if tokenizer.eos_token_id is None:
            raise UserError(
                "the tokenizer has no end-of-sequence token, so no answer could end",
                "set tokenizer.eos_token and save it beside the model",
            )
        self.tokenizer, self.max_length = tokenizer, max_length
        self.tokens = Tokens(tokenizer, eos_ids)
        self.chat = Chat(tokenizer, self.tokens.end_texts)

    @cached_property
    def vocabulary(self) -> str:
        """Hash of the tokenizer's vocabulary."""
        return vocabulary_hash(self.tokenizer)

    def prompt_ids(self, prompt: Text, tools: Tools | None = None) -> list[int]:
        """Token ids of a prompt, ready to be continued.

        Text gets the beginning-of-sequence token that the tokenizer itself would add, once. Messages go through the
        chat template (PLAIN_TEMPLATE where there is none) up to and with the opening of the assistant's turn; a
        template writes that token itself, or there is none. Empty for an empty text where the tokenizer adds nothing.
        """
        return self.tokens.alone(self._prompt(prompt, self.text(prompt, tools)))

    def answer_ids(self, prompt: Text, answer: str | Sequence[Message], tools: Tools | None = None) -> list[int]:
        """Token ids of an answer to that prompt, the end-of-sequence token last; never empty.

        After messages these are the tokens by which the rendered conversation is longer than the rendered prompt; what
        the template writes behind the token that ends the last turn (a line break) is left out, as in a sampled answer.

        Raises:
            ValueError: the chat template writes the prompt in another way once an answer follows, or rewrites its past.
        """
        rows, _ = self.tokens.alone(self._rows(prompt, answer, tools, self.text(prompt, tools)))
        if len(rows) > 1 or rows[0].context != self.prompt_ids(prompt, tools):
            raise ValueError("the answer does not continue the prompt: the chat template rewrites its past")
        return rows[0].ids

    def text(self, prompt: Text, tools: Tools | None = None) -> str:
        """The prompt as it reads: text as it is, messages as the chat template writes them."""
        return prompt if isinstance(prompt, str) else self.chat.text(prompt, tools, opening=True)

    def group(self, example: Example, *, row: int = -1, reserve: int = 0) -> PromptGroup:
        """One row as tokens.

        Args:
            example: the row; the tools of its column `tools` (JSON schemas, or their JSON text) go to the template.
            row: its number in the dataset, from 0; becomes the group's key.
            reserve: tokens to be kept free for a sampled answer; where it is not 0 the answers of the row do not count.
        Returns:
            The group. An answer whose conversation the template rewrites (it strips earlier reasoning, say) is several
            answers, one per turn of the assistant, with one `trajectory`: each stands behind what is served before that
            turn, of which the group's prompt is what all have in common.
        Raises:
            TooLong: prompt and longest answer (or reserve) have more than max_length tokens.
            ValueError: the template cannot write the row, or there is not one reward per answer.
        """
        return self.tokens.alone(self._fitted(example, row, reserve, "refuse"))[0]

    def groups(
        self, examples: Sequence[Example], *, numbers: Sequence[int], reserve: int = 0, too_long: Policy = "refuse"
    ) -> list[tuple[PromptGroup, Done] | ValueError]:
        """Rows of these numbers as `group` gives them, with what was done to each; or what it raises.

        A row over the limit is cut as too_long says; TooLong where that cannot be done. What is counted: render_rows.
        """
        rows = [self._fitted(one, row, reserve, too_long) for row, one in zip(numbers, examples, strict=True)]
        with no_collection():
            return self.tokens.together(rows)

    def _fitted(self, example: Example, row: int, reserve: int, policy: Policy) -> Asking[tuple[PromptGroup, Done]]:
        """A row, cut where it is too long and the policy says how."""
        group, done = yield from self._group(example, row, reserve)
        over = overflow(group, self.max_length, reserve)
        if over <= 0:
            return group, done
        too_long = TooLong(row, self.max_length + over, self.max_length)
        if policy == "cut_answer" and not reserve and cut_answers(group, self.max_length, self.tokens.decode):
            return group, done + Counter(cut_answer=1)
        if policy == "cut_prompt":
            for less in shorter(example, sampled=bool(reserve)):
                group, done = yield from self._group(less, row, reserve)
                over = overflow(group, self.max_length, reserve)
                if over <= 0:
                    return group, done + Counter(cut_prompt=1)
            if cut_left(group, over, self.tokenizer.bos_token_id, self.tokenizer.decode):
                return group, done + Counter(cut_prompt=1)
        raise too_long

    def _group(self, example: Example, row: int, reserve: int) -> Asking[tuple[PromptGroup, Done]]:
        """A row, however long it is, and what its template did to it."""
        sampled = self._sampled(example, row)
        if sampled is not None:
            return sampled, Counter()
        rewards = example.rewards if example.rewards is not None else [None] * len(example.answers)
        if len(rewards) != len(example.answers):
            raise ValueError(f"row {row} has {len(rewards)} rewards but {len(example.answers)} answers")
        tools = None if isinstance(example.prompt, str) else tools_of(example.columns)
        shown = self.text(example.prompt, tools)
        done: Done = Counter(tokens_left_out=1) if example.tokens is not None else Counter()
        if tools and shown == self.text(example.prompt):
            done["tools_left_out"] += 1
        columns = number_columns(example.columns)
        made: list[tuple[list[int], Answer]] = []  # what it continues, and the answer
        asked = yield from self.tokens.beside(
            [self._rows(example.prompt, answer, tools, shown) for answer in example.answers]
        )
        for k, (found, reward) in enumerate(zip(asked, rewards, strict=True)):
            rows, said = given(found)
            done += said
            name = f"{row}-{k}" if len(rows) > 1 else None
            for one in rows:
                new = Answer(one.ids, one.text, one.mask, reward, trajectory=name, columns=dict(columns))
                made.append((one.context, new))
        if made and not reserve:
            prompt = _in_common([context for context, _ in made])
        else:
            prompt = yield from self._prompt(example.prompt, shown)
        answers = [_behind(context[len(prompt) :], a) for context, a in made if context[: len(prompt)] == prompt]
        if len(answers) < len(made):  # where answers are sampled: these begin in another way than sampled ones do
            done["answers_left_out"] += len(made) - len(answers)
        turns = None if isinstance(example.prompt, str) else example.prompt
        return PromptGroup(prompt, answers, shown, dict(example.columns), row, turns), done

    def _sampled(self, example: Example, row: int) -> PromptGroup | None:
        """A row by the tokens that a model wrote; None where they are not there, or not those of this text."""
        tokens = example.tokens
        if tokens is None or tokens.vocabulary != self.vocabulary or tokens.digest != example.digest():
            return None
        rewards = example.rewards if example.rewards is not None else [None] * len(tokens.answers)
        if not len(rewards) == len(tokens.answers) == len(example.answers):
            return None
        tools = None if isinstance(example.prompt, str) else tools_of(example.columns)
        columns = number_columns(example.columns)
        answers = [
            replace(a, text=text if isinstance(text, str) else a.text, reward=r, columns=dict(columns))
            for a, text, r in zip(tokens.answers, example.answers, rewards, strict=True)
        ]
        turns = None if isinstance(example.prompt, str) else example.prompt
        shown = self.text(example.prompt, tools)
        return PromptGroup(list(tokens.prompt), answers, shown, dict(example.columns), row, messages=turns)

    def _prompt(self, prompt: Text, shown: str) -> Asking[list[int]]:
        (ids,) = yield [shown]
        return self.tokens.with_bos(ids) if isinstance(prompt, str) or self.chat.plain else list(ids)

    def _rows(
        self, prompt: Text, answer: str | Sequence[Message], tools: Tools | None, shown: str
    ) -> Asking[tuple[list[_Row], Done]]:
        """The rows of one answer to a prompt that reads `shown`, and what its template did to it."""
        if isinstance(prompt, str):
            if not isinstance(answer, str):
                raise ValueError("an answer of messages needs a prompt of messages")
            context = yield from self._prompt(prompt, shown)
            (ids,) = yield from self.tokens.behind([answer])
            return [_Row(context, [*ids, self.tokens.eos], None, answer)], Counter()
        turns = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
        stretches = self.chat.stretches(prompt, turns, tools, shown)
        rows = yield from self.tokens.beside([self._row(stretch) for stretch in stretches])
        done = Counter(
            cut_by_turn=int(len(stretches) > 1),
            opened_otherwise=sum(s.shared for s in stretches),
            words_put_back=sum(s.verbatim for s in stretches),
            words_left_out=sum(s.left_out for s in stretches),
        )
        return [given(row) for row in rows], +done

    def _row(self, stretch: Stretch) -> Asking[_Row]:
        """A stretch as tokens: the context as it is served, then what follows it in the whole.

        A token of the whole that stands across the end of the context is not there: what follows is then tokenised
        apart, as a sampled answer would be. A token across the edge of a later turn is learned if the turn has its
        first character.
        """
        context, whole = yield [stretch.before, stretch.whole]
        plain = len(context)
        if self.chat.plain:
            context, whole = self.tokens.with_bos(context), self.tokens.with_bos(whole)
        if stretch.shared:
            context = _in_common([context, whole])
        rest, begin = whole[len(context) :], len(stretch.before)
        continues = whole[: len(context)] == context
        if not continues:
            (rest,) = yield from self.tokens.behind([stretch.whole[begin:]])
        if len(stretch.said) == 1:
            return _Row(context, self.tokens.to_end(rest, add=True), None, stretch.text)
        edges = [place - begin for span in stretch.said for place in span]
        pieces = [stretch.whole[begin + a : begin + b] for a, b in pairwise(edges)]
        apart = yield from self.tokens.behind(pieces)
        if [token for ids in apart for token in ids] == rest:  # turn by turn is as the whole
            places = [sum(map(len, apart[:i])) for i in range(len(edges))]
        elif continues:
            found = self.tokens.places(stretch.whole, [begin + edge for edge in edges], lead=False)
            places = [place - plain for place in found]
        else:
            places = self.tokens.places(stretch.whole[begin:], edges, lead=True)
        return self._masked(context, rest, places, stretch.text)

    def _masked(self, context: list[int], rest: list[int], places: Sequence[int], text: str) -> _Row:
        """places: where the turns of the assistant begin and end in `rest`, in tokens."""
        ids, mask = list(rest[: places[0]]), [False] * places[0]
        for i in range(0, len(places), 2):
            last = i + 2 == len(places)
            turn = rest[places[i] : places[i + 1]]
            said = self.tokens.to_end(turn, add=last)
            following = [] if last else rest[places[i] + len(said) : places[i + 2]]
            ids += [*said, *following]
            mask += [*[True] * len(said), *[False] * len(following)]
        return _Row(context, ids, mask, text)


def _in_common(contexts: list[list[int]]) -> list[int]:
    """The ids with which all begin."""
    first, *others = contexts
    end = len(first)
    for other in others:
        if other[:end] != first[:end]:
            end = next(i for i in range(end) if other[i : i + 1] != first[i : i + 1])
    return first[:end]


def _behind(context: list[int], answer: Answer) -> Answer:
    """The answer with context in front of it that carries no gradient."""
    if not context:
        return answer
    mask = [False] * len(context) + (answer.loss_mask or [True] * len(answer.ids))
    return replace(answer, ids=[*context, *answer.ids], loss_mask=mask)


def number_columns(columns: Mapping[str, Any]) -> dict[str, float]:
    """The columns of a row that hold one number (or true, false), as floats."""
    return {name: float(value) for name, value in columns.items() if isinstance(value, (bool, int, float))}


def render_rows(
    renderer: Renderer,
    examples: Sequence[Example],
    *,
    needs_answers: int,
    too_long: Policy = "refuse",
    reserve: int = 0,
) -> tuple[list[PromptGroup], Counts]:
    """All rows as tokens, in order, and how many there were.

    Args:
        renderer: the tokenizer and the limit.
        examples: the rows; what their `counts` (where they have one) say of rows left out before is passed on.
        needs_answers: fewest answers a row must have; 0 for prompts alone.
        too_long: what to do with a row over the limit. "cut_prompt" takes a conversation's oldest turns, but keeps the
            system's where that suffices, and then (and of text) tokens from the left, but keeps a beginning token.
            "cut_answer" takes tokens from the right of an answer, which then has no end token. A row that even so does
            not fit is dropped: cut_prompt where the answer alone is too long, cut_answer where the prompt is, and
            where answers are sampled.
        reserve: tokens kept free for a sampled answer; then only the prompt counts.
    Returns:
        The groups (key: the row's number from 0), and `Counts` {"rows", "kept", "dropped_too_long"} with, where not 0,
        rows "cut_prompt" and "cut_answer"; answers "cut_by_turn", as the template rewrites its past; turns with
        "words_put_back" that the template leaves out, and with "words_left_out" that could not be put back; turns
        "opened_otherwise", written behind another opening than the one that is served (`<think>`, say); rows with
        "tools_left_out" by the template; and, where answers are sampled, "answers_left_out", which are such turns.
    Raises:
        UserError: no rows at all or none left; a row over the limit where too_long is "refuse"; a row with too few
            answers; a row whose rendering fails. Each names the row.
    """
    if not len(examples):
        raise UserError("the dataset has no rows", "give a file or a setting that leaves at least one")
    groups: list[PromptGroup] = []
    counts: Done = Counter(rows=len(examples), kept=0, dropped_too_long=0)
    places = Places()
    for first in range(0, len(examples), CHUNK):
        numbers = range(first, min(first + CHUNK, len(examples)))
        chunk = [examples[i] for i in numbers]
        made = renderer.groups(chunk, numbers=numbers, reserve=reserve, too_long=too_long)
        for row, example, one in zip(numbers, chunk, made, strict=True):
            group = settled(
                row, example, one, counts, places, needs_answers=needs_answers, too_long=too_long, reserve=reserve
            )
            if group is not None:
                groups.append(group)
    if not groups:
        raise UserError(
            f"all {len(examples)} rows have more than {renderer.max_length} tokens",
            "set a larger max_length, or other data",
        )
    counts["kept"] = len(groups)
    problems = [*getattr(examples, "problems", ()), *places.lines]
    return groups, Counts({**getattr(examples, "counts", {}), **counts}, problems)
