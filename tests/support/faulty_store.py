"""A way to an object store over HTTP that can be made bad: errors, slowness, silence, no way at all."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

HOP = ("connection", "keep-alive", "transfer-encoding", "content-length", "server", "date")


class Way:
    """A proxy in front of a store's server. `answers`: 0 hands requests on; else every one is answered with that
    status. `delay_s` before each. `silent`: none is answered, until it is not silent any more. `passed` and
    `spoilt` count."""

    def __init__(self, target: str) -> None:
        self._target = urlsplit(target).netloc
        self.answers, self.delay_s, self.silent, self._closed = 0, 0.0, False, False
        self.passed = self.spoilt = 0
        way = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                time.sleep(way.delay_s)
                if way._closed:
                    self.close_connection = True
                elif way.silent:
                    way.spoilt += 1
                    while way.silent:
                        time.sleep(0.02)
                    self.close_connection = True  # who asked has to ask again
                elif way.answers:
                    way.spoilt += 1
                    self.reply(way.answers, {}, b"<Error><Code>SlowDown</Code></Error>")
                else:
                    way.passed += 1
                    self.hand_on(body)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer  # noqa: N815

            def hand_on(self, body: bytes) -> None:
                connection = http.client.HTTPConnection(way._target, timeout=60.0)
                try:
                    connection.request(self.command, self.path, body or None, dict(self.headers))
                    answer = connection.getresponse()
                    headers = {k: v for k, v in answer.getheaders() if k.lower() not in HOP}
                    length = answer.getheader("Content-Length") if self.command == "HEAD" else None
                    self.reply(answer.status, headers, answer.read(), length)
                finally:
                    connection.close()

            def reply(
                self, status: int, headers: dict[str, str], body: bytes, length: str | None = None
            ) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", length or str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                return

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *args: object) -> None:
                return  # who asked has gone

        self._handler, self._server_of = Handler, Server
        self._port = 0
        self.open()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def open(self) -> None:
        """There is a way, where there was before."""
        self._closed = False
        self._server = self._server_of(("127.0.0.1", self._port), self._handler)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Connections end, and are refused."""
        self._closed = True
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def way_to(target: str) -> Iterator[Way]:
    """A way to the server at an address like `http://127.0.0.1:9000`."""
    way = Way(target)
    try:
        yield way
    finally:
        way.silent = False
        way.close()
