"""One generation from a client's request to the last byte of its answer: replica, retry, stream.

Until the first byte has gone to the client a failed replica costs a pause only: the request is sent again,
to another one where there is one. After that the stream ends with an explicit error event; `_broken` is the
place where the answer could go on at another replica instead.
"""

from __future__ import annotations

import logging

import msgspec

from caudal.gateway.events import EventSplitter, ModelName, NotEvents
from caudal.gateway.hedge import hedged_request
from caudal.gateway.http_server import Exchange
from caudal.gateway.metrics import Metrics
from caudal.gateway.openai_api import Call
from caudal.gateway.openai_errors import (
    engine_error,
    model_not_found,
    no_replica,
    replica_failed,
    stream_broken,
)
from caudal.gateway.replicas import served_tokens
from caudal.gateway.router import Router, Ticket
from caudal.gateway.upstream import UpstreamConnection, UpstreamFailed, UpstreamPool

log = logging.getLogger("caudal.gateway")

MAX_ATTEMPTS = 4
MAX_LOST = 2
"""A request over which so many replicas hung up is not given to another: it may be what kills them."""

WAIT_FOR_REPLICA_S = 10.0
RETRY_STATUSES = frozenset({502, 503, 504})
"""What an engine that is loading, overloaded or proxied answers: another one may do better."""

EVENT_STREAM = b"text/event-stream"
NO_BUFFERING = b"cache-control: no-cache\r\nx-accel-buffering: no\r\n"


class Generations:
    """Carries generations out."""

    def __init__(
        self, router: Router, pool: UpstreamPool, metrics: Metrics, wait_s: float = WAIT_FOR_REPLICA_S
    ) -> None:
        self._router = router
        self._pool = pool
        self._metrics = metrics
        self._wait_s = wait_s

    async def run(self, exchange: Exchange, call: Call) -> int:
        """Answer the exchange; returns the status that was sent. Raises ApiError while nothing was sent."""
        model = self._router.model(call.model)
        if model is None:
            raise model_not_found(call.model)
        self._router.begun(model)
        try:
            return await self._run(exchange, call)
        finally:
            self._router.demand.ended(call.model)

    async def _run(self, exchange: Exchange, call: Call) -> int:
        begun_at = self._router.now()
        tried: frozenset[str] = frozenset()
        why = ""
        lost = 0
        for attempt in range(MAX_ATTEMPTS):
            ticket = await self._router.acquire(
                call.model,
                call.tokens,
                tried,
                self._wait_s,
                prompt_tokens=call.prompt_tokens,
                prefix=call.prefix,
            )
            if not isinstance(ticket, Ticket):
                raise no_replica(call.model, ticket.reason)
            if attempt:
                self._metrics.retries += 1
            try:
                return await self._attempt(exchange, call, ticket, begun_at)
            except (UpstreamFailed, NotEvents) as failure:
                ticket.failed(hard=isinstance(failure, UpstreamFailed))
                tried |= {ticket.gang}
                why = str(failure)
                lost += isinstance(failure, UpstreamFailed) and failure.lost
                log.warning("replica %s failed a request: %s", ticket.gang, why)
                if exchange.started:
                    self._broken(exchange, why)
                    return 200
                if lost >= MAX_LOST:
                    break
            finally:
                ticket.release()
        raise replica_failed(call.model, why)

    async def _attempt(self, exchange: Exchange, call: Call, ticket: Ticket, begun_at: float) -> int:
        asked = self._pool, ticket, lambda place: _request(call, place)
        connection = await hedged_request(self._router, *asked, stream=call.stream)
        try:
            if connection.status in RETRY_STATUSES:
                raise UpstreamFailed(f"it answered {connection.status}")
            if connection.status != 200:
                raise engine_error(connection.status, await connection.read_all(), call.prompt_param)
            if call.stream:
                await self._stream(exchange, call, connection, begun_at, ticket)
            else:
                body = ModelName(call.model).whole(await connection.read_all())
                ticket.done(served_tokens(body, call.prompt_tokens))
                exchange.respond(200, body)
                self._metrics.first_byte(self._router.now() - begun_at)
            return 200
        finally:
            self._pool.release(ticket.address, connection)

    async def _stream(
        self, exchange: Exchange, call: Call, connection: UpstreamConnection, begun_at: float, ticket: Ticket
    ) -> None:
        splitter = EventSplitter()
        said = 0
        name = ModelName(call.model)
        self._metrics.streams += 1
        try:
            while data := await connection.read():
                events = splitter.feed(data)
                if not events:
                    continue
                if not exchange.started:
                    exchange.begin(200, EVENT_STREAM, NO_BUFFERING)
                    self._metrics.first_byte(self._router.now() - begun_at)
                    ticket.first_token()
                said += events.count(b"\n\n")  # an event says about one token
                exchange.send(name.events(events))
                await exchange.drained()
            if splitter.pending or not splitter.done:
                raise NotEvents("its stream ended without [DONE]")
            exchange.end()
            ticket.done(call.prompt_tokens + said)
        finally:
            self._metrics.streams -= 1

    def _broken(self, exchange: Exchange, why: str) -> None:
        self._metrics.broken_streams += 1
        exchange.send(stream_broken(why).event())
        exchange.end()


def _request(call: Call, ticket: Ticket) -> bytes:
    body = call.body if ticket.model == call.model else _renamed(call.body, ticket.model)
    address = ticket.address
    return (
        b"POST %b%b HTTP/1.1\r\nhost: %b:%d\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
        % (address.prefix.encode(), call.path.encode(), address.host.encode(), address.port, len(body), body)
    )


def _renamed(body: bytes, model: str) -> bytes:
    decoded = msgspec.json.decode(body)
    decoded["model"] = model
    return msgspec.json.encode(decoded)
