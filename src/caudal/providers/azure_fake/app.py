"""The fake's HTTP side: an ASGI application that takes requests apart, applies faults, and hands them on.

A fault is chosen before the call is looked at (admin.py says how to set one): refused, late, never answered, or done
and the answer lost. Bodies are bounded; a token must be there, as with ARM.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qsl, unquote

from caudal.providers.azure_fake import admin, compute, sizes
from caudal.providers.azure_fake.arm import Answer, Refused, Request, Row
from caudal.providers.azure_fake.world import World

MAX_BODY_BYTES = 4 << 20
TICK_S = 0.05

Handler = Callable[[World, Request, float], Answer]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

HANDLERS: tuple[tuple[str, Handler], ...] = (
    ("capacityreservationgroups", sizes.reservations),
    ("virtualmachines", compute.vms),
    ("networkinterfaces", compute.nics),
    ("disks", compute.disks),
    ("skus", sizes.skus),
    ("usages", sizes.usages),
    ("operations", sizes.operations),
    ("locations", sizes.locations),
)
"""By the first of these words in a path, tried in this order."""


class App:
    """One fake. `token`: what callers have to bring; empty: any. `url` is filled by who listens."""

    def __init__(self, world: World, token: str = "") -> None:
        self.world = world
        self.url = ""
        self._token = token

    async def tick(self) -> None:
        """Let time pass also while nobody asks: machines boot, and end."""
        while True:
            self.world.advance(time.monotonic())
            await asyncio.sleep(TICK_S)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return
        try:
            request = await self._request(scope, receive)
        except Refused as refused:
            await _send(send, refused.answer)
            return
        if request.parts[:1] == ("_caudal",):
            await _send(send, self._answer(lambda: self._admin(request)))
            return
        fault = admin.fault_of(self.world, request)
        kind = fault.get("kind", "")
        if kind == "silent":
            await _until_gone(receive)
            return
        if kind == "slow":
            await asyncio.sleep(float(fault.get("seconds", 1.0)))
        if kind == "refuse":
            await _send(send, admin.refusal(fault))
            return
        answer = self._answer(lambda: self._arm(request))
        await (_send_cut_short(send, answer) if kind == "lost_answer" else _send(send, answer))

    def _answer(self, ask: Callable[[], Answer]) -> Answer:
        self.world.advance(time.monotonic())
        try:
            return ask()
        except Refused as refused:
            return refused.answer

    def _admin(self, request: Request) -> Answer:
        if "origin" in request.headers:
            raise Refused(403, "Forbidden", "No web page has business here.")
        if self._token:
            self._check_token(request)
        return admin.handle(self.world, request, time.monotonic())

    def _check_token(self, request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        right = not self._token or hmac.compare_digest(given.encode(), self._token.encode())
        if scheme != "Bearer" or not given or not right:
            text = "Authentication failed. The 'Authorization' header is missing, or its token is not the right one."
            raise Refused(401, "AuthenticationFailed", text)

    def _arm(self, request: Request) -> Answer:
        world = self.world
        world.calls.append(f"{request.method} {request.path}")
        self._check_token(request)
        if not request.query.get("api-version"):
            raise Refused(
                400,
                "MissingApiVersionParameter",
                "The api-version query parameter (?api-version=) is required.",
            )
        subscription, group = request.after("subscriptions"), request.after("resourceGroups")
        if subscription in world.missing:
            raise Refused(
                404, "SubscriptionNotFound", f"The subscription '{subscription}' could not be found."
            )
        if group and group in world.missing:
            raise Refused(404, "ResourceGroupNotFound", f"Resource group '{group}' could not be found.")
        lower = {part.lower() for part in request.parts}
        for word, handler in HANDLERS:
            if word in lower:
                return handler(world, request, time.monotonic())
        raise Refused(404, "InvalidResourceType", f"The fake has nothing at {request.path}.")

    async def _request(self, scope: Any, receive: Receive) -> Request:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > MAX_BODY_BYTES:
                raise Refused(413, "RequestContentTooLarge", f"A request has at most {MAX_BODY_BYTES} bytes.")
            if not message.get("more_body"):
                break
        try:
            parsed: Any = json.loads(body) if body else {}
        except ValueError as error:
            raise Refused(400, "InvalidRequestContent", "The request content was invalid JSON.") from error
        if not isinstance(parsed, dict):
            raise Refused(400, "InvalidRequestContent", "The request content is no JSON object.")
        content: Row = parsed
        parts = tuple(unquote(part) for part in scope["raw_path"].decode().split("?")[0].split("/") if part)
        query = {
            k if k.startswith("$") else k.lower(): v for k, v in parse_qsl(scope["query_string"].decode())
        }
        headers = {k.decode().lower(): v.decode() for k, v in scope["headers"]}
        return Request(scope["method"], parts, query, headers, content, self.url)


async def _send(send: Send, answer: Answer) -> None:
    content = answer.content()
    headers = {"content-type": "application/json", "content-length": str(len(content)), **answer.headers}
    pairs = [(k.encode(), v.encode()) for k, v in headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": pairs})
    await send({"type": "http.response.body", "body": content})


async def _send_cut_short(send: Send, answer: Answer) -> None:
    """A head that promises more than comes: the connection ends, and who asked knows nothing."""
    headers = [(b"content-length", str(len(answer.content()) + 1000).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"{"})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
