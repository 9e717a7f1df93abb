"""A Hugging Face hub on loopback: as much of its protocol as a download needs, and nothing else."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(repository: str, files: Mapping[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """The address of a hub with one repository, and the names of the files that were fetched from it."""
    fetched: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(send_body=False)

        def do_GET(self) -> None:
            self._answer(send_body=True)

        def _answer(self, *, send_body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            name = path.removeprefix(f"/{repository}/resolve/{COMMIT}/")
            if path.startswith(f"/api/models/{repository}/tree/"):
                rows = [
                    {"type": "file", "path": n, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                    for n, b in files.items()
                ]
                self._send(200, json.dumps(rows).encode(), {}, send_body)
            elif path == f"/api/models/{repository}" or path.startswith(
                f"/api/models/{repository}/revision/"
            ):
                siblings = [{"rfilename": n, "size": len(b)} for n, b in files.items()]
                body = {"id": repository, "sha": COMMIT, "siblings": siblings, "private": False}
                self._send(200, json.dumps(body).encode(), {}, send_body)
            elif name in files:
                if send_body:
                    fetched.append(name)
                etag = f'"{hashlib.sha1(files[name]).hexdigest()}"'
                self._send(200, files[name], {"ETag": etag, "X-Repo-Commit": COMMIT}, send_body)
            else:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, send_body)

        def _send(self, status: int, body: bytes, headers: Mapping[str, str], send_body: bool) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if send_body:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", fetched
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
