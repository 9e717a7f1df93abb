"""The paths under /v1/responses: made, told, listed, deleted. Puts the parts together; knows no shapes."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from caudal.gateway.callers import NOBODY
from caudal.gateway.exchange import JSON, Exchange
from caudal.gateway.filtered_exchange import EventLines, FilteredExchange, understood
from caudal.gateway.openai_api import Call
from caudal.gateway.openai_errors import ApiError
from caudal.gateway.responses_request import Item, parse_response, to_chat
from caudal.gateway.responses_store import ResponseStore, StoredResponse
from caudal.gateway.responses_stream import ResponseStream

log = logging.getLogger("caudal.gateway")

PATH = "/v1/responses"
MAX_CONVERSATION_BYTES = 4 * 1024 * 1024

Generate = Callable[[Exchange, Callable[[bytes], Call]], Awaitable[None]]


def new_id(prefix: str) -> str:
    """An id that nobody can guess."""
    return prefix + secrets.token_hex(16)


def owner_of(exchange: Exchange) -> str:
    """Whose responses these are, as a hash: those of the API key that the request came with, or, where it is none of
    ours, of whatever it came with."""
    if exchange.caller is not NOBODY:
        return hashlib.sha256(exchange.caller.id.encode()).hexdigest()
    given = exchange.request.headers.get(b"authorization", b"")
    return hashlib.sha256(b"nobody " + given).hexdigest()


class Responses:
    """The endpoints. `generate` carries a chat out on an exchange and counts it."""

    def __init__(self, store: ResponseStore, generate: Generate) -> None:
        self._store = store
        self._generate = generate

    async def create(self, exchange: Exchange) -> None:
        """`POST /v1/responses`."""
        before: list[Item] = []
        owner = owner_of(exchange)
        asked = parse_response(exchange.request.body)
        if asked.request.previous_response_id is not None:
            before = await self._conversation(owner, asked.request.previous_response_id)
        call = to_chat(asked, before)
        stream = ResponseStream(asked.request, new_id("resp_"), int(time.time()), new_id)
        answered = _Answered(exchange, stream)
        await self._generate(answered, lambda _: call)
        if answered.error is not None:
            exchange.respond(*answered.error)
            return
        closing, last = stream.end(int(time.time()))
        if asked.request.store is not False and not stream.failed:
            await self._keep(owner, StoredResponse(stream.response, asked.items, before), stream)
        if call.stream:
            exchange.send(closing + last)
            exchange.end()
        else:
            exchange.respond(200, msgspec.json.encode(stream.response))

    async def one(self, exchange: Exchange) -> None:
        """`GET` or `DELETE /v1/responses/{id}`, `GET .../input_items`, `POST .../cancel`."""
        request = exchange.request
        response_id, _, rest = request.path.removeprefix(PATH + "/").partition("/")
        owner = owner_of(exchange)
        match request.method, rest:
            case "DELETE", "":
                await asyncio.to_thread(self._store.delete, owner, response_id)
                told: Any = {"id": response_id, "object": "response", "deleted": True}
            case "GET" | "HEAD", "" if "stream=true" in request.query:
                message = "The events of a response are not kept: ask without 'stream'."
                raise ApiError(400, "unsupported_parameter", message, param="stream")
            case "GET" | "HEAD", "":
                told = (await self._get(owner, response_id)).response
            case "GET" | "HEAD", "input_items":
                told = _items(await self._get(owner, response_id), response_id, "order=asc" in request.query)
            case "POST", "cancel":
                await self._get(owner, response_id)
                message = "Only background responses can be cancelled, and this gateway makes none."
                raise ApiError(400, "invalid_request", message, param="id")
            case _:
                message = f"{request.path[:200]} does not answer {request.method}."
                raise ApiError(405, "method_not_allowed", message)
        exchange.respond(200, msgspec.json.encode(told))

    async def _get(self, owner: str, response_id: str) -> StoredResponse:
        return await asyncio.to_thread(self._store.get, owner, response_id)

    async def _conversation(self, owner: str, response_id: str) -> list[Item]:
        try:
            stored = await self._get(owner, response_id)
        except ApiError as error:
            message = f"Previous response with id '{response_id[:100]}' not found."
            raise ApiError(
                400, "previous_response_not_found", message, param="previous_response_id"
            ) from error
        items = [*stored.before, *stored.input, *stored.response["output"]]
        if len(msgspec.json.encode(items)) > MAX_CONVERSATION_BYTES:
            message = f"The conversation is longer than the {MAX_CONVERSATION_BYTES} bytes that are kept."
            raise ApiError(400, "conversation_too_long", message, param="previous_response_id")
        return items

    async def _keep(self, owner: str, stored: StoredResponse, stream: ResponseStream) -> None:
        """A response that cannot be kept says so by `store` false, in its last event; it is whole all the
        same."""
        try:
            kept = await asyncio.to_thread(self._store.put, owner, stored)
        except OSError as error:
            log.warning("a response could not be kept: %s", error)
            kept = False
        if not kept:
            stream.response["store"] = False


class _Answered(FilteredExchange):
    """Where the chat is answered. Its end is not the client's: the response is kept first."""

    __slots__ = ("_lines", "_stream", "error")

    def __init__(self, inner: Exchange, stream: ResponseStream) -> None:
        super().__init__(inner)
        self.error: tuple[int, bytes] | None = None
        self._stream = stream
        self._lines = EventLines()

    def respond(self, status: int, body: bytes, content_type: bytes = JSON, extra: bytes = b"") -> None:
        if status != 200:
            self.error = status, body
        else:
            understood(self.whole, body)
        self.started = self.finished = True

    def whole(self, body: bytes) -> bytes:
        self._stream.answer(msgspec.json.decode(body))
        return b""

    def begin(self, status: int, content_type: bytes, extra: bytes = b"") -> None:
        self.started = True
        self.inner.begin(status, content_type, extra)
        self.inner.send(self._stream.begin())

    def events(self, data: bytes) -> bytes:
        out = b""
        for one in self._lines.feed(data):
            if one != b"[DONE]":
                out += self._stream.chunk(msgspec.json.decode(one))
        return out

    def end(self) -> None:
        self.finished = True


def _items(stored: StoredResponse, response_id: str, ascending: bool) -> dict[str, Any]:
    """All of them on one page, newest first where nothing else is asked for, as OpenAI lists them."""
    items = []
    for index, item in enumerate([*stored.before, *stored.input]):
        shown = {"id": f"{response_id.replace('resp_', 'item_')}_{index}", "status": "completed", **item}
        if isinstance(shown.get("content"), str):
            kind = "output_text" if shown.get("role") == "assistant" else "input_text"
            shown["content"] = [{"type": kind, "text": shown["content"]}]
        items.append(shown)
    if not ascending:
        items.reverse()
    first, last = (items[0]["id"], items[-1]["id"]) if items else (None, None)
    return {"object": "list", "data": items, "first_id": first, "last_id": last, "has_more": False}
