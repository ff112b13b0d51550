"""Environments of the package `verifiers`, unchanged: SingleTurnEnv, ToolEnv, MultiTurnEnv and what is made of them.

The environment asks for the assistant's turns, and the policy gives them; what the environment and its tools say stands
in the answer outside the loss mask, as with `source: environment`. When an episode is over the rubric judges it: its
reward is the reward of the answer (take `reward: given`), and each of its functions is a column by its name. Rollouts
of a prompt are judged together, so that functions of a whole group work, too.

An episode that our limits cut off ends as on a server whose context is full, and is judged. One in which the
environment raises is missing; so is one for which a function of the rubric raises or gives None, which the package
itself takes for 0. A function of weight 0 only leaves its column out, and counts in `failed_measures`.

An environment that changes what was said before, or its tools, fails: an answer is one conversation that goes on.
Needs the extra `verifiers` (0.3; later versions have no such environments).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from unified import Answer, DataSource, Field, Problem, PromptGroup, Sampling, hookimpl
from unified_plugins.sources._environment_settings import EpisodeSettings
from unified_plugins.sources._verifiers_package import check_name, files_of, load, problems


class VerifiersSettings(EpisodeSettings):
    """Which environment, and how the assistant's turns are drawn; its own `sampling_args` are not looked at."""

    environment: str = Field(description="name of an installed one, package.module:function, or FILE.py:function")
    file: str | None = Field(None, description="the file with the function, relative to the recipe")
    arguments: dict[str, Any] = Field({}, description="arguments of the function that gives the environment")
    max_turns: int = Field(32, ge=1, description="turns of the assistant, at most; the environment may want fewer")
    timeout_s: float = Field(60.0, gt=0, description="longest reset or step, and longest judgement, in seconds")

    def model_post_init(self, _: Any) -> None:
        """ValueError for a name that can be none of an environment."""
        check_name(self.environment, self.file)


def collect(
    prompts: list[PromptGroup],
    settings: VerifiersSettings,
    sample: Callable[[list[PromptGroup], int, Sampling], list[list[Answer]]],
    seed: int,
    folder: Path | None = None,
) -> list[PromptGroup]:
    """New groups with `group_size` rollouts each, judged. Row, text and columns are those of the rows.

    Raises UserError: no such environment, or it cannot be made; and as `source: environment`.
    """
    environment = load(settings.environment, settings.file, settings.arguments, folder)
    from unified_plugins.sources._verifiers_episodes import play

    return play(prompts, environment, settings, sample, seed)


def check(settings: VerifiersSettings, home: Path) -> list[Problem]:
    """No package, or no such environment, as far as can be seen without running it."""
    return problems(settings.environment, settings.file, home)


def files(settings: VerifiersSettings, home: Path) -> dict[str, Path]:
    """The file of the module that gives the environment."""
    return files_of(settings.environment, settings.file, home)


@hookimpl
def unified_sources() -> list[DataSource]:
    """Offer it as `source: {name: verifiers, environment: words.py:load_environment}`."""
    return [DataSource("verifiers", VerifiersSettings, collect=collect, online=True, check=check, files=files)]
