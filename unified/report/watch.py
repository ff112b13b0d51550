"""`unified watch`: the report of a run, served on this machine only, that grows while the run goes on."""

from __future__ import annotations

import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from unified.errors import UserError
from unified.lock import holder
from unified.report.collect import head_of, metrics_of, page_data, stage_names, written
from unified.report.page import embedded, page, policy
from unified.report.stage import Limits, signature, stage_of
from unified.status import read_run

HOST = "127.0.0.1"
#: names under which a browser on this machine may ask; another one is a page of somebody else that points here
NAMES = ("127.0.0.1", "localhost")


class Watched:
    """A run that may be going on. Each change of a stage has a number; what is newer than one is asked for by it."""

    def __init__(self, folder: Path) -> None:
        """UserError where the folder holds no run."""
        self.folder = folder
        self.number = 0
        self._lock = threading.Lock()
        self._stages: dict[str, tuple[Any, int, dict[str, Any]]] = {}
        self._head: dict[str, Any] = {}
        self._names: list[str] = []
        self.look()

    def look(self) -> None:
        """Read again what has changed on the disk."""
        with self._lock:
            about, held = read_run(self.folder), holder(self.folder) is not None
            self._names, self._head = stage_names(about, self.folder), head_of(self.folder, about, held)
            for name in self._names:
                now = (signature(self.folder, name), held)
                if name in self._stages and self._stages[name][0] == now:
                    continue
                self.number += 1
                stage = stage_of(self.folder, name, written(about, name), running=held, limits=Limits())
                self._stages[name] = (now, self.number, stage)

    def since(self, number: int) -> dict[str, Any]:
        """The run with those of its stages that have changed after that number; `names`: all of them, in order."""
        self.look()
        with self._lock:
            changed = [self._stages[n][2] for n in self._names if self._stages[n][1] > number]
            run = {**self._head, "stages": changed}
            return {"number": self.number, "names": list(self._names), "run": run, "metrics": metrics_of([run])}

    def page(self) -> str:
        """The whole page, as it is now."""
        now = self.since(0)
        return page({**page_data([now["run"]], live=True), "number": now["number"]})


class Server(ThreadingHTTPServer):
    """Serves one run on this machine: `/` is the page, `/changes?since=N` what has changed."""

    daemon_threads = True
    #: two servers of one port would each get some of the questions
    allow_reuse_port = False

    def __init__(self, folder: Path, port: int = 0) -> None:
        """port: 0 for a free one. UserError where there is no run, or the port is taken."""
        self.watched = Watched(folder)
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise UserError(f"port {port} cannot be used: {error.strerror}", "give another --port, or 0") from error

    @property
    def address(self) -> str:
        """Where a browser finds the page."""
        return f"http://{HOST}:{self.server_address[1]}/"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = (self.headers.get("Host") or "").rpartition(":")[0] or self.headers.get("Host")
        if name not in NAMES:
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", "this page is served to this machine only")
            return
        asked = urlsplit(self.path)
        try:
            if asked.path == "/":
                self._answer(HTTPStatus.OK, "text/html", self.server.watched.page())
            elif asked.path == "/changes":
                since = parse_qs(asked.query).get("since", ["0"])[0]
                number = int(since) if since.isascii() and since.isdigit() and len(since) < 10 else 0
                self._answer(HTTPStatus.OK, "application/json", embedded(self.server.watched.since(number)))
            else:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", "there is / and /changes")
        except UserError as error:  # the folder was taken away
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", str(error))

    def _answer(self, status: HTTPStatus, kind: str, body: str) -> None:
        content = body.encode("utf-8")
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Content-Security-Policy", policy(live=True) + "; frame-ancestors 'none'")
        self.end_headers()
        try:
            self.wfile.write(content)
        except (BrokenPipeError, ConnectionResetError):  # the reader has gone
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal shows the address and no more."""
