"""One rollout of a `verifiers` environment, played turn by turn. Import this only where the package is installed.

The environment runs unchanged: it asks a client for the assistant's turns, and the client is ours. All rollouts run in
one event loop in a thread of its own, since what an environment opens (connections, locks) belongs to a loop.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any

import verifiers as vf
from verifiers.types import AssistantMessage, Response, ResponseMessage, ToolCall
from verifiers.utils.message_utils import normalize_messages

from unified_plugins.sources._environment_calls import Call

Conversation = list[dict[str, Any]]


_LOOP = asyncio.new_event_loop()
Thread(target=_LOOP.run_forever, daemon=True, name="verifiers").start()


def begun(work: Coroutine[Any, Any, Any]) -> Future[Any]:
    """Let a coroutine run in the loop of the environments."""
    return asyncio.run_coroutine_threadsafe(work, _LOOP)


class Policy(vf.Client):
    """The client of one rollout: tells of each request for a turn, and waits for it."""

    def __init__(self, told: SimpleQueue[Any]) -> None:
        super().__init__(None)
        self.told, self.over = told, False
        self.waiting: asyncio.Future[Any] | None = None

    def setup_client(self, config: Any) -> Any:
        """There is no server behind it."""
        return None

    async def to_native_tool(self, tool: Any) -> dict[str, Any]:
        """The tool as chat templates want it."""
        about = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
        return {"type": "function", "function": about}

    async def to_native_prompt(self, messages: Any) -> tuple[Conversation, dict[str, Any]]:
        """The messages as mappings, without what is empty."""
        return [read(message) for message in messages], {}

    async def get_native_response(
        self, prompt: Conversation, model: str, sampling_args: Any, tools: Any = None, **_: Any
    ) -> Any:
        """The turn that `say` gives; what the package raises for a prompt that is too long, where there is none."""
        if not self.over:
            self.waiting = asyncio.get_running_loop().create_future()
            self.told.put((prompt, tools or []))
            turn = await self.waiting
            if turn is not None:
                return turn
        raise vf.OverlongPromptError("the episode is at its end")

    async def raise_from_native_response(self, response: Any) -> None:
        """A turn is always valid."""

    async def from_native_response(self, response: Any) -> Any:
        """A turn is made as the package has it."""
        return response

    async def close(self) -> None:
        """Nothing is open."""

    def say(self, turn: Any) -> None:
        """Give the turn that is waited for; None ends the episode. From any thread."""
        waiting = self.waiting
        self.over = self.over or turn is None
        if waiting is not None:
            _LOOP.call_soon_threadsafe(lambda: None if waiting.done() else waiting.set_result(turn))


class Rollout:
    """A rollout as an environment of ours: `reset` and `step` wait until the assistant is to speak, or it is over.

    opening: the whole prompt, where the environment begins with another than the row's. state: what the rollout left,
    once it is over. tools: JSON schemas.
    """

    def __init__(self, environment: Any, sampling: Mapping[str, Any]) -> None:
        self.environment, self.sampling = environment, dict(sampling)
        self.told: SimpleQueue[Any] = SimpleQueue()
        self.policy = Policy(self.told)
        self.running: Future[Any] | None = None
        self.state: Any = None
        self.opening: Conversation | None = None
        self.tools: list[dict[str, Any]] = []
        self.seen: Conversation = []

    def reset(self, prompt: str | Sequence[Mapping[str, Any]], columns: Mapping[str, Any]) -> Conversation | None:
        """Begin; what the environment says behind the row's prompt."""
        row = {"example_id": 0, **columns, "prompt": prompt}
        self.running = begun(self.environment.rollout(row, self.policy, "policy", self.sampling))
        self.running.add_done_callback(self.told.put)
        asked = self._asked()
        if asked is None:
            raise RuntimeError(f"the episode was over before it began ({self.state.get('stop_condition')})")
        self.seen, self.tools = asked
        known = [read(message) for message in normalize_messages(prompt)]
        if self.seen[: len(known)] == known:
            return [self._plain(message) for message in self.seen[len(known) :]]
        if isinstance(prompt, str):
            raise ValueError("the environment begins with another prompt than the row's, which is text")
        self.opening = [self._plain(message) for message in self.seen]
        return None

    def step(self, text: str, calls: Sequence[Call], finish: str) -> dict[str, Any]:
        """Hand a turn over; calls that cannot be read stay text, as they do on a server."""
        made = []
        for number, call in enumerate(calls):
            call.failed = call.error is not None
            if not call.failed:
                name = f"call-{len(self.seen)}-{number}"
                made.append(ToolCall(id=name, name=call.name, arguments=json.dumps(call.arguments)))
        if made:
            text = text.partition("<tool_call>")[0] if "<tool_call>" in text else ""
        message = AssistantMessage(content=text, tool_calls=made or None)
        self.seen.append(read(message))
        about = {"finish_reason": "length" if finish == "length" else "tool_calls" if made else "stop"}
        whole = ResponseMessage(content=text, tool_calls=made or None, is_truncated=finish == "length", **about)
        self.policy.say(Response(id="", created=0, model="policy", message=whole))
        asked = self._asked()
        if asked is None:
            return {"done": True}
        messages, tools = asked
        if messages[: len(self.seen)] != self.seen or tools != self.tools:
            raise ValueError(
                "the environment changed what was said before, or its tools; an answer is one conversation that goes on"
            )
        new, self.seen = messages[len(self.seen) :], messages
        return {"observation": [self._plain(message) for message in new]}

    def finish(self) -> None:
        """End it where it still goes on, as a server does whose context is full; `state` is there then."""
        self.policy.say(None)
        while self.state is None:
            self._asked()

    def cancel(self) -> None:
        """Stop it, whatever it does."""
        if self.running is not None:
            self.running.cancel()

    def _asked(self) -> tuple[Conversation, list[dict[str, Any]]] | None:
        """The conversation behind which the assistant is to speak, and the tools; None where it is over.

        Raises what the environment raised.
        """
        told = self.told.get()
        if not isinstance(told, Future):
            return told
        state = told.result()
        error = state.get("error")
        if error is not None:
            raise error.__cause__ if not str(error) and isinstance(error.__cause__, Exception) else error
        if state.get("timed_out"):
            raise TimeoutError("the episode took longer than the environment's timeout_seconds")
        self.state = state
        return None

    def _plain(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """A message for a chat template."""
        out = {"role": message["role"], "content": text_of(message.get("content", ""))}
        called = {c["id"]: c["name"] for m in self.seen for c in m.get("tool_calls", ())}
        if message["role"] == "tool" and message.get("tool_call_id") in called:
            out["name"] = called[message["tool_call_id"]]
        if message.get("tool_calls"):
            given = [{"name": c["name"], "arguments": json.loads(c["arguments"])} for c in message["tool_calls"]]
            out["tool_calls"] = [{"type": "function", "function": one} for one in given]
        return out


def read(message: Any) -> dict[str, Any]:
    """A message of the package as a mapping, without what is empty."""
    return message.model_dump(exclude_none=True)


def text_of(content: Any) -> str:
    """The text of a message. ValueError where it holds more than text."""
    if isinstance(content, str):
        return content
    if all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content):
        return "".join(part["text"] for part in content)
    raise ValueError("a message holds more than text, such as an image")
