"""What a gateway knows of a control plane: its routes, its keys, and somebody who takes the usage. In a thread."""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LIMITS = {
    "weight": 1.0,
    "requests_per_minute": 100_000_000,
    "tokens_per_minute": 1_000_000_000_000,
    "concurrency": 100_000,
    "budget_tokens": 1_000_000_000_000_000,
}
"""Every limit is there to be looked at, and none is met."""


class Control:
    """Gives out one key, `secret`, with limits, and the routes as they were set last."""

    def __init__(self) -> None:
        self.secret = "ck-" + secrets.token_urlsafe(32)
        self.batches = 0  # of usage that were taken
        self._routes: dict[str, Any] = {"version": 0, "models": []}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Of its API."""
        return f"http://127.0.0.1:{self._server.server_port}/api/v1"

    def route(self, model: str, replicas: list[dict[str, Any]], context: int = 32_768) -> None:
        """One model and where it is served from now on; gateways hear of it within half a second."""
        model_routes = {"id": model, "version": 1, "context": context, "replicas": replicas}
        self._routes = {"version": int(self._routes["version"]) + 1, "models": [model_routes]}

    def close(self) -> None:
        """Control is gone."""
        self._server.shutdown()
        self._server.server_close()

    def _keys(self) -> dict[str, Any]:
        digest = hashlib.sha256(self.secret.encode()).hexdigest()
        return {"keys": [{"id": "bench", "name": "bench", "sha256": digest, "limits": LIMITS}]}

    def _answer(self, method: str, path: str) -> tuple[int, dict[str, Any]]:
        if method == "POST" and path == "/api/v1/gateway/usage":
            self.batches += 1
            return 200, {"taken": True}
        known = {"/api/v1/routes": lambda: self._routes, "/api/v1/gateway/keys": self._keys}
        return (200, known[path]()) if method == "GET" and path in known else (404, {})

    def _handler(control) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                self.rfile.read(int(self.headers.get("content-length") or 0))
                status, told = control._answer(self.command, self.path.partition("?")[0])
                body = json.dumps(told).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = _serve  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass  # a line for every poll says nothing

        return Handler
