"""Who may come in at all: refuses what a web page elsewhere could send through the user's browser."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from caudal.domain.errors import UsageError


class Door:
    """ASGI middleware over HTTP and web sockets: Host must be ours (DNS rebinding), and Origin, where the
    client is a browser, must be ours too (cross-site requests)."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or answer 400."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
        origin = headers.get("origin")
        if host in self._hosts and (origin is None or urlsplit(origin).hostname in self._hosts):
            await self._app(scope, receive, send)
            return
        error = UsageError(
            "this address does not answer for that Host or Origin", remedy="call it as http://127.0.0.1:PORT"
        )
        refusal = JSONResponse({"error": error.as_dict()}, status_code=error.http_status)
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await refusal(scope, receive, send)
