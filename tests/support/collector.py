"""An OpenTelemetry collector of our own: takes OTLP/JSON over HTTP and keeps the spans."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Collector:
    """Listens on a free port; `status` is what it answers."""

    def __init__(self) -> None:
        self.status = 200
        self.delay_s = 0.0
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                assert self.headers["content-type"] == "application/json"
                time.sleep(outer.delay_s)
                if outer.status == 200:
                    outer.paths.append(self.path)
                    outer.bodies.append(json.loads(body))
                self.send_response(outer.status)
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def spans(self) -> list[dict[str, Any]]:
        """All that came, with attributes as a plain dictionary."""
        out = []
        for body in list(self.bodies):
            for resource in body["resourceSpans"]:
                of = plain(resource["resource"]["attributes"])
                for scope in resource["scopeSpans"]:
                    out += [
                        {**s, "attributes": plain(s["attributes"]), "resource": of} for s in scope["spans"]
                    ]
        return out

    def close(self) -> None:
        """End."""
        self._server.shutdown()
        self._server.server_close()


def plain(attributes: list[dict[str, Any]]) -> dict[str, Any]:
    """OTLP's typed values as Python's."""
    kinds = {"intValue": int, "doubleValue": float, "stringValue": str, "boolValue": bool}
    found = {}
    for one in attributes:
        ((kind, value),) = one["value"].items()
        found[one["key"]] = kinds[kind](value)
    return found
