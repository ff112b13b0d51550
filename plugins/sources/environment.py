"""Episodes of several turns with an environment, which answers the assistant and may offer it tools.

The environment is a class of the user's own, one instance for each answer; `Environment` below says what it may have.
All episodes of a batch go on together, turn by turn. An answer is one flat row: the tokens of the assistant as they
were sampled, and between its turns, outside the loss mask, what the environment said, as the chat template writes it
(as it stands, behind a prompt of text). What the environment gives becomes the reward of the answer: take
`reward: given`; with `several` another reward judges beside it.

An episode in which the environment raises, is late or gives nonsense has no reward and no token that counts. The
columns `turns`, `tool_calls`, `failed_calls`, `failed` (0 or 1) and the environment's metrics stand in each answer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from unified import Answer, DataSource, Field, Problem, PromptGroup, Sampling, UserError, hookimpl
from unified_plugins.rewards._user_code import look_up, module_files
from unified_plugins.rewards._user_function import could_name, file_and_name, find_function
from unified_plugins.sources._environment_calls import Call, Tool
from unified_plugins.sources._environment_settings import EpisodeSettings


class EnvironmentSettings(EpisodeSettings):
    """Which environment, and how the assistant's turns are drawn."""

    environment: str = Field(description="package.module:Class, package.module.Class, or FILE.py:Class")
    file: str | None = Field(None, description="the file with the class, relative to the recipe")
    arguments: dict[str, Any] = Field({}, description="arguments of the class by name, the same for every instance")
    rewards: Literal["total", "turn"] = Field(
        "total", description="one reward for the answer, or the reward of each turn at its last token"
    )
    cut_off_reward: float | None = Field(
        None, description="of an episode cut off before the environment gave a reward; none: it is missing"
    )

    def model_post_init(self, _: Any) -> None:
        """ValueError for a name that can be none of a class."""
        file, name = file_and_name(self.environment)
        if not could_name(name, in_file=bool(file or self.file)):
            raise ValueError("environment is written package.module:Class, or FILE.py:Class")


@dataclass(frozen=True)
class Turn:
    """What a step gives; a mapping with these keys does as well.

    observation: what the environment says: text, a message, or a list of both. Text becomes a message of the role
        `tool` where the assistant's turn called tools, else `user`. Not needed at the end, and not shown then.
    done: whether the episode is over. reward: of this turn; None where it has none. metrics: numbers by name, the last
    of each name counts; they become columns of the answer.
    """

    observation: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] = ()
    done: bool = False
    reward: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


class Environment(Protocol):
    """What the class may have; only `step` is needed. It need not inherit from this, and needs no torch.

    Each method names those of the arguments below that it wants. Each may be `async`. Methods of several instances run
    at the same time, in threads.

    tools: what the assistant may call, an attribute that is there once `reset` has run: Python functions with type
        hints and a docstring whose `Args:` describe them, bound methods, too; or JSON schemas.
    """

    tools: Sequence[Tool]

    def reset(
        self, prompt: str | Sequence[Mapping[str, Any]], columns: Mapping[str, Any], seed: int
    ) -> str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | None:
        """Begin an episode.

        prompt: of the row, text or messages; columns: of the row; seed: another one for each episode, the same when the
        run is repeated. Gives what the assistant sees behind the prompt, as in `Turn.observation`; None for nothing.
        """

    def step(self, text: str, calls: Sequence[Call], finish: str, turn: int) -> Turn | Mapping[str, Any]:
        """Answer a turn of the assistant.

        text: the turn, without special tokens; calls: the tools it calls (`call.name`, `call.arguments`; `call.run()`
        calls the function and gives its result as a message); finish: "length" where the turn was cut off, after which
        the episode ends; turn: from 1.
        """

    def close(self) -> None:
        """Called when the episode is over, whatever happened, but not while a late step is running."""


def collect(
    prompts: list[PromptGroup],
    settings: EnvironmentSettings,
    sample: Callable[[list[PromptGroup], int, Sampling], list[list[Answer]]],
    seed: int,
    folder: Path | None = None,
) -> list[PromptGroup]:
    """New groups with `group_size` episodes each, with the rewards that the environment gave.

    The prompt of a group is what its episodes have in common before the assistant speaks; what an environment said to
    one of them alone stands before its first turn, outside the loss mask. Row, text and columns are those of the rows.

    Raises UserError: no such class, or it takes other arguments; a template that cannot write the conversation, or
        rewrites it; more episodes failed than max_failed allows.
    """
    from unified_plugins.sources._environment_episodes import Episodes

    made = find_function(settings.file, settings.environment, folder)
    if not isinstance(made, type):
        raise UserError(f"environment '{settings.environment}' is a function, not a class", "name a class with `step`")
    episodes = Episodes(prompts, made, settings, sample, seed, settings.rewards, settings.cut_off_reward)
    episodes.play()
    episodes.close()
    return episodes.groups()


def check(settings: EnvironmentSettings, home: Path) -> list[Problem]:
    """A class that is not there, as far as the text of its file or module shows; it is not run."""
    file, name = file_and_name(settings.environment)
    return look_up(settings.file or file, name, home, what="class", key="environment").problems


def files(settings: EnvironmentSettings, home: Path) -> dict[str, Path]:
    """The file of the module with the class."""
    file, name = file_and_name(settings.environment)
    return module_files(settings.file or file, name, home)


@hookimpl
def unified_sources() -> list[DataSource]:
    """Offer it as `source: {name: environment, environment: games.py:Guess}`."""
    return [DataSource("environment", EnvironmentSettings, collect=collect, online=True, check=check, files=files)]
