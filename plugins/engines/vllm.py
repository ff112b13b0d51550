"""Servers of vLLM, as they come: tokens in, tokens out with log-probs of the distribution sampled from.

Started with `--enable-scale-out --logprobs-mode processed_logprobs` and VLLM_SERVER_DEV_MODE=1 (for `push: lora` with
`--enable-lora` and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True); docs/rollouts.md shows it. After every push the server says
which weights it holds, its log-probs of a short text are compared with the trainer's, and every answer names the
weights that gave it: what a server that was started anew has sampled with its first weights is thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from unified import Answer, Field, NewWeights, RolloutEngine, Sampling, UserError, hookimpl
from unified_plugins.engines._servers import (
    Away,
    Refused,
    Servers,
    Stale,
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
from unified_plugins.engines.transformers import end_ids

GENERATE = "/inference/v1/generate"


class VLLMSettings(ServersSettings):
    """Where the servers are, and how they get new weights."""

    push: Literal["folder", "lora"] = Field(
        "folder",
        description="folder: all weights, as a folder that the servers read; lora: the adapter that the stage trains",
    )


def form(settings: VLLMSettings) -> Literal["model", "adapter"]:
    """What is pushed."""
    return "adapter" if settings.push == "lora" else "model"


def push(weights: NewWeights, settings: VLLMSettings) -> dict[str, Any]:
    """Have the servers hold these weights, and make sure that they do. The receipt is what `generate` needs for that.

    Raises:
        UserError: a server refuses them, or computes something else than the trainer.
        LostEngine: no server answers, and none came back in time.
    """
    return push_to(partial(_servers, weights, settings), weights)


def generate(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    n: int,
    sampling: Sampling,
    settings: VLLMSettings,
    seeds: Sequence[Sequence[int]],
    receipt: dict[str, Any],
) -> list[list[Answer]]:
    """n answers per prompt, in the order of the prompts; the k-th answer of prompt i is asked for with seeds[i][k].

    The sampling_logp of greedy answers (temperature 0) is 0: they are certain.
    """
    weights: NewWeights = receipt["weights"]
    params = _params(sampling, end_ids(model, tokenizer))

    async def work() -> dict[tuple[int, int], Answer]:
        async with _servers(weights, settings, {}) as servers:
            one = partial(_answer, params=params, weights=weights, settings=settings)
            return await servers.answers(wanted(prompts, n, sampling, seeds), one)

    return by_prompt(run(work()), tokenizer, len(prompts), n, sampling)


def _servers(weights: NewWeights, settings: VLLMSettings, gaps: dict[str, float]) -> Servers:
    load = partial(_load, weights=weights, settings=settings, gaps=gaps)
    return Servers("vllm", settings, load, partial(_holds, weights=weights, settings=settings), each_tells=True)


def _mark(weights: NewWeights) -> str:
    """What a server calls these weights. It forgets the name with the weights when it is started anew."""
    return f"step-{weights.version}-{weights.digest[:16]}"


async def _holds(servers: Servers, url: str, *, weights: NewWeights, settings: VLLMSettings) -> bool:
    """Whether a server says that it has these weights."""
    if settings.push == "lora":
        return _mark(weights) in await _adapters(servers, url)
    try:
        info = await servers.ask(url, "/weight_info", method="GET", at_once=True)
    except Refused as refused:
        raise _not_started(url, "VLLM_SERVER_DEV_MODE=1 in its environment") from refused
    with as_expected("/weight_info of vLLM 0.32"):
        return bool(info["weight_version"] == _mark(weights))


async def _adapters(servers: Servers, url: str) -> list[str]:
    """Names of the adapters that a server has."""
    listed = await servers.ask(url, "/v1/models", method="GET", at_once=True)
    with as_expected("/v1/models"):
        return [str(one["id"]) for one in listed["data"] if one.get("parent")]


async def _load(
    servers: Servers, url: str, *, weights: NewWeights, settings: VLLMSettings, gaps: dict[str, float]
) -> None:
    """Give a server the weights; it has their name only when they are whole, and compute what the trainer computes."""
    if settings.push == "lora":
        await _load_adapter(servers, url, weights, path_there(settings, weights))
    else:
        await _load_all(servers, url, _mark(weights), path_there(settings, weights))
    try:
        gaps[url] = gap("vllm", url, await _probe(servers, url, weights, settings), weights, settings)
    except Stale as stale:  # it has just taken the adapter: what it does not know is the route
        raise _not_started(url, "--enable-scale-out") from stale
    if settings.push == "folder":  # only now, so that nobody takes it for what it is not
        await servers.ask(url, "/update_weight_version", {"new_version": _mark(weights)})


async def _load_adapter(servers: Servers, url: str, weights: NewWeights, path: str) -> None:
    mark, older = _mark(weights), await _adapters(servers, url)
    try:
        await servers.ask(url, "/v1/load_lora_adapter", {"lora_name": mark, "lora_path": path})
    except Refused as refused:
        if refused.status in (404, 405):
            started = "--enable-lora, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment"
            raise _not_started(url, started) from refused
        if "already" not in str(refused):
            raise
    for name in older:
        if name.startswith("step-") and name != mark:
            await servers.ask(url, "/v1/unload_lora_adapter", {"lora_name": name})


async def _load_all(servers: Servers, url: str, mark: str, path: str) -> None:
    """All weights; what a server calls them is not yet theirs."""
    try:
        await servers.ask(url, "/update_weight_version", {"new_version": f"loading {mark}"}, at_once=True)
    except Refused as refused:
        raise _not_started(url, "VLLM_SERVER_DEV_MODE=1 in its environment") from refused
    called = {"method": "reload_weights", "kwargs": {"weights_path": path}}
    await read_anew(servers, url, "/collective_rpc", called, path)
    await servers.ask(url, "/reset_prefix_cache")


async def _probe(servers: Servers, url: str, weights: NewWeights, settings: VLLMSettings) -> list[float]:
    """Log-probs of the probe. UserError for a server that would report those of another distribution than it samples.

    Of one token that is sampled besides only the likeliest is kept: its log-probability is 0 where the server reports
    the distribution that it sampled from.
    """
    params = {"max_tokens": 1, "temperature": 1.0, "top_k": 1, "logprobs": 0, "prompt_logprobs": 0}
    reply = await _asked(servers, url, list(weights.probe), params, weights, settings)
    with as_expected(f"{GENERATE} of vLLM 0.32"):
        (choice,) = reply["choices"]
        last = float(choice["logprobs"]["content"][0]["logprob"])
        each = zip(weights.probe[1:], reply["prompt_logprobs"][1:], strict=True)
        logp = [float(of[str(token)]["logprob"]) for token, of in each]
    if abs(last) > 1e-3:
        raise _not_started(url, "--logprobs-mode processed_logprobs")
    return logp


async def _asked(
    servers: Servers, url: str, prompt: list[int], params: dict[str, Any], weights: NewWeights, settings: VLLMSettings
) -> Any:
    name = _mark(weights) if settings.push == "lora" else settings.model
    payload = {"token_ids": prompt, "sampling_params": params, **({"model": name} if name else {})}
    try:
        return await servers.ask(url, GENERATE, payload)
    except Refused as refused:
        if refused.status == 404 and settings.push == "folder" and "does not exist" in str(refused):
            raise UserError(
                f"engine 'vllm': {url} serves no model of the name in `model: {settings.model}`: {refused}",
                "write the name after its --served-model-name, or leave `model` out",
            ) from refused
        if refused.status == 404 and settings.push == "lora":
            raise Stale("it does not know the adapter any more") from refused
        if refused.status in (403, 404, 405):
            raise _not_started(url, "--enable-scale-out") from refused
        raise


async def _answer(
    servers: Servers, url: str, one: Wanted, *, params: dict[str, Any], weights: NewWeights, settings: VLLMSettings
) -> Answer:
    """One answer. Stale where it was sampled, or a part of it, with other weights than those."""
    reply = await _asked(servers, url, one.prompt, {**params, "seed": one.seed}, weights, settings)
    with as_expected(f"{GENERATE} of vLLM 0.32 (token_ids, and as many log-probs)"):
        (choice,) = reply["choices"]
        names = (
            {str(span["version"]) for span in choice["weight_versions"] or ()} if settings.push == "folder" else None
        )
        finish, ids = choice["finish_reason"], choice["token_ids"]
        if finish in ("stop", "length"):
            ids = [int(i) for i in ids]
            logp = [float(each["logprob"]) for _, each in zip(ids, choice["logprobs"]["content"], strict=True)]
    if names is not None and names != {_mark(weights)}:
        raise Stale(f"it answered with the weights {', '.join(sorted(names)) or 'of no name'}")
    if finish not in ("stop", "length"):
        raise Away(f"it ended an answer with {finish!r}")
    return Answer(ids, sampling_logp=logp, finish=finish, version=weights.version)


def _params(sampling: Sampling, ends: list[int]) -> dict[str, Any]:
    """The sampling as vLLM names it; nothing is left to the defaults of the server."""
    return {
        "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k, "min_p": sampling.min_p,
        "max_tokens": sampling.max_tokens, "stop": list(sampling.stop), "include_stop_str_in_output": True,
        "stop_token_ids": ends, "ignore_eos": True, "logprobs": 0, "n": 1, "repetition_penalty": 1.0,
    }  # fmt: skip


def _not_started(url: str, how: str) -> UserError:
    return UserError(
        f"engine 'vllm': the server at {url} was not started for this", f"start it with {how}; see docs/rollouts.md"
    )


@hookimpl
def unified_engines() -> list[RolloutEngine]:
    """Offer the engine as `engine: {name: vllm, urls: [http://127.0.0.1:8000]}`."""
    return [RolloutEngine("vllm", VLLMSettings, generate=generate, push=push, form=form, foreign=True)]
