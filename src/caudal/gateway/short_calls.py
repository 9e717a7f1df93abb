"""Embeddings and tokens: requests whose answer is short, over the same replicas as generations, and admitted as they
are: counting tokens is work, too, and counts against its key."""

from __future__ import annotations

import base64
import math
import struct
from array import array
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from caudal.gateway import engine_dialects
from caudal.gateway.account import Account, Record
from caudal.gateway.admitter import Admitter
from caudal.gateway.engine_dialects import Question
from caudal.gateway.engine_request import RETRY_STATUSES
from caudal.gateway.events import NotEvents
from caudal.gateway.exchange import Exchange
from caudal.gateway.filtered_exchange import FilteredExchange
from caudal.gateway.openai_api import (
    BYTES_PER_TOKEN,
    MAX_TOOLS,
    Call,
    Message,
    TokenId,
    Tool,
    check_turns,
    decode,
)
from caudal.gateway.openai_errors import ApiError, engine_error, model_not_found, no_replica, replica_failed
from caudal.gateway.router import Router, Ticket
from caudal.gateway.upstream import UpstreamFailed
from caudal.gateway.upstream_pool import UpstreamPool
from caudal.gateway.wishes import wishes

Text = Annotated[str, Meta(min_length=1)]
Ids = Annotated[list[TokenId], Meta(min_length=1, max_length=1_000_000)]

T = TypeVar("T")

MAX_INPUTS = 2048
MAX_ATTEMPTS = 3


class EmbeddingRequest(Struct, forbid_unknown_fields=True):
    """`POST /v1/embeddings`. `dimensions` cuts each vector and scales it to length 1 again, as OpenAI does;
    only models that were trained for that lose little by it."""

    model: str
    input: Text | Annotated[list[Text | TokenId | Ids], Meta(min_length=1, max_length=MAX_INPUTS)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=65_536)] | None = None
    user: str | None = None


class TokenizeRequest(Struct, forbid_unknown_fields=True):
    """`POST /v1/tokenize`: either `input` or a chat, with its tools."""

    model: str
    input: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None


class DetokenizeRequest(Struct, forbid_unknown_fields=True):
    """`POST /v1/detokenize`."""

    model: str
    tokens: Annotated[list[TokenId], Meta(max_length=1_000_000)]


_EMBEDDING = msgspec.json.Decoder(EmbeddingRequest)
_TOKENIZE = msgspec.json.Decoder(TokenizeRequest)
_DETOKENIZE = msgspec.json.Decoder(DetokenizeRequest)


class Embeddings(FilteredExchange):
    """Where embeddings are answered: cut, and in the encoding that was asked for."""

    __slots__ = ("_dimensions", "_encoding")

    def __init__(self, inner: Exchange) -> None:
        super().__init__(inner)
        self._dimensions: int | None = None
        self._encoding: str | None = None

    def parse(self, body: bytes) -> Call:
        """Check the request. The engine is always asked for floats. Raises ApiError, 400."""
        asked = decode(_EMBEDDING, body)
        self._dimensions, self._encoding = asked.dimensions, asked.encoding_format
        data = msgspec.json.encode({"model": asked.model, "input": asked.input, "encoding_format": "float"})
        return Call("/v1/embeddings", asked.model, False, len(data) // BYTES_PER_TOKEN, data, "input")

    def whole(self, body: bytes) -> bytes:
        """The engine's floats as the client wants them."""
        base64_wanted = self._encoding == "base64"
        answer = msgspec.json.decode(body)
        for row in answer["data"]:
            vector = array("f", row["embedding"])
            if self._dimensions is not None:
                vector = cut(vector, self._dimensions)
            row["embedding"] = _base64(vector) if base64_wanted else vector.tolist()
        return msgspec.json.encode(answer)


def cut(vector: array[float], dimensions: int) -> array[float]:
    """The first of them, scaled to length 1. Raises ApiError, 400, where there are not so many."""
    if dimensions > len(vector):
        message = f"Invalid value for 'dimensions': this model's vectors have {len(vector)}."
        raise ApiError(400, "invalid_value", message, param="dimensions")
    kept = vector[:dimensions]
    length = math.sqrt(sum(x * x for x in kept)) or 1.0
    return array("f", (x / length for x in kept))


def _base64(vector: array[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


class ShortCalls:
    """Asks replicas what is answered at once."""

    def __init__(
        self,
        router: Router,
        pool: UpstreamPool,
        wait_s: float,
        admitter: Admitter,
        record: Record = lambda *_: None,
    ) -> None:
        self._router = router
        self._pool = pool
        self._wait_s = wait_s
        self._admitter = admitter
        self._record = record

    async def tokenize(self, exchange: Exchange) -> bytes:
        """`{"model", "tokens", "count"}`. Raises ApiError."""
        body = exchange.request.body
        request = decode(_TOKENIZE, body)
        if (request.input is None) == (request.messages is None):
            raise ApiError(400, "invalid_value", "Give either 'input' or 'messages'.", param="input")
        check_turns(request.messages or [], request.tools)
        chat = msgspec.json.decode(body)
        del chat["model"]
        cost = len(body) // BYTES_PER_TOKEN

        async def ask(ticket: Ticket) -> list[int]:
            if request.input is not None:
                question = engine_dialects.tokenize_text(ticket.engine, ticket.model, request.input)
            else:
                rendering = engine_dialects.render_chat(ticket.engine, chat)
                if rendering is None:
                    question = engine_dialects.tokenize_chat(ticket.model, chat)
                else:
                    text = await self._ask(ticket, rendering, str, "prompt")
                    question = engine_dialects.tokenize_text(ticket.engine, ticket.model, text)
            return await self._ask(ticket, question, list, "tokens")

        tokens = await self._carried_out(exchange, request.model, cost, ask)
        return msgspec.json.encode({"model": request.model, "tokens": tokens, "count": len(tokens)})

    async def detokenize(self, exchange: Exchange) -> bytes:
        """`{"model", "text"}`. Raises ApiError."""
        request = decode(_DETOKENIZE, exchange.request.body)

        async def ask(ticket: Ticket) -> str:
            question = engine_dialects.detokenize(ticket.engine, ticket.model, request.tokens)
            return await self._ask(ticket, question, str, "content", "prompt")

        text = await self._carried_out(exchange, request.model, len(request.tokens), ask)
        return msgspec.json.encode({"model": request.model, "text": text})

    async def _carried_out(
        self, exchange: Exchange, model: str, tokens: int, ask: Callable[[Ticket], Awaitable[T]]
    ) -> T:
        """Ask a replica, once the caller's request is admitted, on the caller's account."""
        caller, path = exchange.caller, exchange.request.path
        routes = self._router.model(model)
        if routes is None or not caller.may_use(model):
            raise model_not_found(model)
        if routes.replicas and all(replica.external is not None for replica in routes.replicas):
            message = (
                f"The model {model!r} is served by a provider: only the fleet's own replicas count tokens."
            )
            raise ApiError(400, "invalid_value", message, param="model")
        call = Call(path, model, False, tokens, exchange.request.body, "input", prompt_tokens=tokens)
        slo, deadline_s = wishes(exchange.request.headers, call.body)
        with Account(self._record, caller.id, model, self._router.asked(model)):
            permit = await self._admitter.admit(call, caller.id, caller.limits, slo, deadline_s)
            try:
                answer = await self._asked(model, tokens, ask)
                permit.reply_tokens = 0
                return answer
            finally:
                permit.done()

    async def _asked(self, model: str, tokens: int, ask: Callable[[Ticket], Awaitable[T]]) -> T:
        """Ask one replica, and another where that fails."""
        tried: frozenset[str] = frozenset()
        why = ""
        for _ in range(MAX_ATTEMPTS):
            ticket = await self._router.acquire(model, tokens, tried, self._wait_s)
            if not isinstance(ticket, Ticket):
                raise no_replica(model, ticket.reason)
            try:
                return await ask(ticket)
            except (UpstreamFailed, NotEvents) as failure:
                ticket.failed()
                tried |= {ticket.gang}
                why = str(failure)
            finally:
                ticket.release()
        raise replica_failed(model, why)

    async def _ask(self, ticket: Ticket, question: Question, kind: type[T], *fields: str) -> T:
        """One question; returns the field of its answer that is there. Raises UpstreamFailed, NotEvents,
        ApiError."""
        address = ticket.address
        head = (
            f"POST {address.prefix}{question.path} HTTP/1.1\r\nhost: {address.host}:{address.port}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(question.body)}\r\n\r\n"
        )
        connection = await self._pool.request(address, head.encode() + question.body)
        try:
            data = await connection.read_all()
        finally:
            self._pool.release(address, connection)
        if connection.status in RETRY_STATUSES:
            raise UpstreamFailed(f"it answered {connection.status}")
        if connection.status != 200:
            raise engine_error(connection.status, data, "input")
        try:
            answer = msgspec.json.decode(data, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise NotEvents("what it sent is not a JSON object") from None
        for field in fields:
            if isinstance(found := answer.get(field), kind):
                return found
        raise NotEvents(f"what it sent has no {fields[0]}")
