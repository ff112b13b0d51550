"""Servers of other makes that speak OpenAI's completions: prompts as token ids in, token ids with log-probs out.

They must take `prompt` as a list of ids and give the ids of what they sampled (`return_token_ids`) and the log-probs,
for `echo` those of the prompt too. New weights reach them by a route of their own, if they have one (`update_path`); a
server without one serves only as long as the policy is what it holds. Which weights a server has is told by its
log-probs of a short text alone, before and after every call: what differs by less than `tolerance` is not noticed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from pydantic import field_validator

from unified import Answer, Field, NewWeights, RolloutEngine, Sampling, UserError, hookimpl
from unified_plugins.engines._servers import (
    Away,
    Refused,
    Servers,
    Wanted,
    as_expected,
    by_prompt,
    gap,
    push_to,
    read_anew,
    run,
    wanted,
)
from unified_plugins.engines._servers_settings import ServersSettings, path_there

COMPLETIONS = "/v1/completions"
NO_IDS = "no `token_ids`, which `return_token_ids` asks for; answers are never tokenised again"


class OpenAISettings(ServersSettings):
    """Where the servers are, and how they get new weights."""

    update_path: str | None = Field(
        None, description="route that takes {update_key: folder} and reads all weights from there; without, none is"
    )
    update_key: str = Field("model_path", description="what that route calls the folder")

    @field_validator("update_path")
    @classmethod
    def _is_a_path(cls, path: str | None) -> str | None:
        if path is not None and not path.startswith("/"):
            raise ValueError(f"a path on the server begins with /, not {path!r}")
        return path


def push(weights: NewWeights, settings: OpenAISettings) -> dict[str, Any]:
    """Have the servers hold these weights where they can be told to; and make sure that they do.

    Raises:
        UserError: a server refuses them, or computes something else than the trainer.
        LostEngine: no server answers, and none came back in time.
    """
    return push_to(partial(_servers, weights, settings), weights)


def generate(
    tokenizer: Any,
    prompts: list[list[int]],
    n: int,
    sampling: Sampling,
    settings: OpenAISettings,
    seeds: Sequence[Sequence[int]],
    receipt: dict[str, Any],
) -> list[list[Answer]]:
    """n answers per prompt, in the order of the prompts; the k-th answer of prompt i is asked for with seeds[i][k].

    The sampling_logp of greedy answers (temperature 0) is 0: they are certain.
    """
    weights: NewWeights = receipt["weights"]

    async def work() -> dict[tuple[int, int], Answer]:
        async with _servers(weights, settings, {}) as servers:
            if sampling.temperature != 0 and (sampling.temperature != 1 or not sampling.whole):
                await servers.all_ready()
                await _reports_what_it_samples(servers, weights, settings)
            one = partial(_answer, sampling=sampling, settings=settings, version=weights.version)
            return await servers.answers(wanted(prompts, n, sampling, seeds), one)

    return by_prompt(run(work()), tokenizer, len(prompts), n, sampling)


def _servers(weights: NewWeights, settings: OpenAISettings, gaps: dict[str, float]) -> Servers:
    load = partial(_load, weights=weights, settings=settings, gaps=gaps)
    return Servers("openai", settings, load, partial(_holds, weights=weights, settings=settings), each_tells=False)


async def _holds(servers: Servers, url: str, *, weights: NewWeights, settings: OpenAISettings) -> bool:
    try:
        gap("openai", url, await _probe(servers, url, weights, settings), weights, settings)
    except UserError:
        return False
    return True


async def _load(
    servers: Servers, url: str, *, weights: NewWeights, settings: OpenAISettings, gaps: dict[str, float]
) -> None:
    """Tell a server to read the weights, where it has a route for that; then it must compute what the trainer does."""
    if settings.update_path is not None:
        told = {settings.update_key: path_there(settings, weights)}
        await read_anew(servers, url, settings.update_path, told, told[settings.update_key])
    try:
        gaps[url] = gap("openai", url, await _probe(servers, url, weights, settings), weights, settings)
    except UserError as error:
        if settings.update_path is None:
            hint = "write `update_path`, the route by which it takes new weights; or use engine vllm"
            raise UserError(str(error), hint) from error
        raise


async def _asked(servers: Servers, url: str, prompt: list[int], params: dict[str, Any], model: str | None) -> Any:
    """The one choice of a completion."""
    payload = {"prompt": prompt, "n": 1, "return_token_ids": True, **params, **({"model": model} if model else {})}
    reply = await servers.ask(url, COMPLETIONS, payload)
    with as_expected(f"{COMPLETIONS} with one choice"):
        (choice,) = reply["choices"]
        choice.keys()
    return choice


async def _probe(servers: Servers, url: str, weights: NewWeights, settings: OpenAISettings) -> list[float]:
    """Log-probs of the probe; Refused for a server that gives none, or no token ids."""
    params = {"max_tokens": 1, "temperature": 1.0, "logprobs": 1, "echo": True}
    choice = await _asked(servers, url, list(weights.probe), params, settings.model)
    if not isinstance(choice.get("token_ids"), list):
        raise Refused(200, NO_IDS)
    with as_expected(f"{COMPLETIONS} with `echo` and `logprobs` (log-probs of the prompt)"):
        each = choice["logprobs"]["token_logprobs"]
        if len(each) <= len(weights.logp):
            raise ValueError(f"{len(each)} log-probs of {len(weights.probe)} tokens and one")
        return [float(x) for x in each[1 : len(weights.probe)]]


async def _reports_what_it_samples(servers: Servers, weights: NewWeights, settings: OpenAISettings) -> None:
    """UserError for a server whose log-probs are of another distribution than it samples from.

    Only the likeliest token is kept: its log-probability is 0 where they are the same.
    """
    for url in settings.urls:
        params = {"max_tokens": 1, "temperature": 1.0, "top_k": 1, "logprobs": 1}
        try:
            choice = await _asked(servers, url, list(weights.probe), params, settings.model)
            with as_expected(f"{COMPLETIONS} with `logprobs`"):
                first = float(choice["logprobs"]["token_logprobs"][0])
        except Away:
            continue  # the others answer; at the next call it is looked at
        except Refused as refused:
            raise servers.refused(url, refused) from refused
        if abs(first) > 1e-3:
            raise UserError(
                f"engine 'openai': {url} reports log-probs of another distribution than it samples from",
                "sample with temperature 1 and all tokens, or have it report processed log-probs",
            )


async def _answer(
    servers: Servers, url: str, one: Wanted, *, sampling: Sampling, settings: OpenAISettings, version: int
) -> Answer:
    params: dict[str, Any] = {
        "temperature": sampling.temperature, "top_p": sampling.top_p, "max_tokens": sampling.max_tokens,
        "logprobs": 1, "seed": one.seed,
    }  # fmt: skip
    if sampling.top_k:
        params["top_k"] = sampling.top_k
    if sampling.min_p:
        params["min_p"] = sampling.min_p
    if sampling.stop:
        params |= {"stop": list(sampling.stop), "include_stop_str_in_output": True}
    choice = await _asked(servers, url, one.prompt, params, settings.model)
    if not isinstance(choice.get("token_ids"), list):
        raise Refused(200, NO_IDS)
    if choice.get("finish_reason") not in ("stop", "length"):
        raise Away(f"it ended an answer with {choice.get('finish_reason')!r}")
    with as_expected(f"{COMPLETIONS} with a `logprobs.token_logprobs` for each of the `token_ids`"):
        ids = [int(i) for i in choice["token_ids"]]
        logp = [float(x) for _, x in zip(ids, choice["logprobs"]["token_logprobs"], strict=True)]
    finish: Literal["stop", "length"] = "stop" if choice["finish_reason"] == "stop" else "length"
    return Answer(ids, sampling_logp=logp, finish=finish, version=version)


@hookimpl
def unified_engines() -> list[RolloutEngine]:
    """Offer the engine as `engine: {name: openai, urls: [http://127.0.0.1:8000]}`."""
    return [RolloutEngine("openai", OpenAISettings, generate=generate, push=push, foreign=True)]
