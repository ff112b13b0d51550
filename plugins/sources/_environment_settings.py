"""What every source of episodes of several turns may set: how long they are, how turns are drawn, what may fail."""

from typing import Any, Literal

from unified import Field, Settings
from unified_plugins.rewards._user_function import file_and_name


class EpisodeSettings(Settings):
    """How episodes go on, whatever the environment is."""

    environment: str = Field(description="the environment, by name")
    file: str | None = Field(None, description="the file with it, relative to the recipe")
    arguments: dict[str, Any] = Field({}, description="its arguments by name")
    group_size: int = Field(8, ge=1, description="episodes per prompt")
    max_turns: int = Field(8, ge=1, description="turns of the assistant, at most")
    turn_tokens: int = Field(
        256, ge=1, description="longest turn of the assistant, in tokens; one that is cut off ends"
    )
    max_tokens: int = Field(
        1024, ge=1, description="longest answer, in tokens: all turns, and what the environment says and its tools need"
    )
    temperature: float = Field(1.0, ge=0, description="divides the logits; 0 takes the likeliest token")
    top_p: float = Field(1.0, gt=0, le=1, description="keep the likeliest tokens up to this mass; 1 keeps all")
    top_k: int = Field(0, ge=0, description="keep so many likeliest tokens; 0 keeps all")
    min_p: float = Field(
        0.0, ge=0, lt=1, description="keep tokens of at least so many times the likeliest's probability; 0 keeps all"
    )
    stop: list[str] = Field([], description="texts that end a turn, which keeps them")
    calls: Literal["hermes", "json", "none"] = Field(
        "hermes",
        description="hermes: JSON between <tool_call> and </tool_call>; json: a turn that is all JSON; none: no search",
    )
    show_tools: bool = Field(True, description="write the tools into the prompt, through the chat template")
    past: Literal["refuse", "keep"] = Field(
        "refuse",
        description="a chat template that rewrites earlier turns (it strips reasoning): refuse, or go on as is",
    )
    timeout_s: float = Field(60.0, gt=0, description="longest reset or step, in seconds")
    threads: int = Field(16, ge=1, description="environments that reset or step at the same time")
    max_failed: float = Field(
        0.5, ge=0, le=1, description="the stage stops, with the reason, where more than this share of episodes fail"
    )

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        """`environment: games.py:Guess` is `file: games.py, environment: Guess`: a file that a run's lineage sees."""
        file, name = file_and_name(str(data.get("environment", "")))
        return {**data, "environment": name, "file": file} if file is not None and "file" not in data else data
