"""Environments of the package `verifiers` that the tests play, as users write them; it is imported when one is made."""

from __future__ import annotations

from typing import Any


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the first
        b: the second
    """
    return a + b


def table(*rows: dict[str, Any]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(list(rows))


def said(completion: Any) -> str:
    """What the assistant said last."""
    return str([m for m in completion if m.role == "assistant"][-1].content)


def right(completion: Any, answer: str) -> float:
    return float(answer == said(completion)[-1:])


def called(completion: Any) -> float:
    return float(any(m.role == "tool" for m in completion))


def sums(pairs: Any = ((1, 2), (2, 3), (4, 4))) -> Any:
    """A sum, and a tool that knows it: 1 for its result in the last turn, and half for having asked the tool."""
    import verifiers as vf

    rows = [{"question": f"{a}+{b}=?", "answer": str(a + b)} for a, b in pairs]
    rubric = vf.Rubric(funcs=[right, called], weights=[1.0, 0.5])
    return vf.ToolEnv(dataset=table(*rows), tools=[add], max_turns=2, rubric=rubric)


load_environment = sums  # what the name of an installed environment leads to


def single() -> Any:
    """One turn, a system prompt of the environment's, and rows to evaluate on."""
    import verifiers as vf

    rows = [{"question": "ABC", "answer": "c", "info": {"level": i}} for i in range(5)]
    return vf.SingleTurnEnv(
        dataset=table(*rows), eval_dataset=table(*rows[:2]), system_prompt="BA", rubric=vf.Rubric(funcs=[right])
    )


def echo(how: str = "goes on", turns: int = 9) -> Any:
    """Says NO after each turn; or does something else, as `how` says."""
    import verifiers as vf

    class Echo(vf.MultiTurnEnv):
        async def setup_state(self, state: Any) -> Any:
            if how == "begins elsewhere":
                state["prompt"] = [vf.UserMessage(content="CBA")]
            if how == "no setup":
                raise vf.InfraError("no sandbox")
            return state

        async def env_response(self, messages: Any, state: Any, **_: Any) -> Any:
            if how == "raises":
                raise LookupError("no board")
            if how == "image":
                return [vf.UserMessage(content=[{"type": "image_url", "image_url": {"url": "x"}}])]
            if how == "speaks":
                return [vf.AssistantMessage(content="me")]
            if how == "late":
                import asyncio

                await asyncio.Event().wait()
            return [{"role": "user", "content": "NO"}]

        async def get_prompt_messages(self, state: Any) -> Any:
            messages = await super().get_prompt_messages(state)
            return messages[-1:] if how == "forgets" and len(messages) > 1 else messages

    def turns_taken(state: Any) -> float:
        return float(len(state["trajectory"]))

    row = {"question": "ABC", "answer": "c"}
    return Echo(dataset=table(row), max_turns=turns, rubric=vf.Rubric(funcs=[turns_taken]))


def judged(how: str, weight: float = 1.0) -> Any:
    """A rubric whose second function goes wrong, for answers with an x, in the way that `how` says."""
    import verifiers as vf

    async def strict(completion: Any) -> Any:
        if "x" not in said(completion):
            return 2
        return {"raises": lambda: [][1], "none": lambda: None, "nan": lambda: float("nan"), "text": lambda: "much"}[
            how
        ]()

    def plain(completion: Any) -> float:
        return 0.25

    rubric = vf.Rubric(funcs=[plain, strict], weights=[1.0, weight])
    return vf.SingleTurnEnv(dataset=table({"question": "ABC", "answer": "c"}), rubric=rubric)


def ranked(wrong: bool = False) -> Any:
    """A function of all answers to a prompt: the rank of each by its length; fails, if `wrong`."""
    import verifiers as vf

    def rank(completions: Any) -> list[float]:
        lengths = [len(said(c)) for c in completions]
        return [float(sorted(lengths).index(n)) for n in lengths][: 1 if wrong else None]

    return vf.SingleTurnEnv(dataset=table({"question": "ABC", "answer": "c"}), rubric=vf.Rubric(funcs=[rank]))


def group() -> Any:
    """Two environments in one; rows say which."""
    import verifiers as vf

    return vf.EnvGroup(envs=[judged("raises"), echo(turns=2)], env_names=["judged", "echo"])


def nothing() -> int:
    """No environment."""
    return 7
