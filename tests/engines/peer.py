"""A server that speaks vLLM's protocol, and OpenAI's completions, over a real model of transformers.

It simulates the peer and nothing of this project: weights are read from the folders that it is told of by transformers
and peft themselves, and forgotten when it stops.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

#: transformers takes functions of its classes away while it loads, and two threads would put back each other's gaps
_READING = threading.Lock()


class Peer:
    """One server on loopback.

    requests: (route, body) of all that was asked. dies_after: answers until it stops in the middle of a call.
    deaf: it says yes to new weights and keeps its own. raw: it reports log-probs before temperature and top-k.
    """

    def __init__(self, folder: Path, port: int = 0, **faults: Any) -> None:
        self.base, self.adapters, self.version = folder, dict[str, Any](), "default"
        self.requests: list[tuple[str, Any]] = []
        self.dies_after: int | None = faults.get("dies_after")
        self.deaf, self.raw, self.old = faults.get("deaf", False), faults.get("raw", False), faults.get("old", False)
        self.slow = faults.get("slow", 0.0)
        self.model, self.tokenizer = _read(folder), AutoTokenizer.from_pretrained(folder)
        self.lock = threading.Lock()
        self.http = _Server(("127.0.0.1", port), _handler(self))
        self.port = self.http.server_address[1]
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def kill(self) -> None:
        """Connections are refused from now on, and those under way are cut."""
        self.http.dead = True
        self.http.shutdown()
        self.http.server_close()

    def count(self, route: str) -> int:
        return sum(r == route for r, _ in self.requests)

    def reply(self, route: str, body: Any) -> tuple[int, Any]:
        self.requests.append((route, body))
        if self.old and route in ("/weight_info", "/update_weight_version", "/collective_rpc"):
            return 404, {"detail": "Not Found"}
        if route == "/weight_info":
            return 200, {"weight_version": self.version}
        if route == "/v1/models":
            return 200, {"data": [{"id": "policy"}, *({"id": n, "parent": "policy"} for n in self.adapters)]}
        if route == "/update_weight_version":
            self.version = body["new_version"]
            return 200, {"success": True}
        if route in ("/reset_prefix_cache", "/health"):
            return 200, ""
        with self.lock:
            return self._locked(route, body)

    def _locked(self, route: str, body: Any) -> tuple[int, Any]:
        if route in ("/collective_rpc", "/update_weights_from_disk"):
            path = body["model_path"] if "model_path" in body else body["kwargs"]["weights_path"]
            if not Path(path).is_dir():
                return 500, {"error": {"message": f"no such folder: {path}"}}
            if not self.deaf:
                self.model = _read(Path(path))
            return 200, {"results": [None]}
        if route == "/v1/load_lora_adapter":
            from peft import PeftModel

            self.adapters[body["lora_name"]] = PeftModel.from_pretrained(_read(self.base), body["lora_path"]).eval()
            return 200, "loaded"
        if route == "/v1/unload_lora_adapter":
            del self.adapters[body["lora_name"]]
            return 200, "unloaded"
        if route == "/inference/v1/generate":
            return self._tokens(body)
        if route == "/v1/completions":
            return self._completion(body)
        return 404, {"detail": "Not Found"}

    def _tokens(self, body: Any) -> tuple[int, Any]:
        model = self.adapters.get(body.get("model")) or self.model
        if body.get("model") not in (None, "policy", *self.adapters):
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        params = body["sampling_params"]
        ids, logp, finish = self._draw(model, body["token_ids"], params)
        prompt = None
        if params.get("prompt_logprobs") is not None:
            read = _logp(model, body["token_ids"])
            prompt = [None, *({str(t): {"logprob": x}} for t, x in zip(body["token_ids"][1:], read, strict=True))]
        choice = {
            "index": 0, "finish_reason": finish, "token_ids": ids,
            "weight_versions": [{"version": self.version, "start": 0, "end": len(ids)}],
            "logprobs": {"content": [{"token_id": t, "logprob": x} for t, x in zip(ids, logp, strict=True)]},
        }  # fmt: skip
        return 200, {"choices": [choice], "prompt_logprobs": prompt}

    def _completion(self, body: Any) -> tuple[int, Any]:
        ids, logp, finish = self._draw(self.model, body["prompt"], body)
        read: list[Any] = [None, *_logp(self.model, body["prompt"])] if body.get("echo") else []
        choice = {"token_ids": ids, "finish_reason": finish, "logprobs": {"token_logprobs": [*read, *logp]}}
        return 200, {"choices": [choice]}

    @torch.no_grad()
    def _draw(self, model: Any, prompt: list[int], params: Any) -> tuple[list[int], list[float], str]:
        """Token by token, each from the whole text anew."""
        generator = torch.Generator().manual_seed(int(params.get("seed") or 0))
        ids: list[int] = []
        logp: list[float] = []
        time.sleep(self.slow)
        for _ in range(params["max_tokens"]):
            plain = model(torch.tensor([[*prompt, *ids]])).logits[0, -1].float()
            temperature = float(params.get("temperature", 1.0))
            scores = plain / temperature if temperature else plain
            if params.get("top_k"):
                scores = torch.where(scores >= scores.topk(params["top_k"]).values[-1], scores, -torch.inf)
            token = int(scores.argmax())
            if temperature:
                token = int(torch.multinomial(scores.softmax(-1), 1, generator=generator))
            ids.append(token)
            logp.append(float((plain if self.raw else scores).log_softmax(-1)[token]))
            ends = params.get("stop_token_ids", [self.tokenizer.eos_token_id])
            if token in ends or any(s in self.tokenizer.decode(ids) for s in params.get("stop") or ()):
                return ids, logp, "stop"
        return ids, logp, "length"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    block_on_close = False
    request_queue_size = 256
    dead = False

    def handle_error(self, *_: Any) -> None:
        """Clients that went away are what some tests are about."""


def _handler(peer: Peer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "null"))

        def _answer(self, body: Any) -> None:
            asked = self.path in ("/inference/v1/generate", "/v1/completions") and not _probes(body)
            if asked and peer.dies_after is not None:
                peer.dies_after -= 1
                if peer.dies_after < 0:
                    peer.http.dead = True
            if peer.http.dead:
                self.close_connection = True
                return
            status, reply = peer.reply(self.path, body)
            if peer.http.dead or not status:  # it was killed meanwhile, or cuts the connection
                self.close_connection = True
                return
            data = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def _probes(body: Any) -> bool:
    return bool(body.get("echo") or body.get("sampling_params", {}).get("prompt_logprobs") is not None)


def _read(folder: Path) -> Any:
    with _READING:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def _logp(model: Any, ids: list[int]) -> list[float]:
    """Of each token but the first, given those before it."""
    scores = model(torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)
    return [float(x) for x in scores[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]]


Starts = Callable[..., Peer]


@contextmanager
def serving(folder: Path) -> Iterator[Starts]:
    """Starts servers that hold the weights of a folder; those that still run at the end are killed."""
    running: list[Peer] = []

    def begin(port: int = 0, **faults: Any) -> Peer:
        running.append(Peer(folder, port, **faults))
        return running[-1]

    try:
        yield begin
    finally:
        for peer in running:
            if not peer.http.dead:
                peer.kill()
