"""HTTP/1.1 on a socket: connections, their time limits, back-pressure, and when they end.

Knows nothing of models or of OpenAI: a `Handler` gets an `Exchange` (a request and the way to answer it),
and refusals are worded by a `RefusalBody`. A handler answers at once, or leaves the exchange with a `Flow` that
will (no task is made then: the loop's callbacks carry the answer), or returns what is to be awaited. One request
is answered at a time per connection; pipelined ones wait their turn. Reading is never paused, because a paused
socket does not tell that its client has left.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from typing import cast

from caudal.gateway import wire
from caudal.gateway.exchange import JSON, Answering, Exchange, head
from caudal.gateway.http_request import Refusal, Request, RequestReader
from caudal.gateway.known_heads import known_heads
from caudal.gateway.limits import Limits

log = logging.getLogger("caudal.gateway")

Handler = Callable[[Exchange], Answering | None]
RefusalBody = Callable[[Refusal], bytes]

FOREVER = float("inf")
LINGER_BYTES = 16 * 1024 * 1024


class HttpConnection(asyncio.Protocol):
    """One client."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._limits = limits = server.limits
        self._loop = asyncio.get_running_loop()  # asked for once: each time costs a system call
        self._phase_s = {"idle": limits.idle_s, "head": limits.head_s, "body": limits.body_s}
        self._reader = RequestReader(server.limits, server.heads)
        self._transport: asyncio.Transport | None = None
        self._outlet: wire.Outlet | None = None
        # for what nothing follows at once: where it can, it does not wait for the loop's turn
        self.write_whole: Callable[[bytes], None] = self.write
        self._exchange: Exchange | None = None  # the one that is being answered
        self._task: asyncio.Task[None] | None = None
        self._deadline = FOREVER
        self._phase = ""
        self._lingering_bytes = -1
        self._stalled_since = FOREVER
        self._writable: asyncio.Future[None] | None = None

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client came."""
        self._transport = told = cast(asyncio.Transport, transport)  # uvloop's is one in all but its class
        self._outlet = wire.outlet(told)
        if self._outlet is not None:
            self.write_whole = self._outlet.send
        if not self._server.admit(self):
            message = "This gateway has all the connections that it can serve."
            self._refuse(Refusal(503, "too_many_connections", message), b"retry-after: 1\r\n")
            return
        self._set_phase()

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        if self._lingering_bytes >= 0:
            self._lingering_bytes += len(data)
            if self._lingering_bytes > LINGER_BYTES:
                self._abort()
            return
        if self._exchange is not None:
            self._reader.feed(data)
            return
        request = self._reader.known(data)
        if request is not None:
            self._begin(request)
            return
        self._reader.parse(data)
        self._next()
        if self._exchange is None and self._reader.expects_continue:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def eof_received(self) -> bool:
        """The client says no more, which is taken as its leaving."""
        return False  # the transport closes; connection_lost follows

    def connection_lost(self, error: Exception | None) -> None:
        """The client is gone: whatever is done for it stops."""
        self._server.forget(self)
        self._deadline = FOREVER
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._stop_answering()

    def pause_writing(self) -> None:
        """The client takes less than is sent."""
        loop = asyncio.get_running_loop()
        self._stalled_since = loop.time()
        self._writable = loop.create_future()
        if self._exchange is not None and self._exchange.flow is not None:
            self._exchange.flow.pause()

    def resume_writing(self) -> None:
        """It caught up."""
        self._stalled_since = FOREVER
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None
        if self._exchange is not None and self._exchange.flow is not None:
            self._exchange.flow.resume()

    # What exchanges and the server call.

    def write(self, data: bytes) -> None:
        """Send, or drop it when the client is gone."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def pump(self, keep: Callable[[bytes], object], most: int) -> wire.Pump | None:
        """What sends chunks of an answer in C; None where that was not built, or the client is gone."""
        transport = self._transport
        if self._outlet is None or transport is None or transport.is_closing():
            return None
        return wire.Pump(self._outlet, keep, most)

    async def drained(self) -> None:
        """Return when the client has taken enough."""
        if self._writable is not None:
            await self._writable

    def address(self) -> str:
        """Where it comes from; empty where that cannot be told."""
        peer = self._transport.get_extra_info("peername") if self._transport is not None else None
        return str(peer[0]) if isinstance(peer, tuple) else ""

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self._exchange is not None

    def close_when_idle(self) -> None:
        """Leave now if nothing is being answered."""
        if self._exchange is None and self._lingering_bytes < 0 and self._transport is not None:
            self._transport.close()

    def cut(self) -> None:
        """End now, whatever is being answered."""
        self._stop_answering()
        self._abort()

    def sweep(self, now: float) -> None:
        """Apply the time limits."""
        if now - self._stalled_since > self._limits.write_stall_s:
            self._abort()
        elif now > self._deadline:
            if self._lingering_bytes >= 0 or self._phase == "idle":
                self._abort()
            else:
                what = "headers" if self._phase == "head" else "body"
                self._refuse(Refusal(408, "too_slow", f"The request's {what} took too long to arrive."))

    def _next(self) -> None:
        """Answer what is ready; else note what is waited for, and until when."""
        if not self._reader.ready:
            self._set_phase()
            return
        item = self._reader.ready.popleft()
        if isinstance(item, Refusal):
            self._refuse(item)
        else:
            self._begin(item)

    def _begin(self, request: Request) -> None:
        """Answer it."""
        server = self._server
        self._deadline = FOREVER
        self._phase = "answering"
        exchange = Exchange(self, request, request.head.keep_alive and not server.closing)
        self._exchange = exchange
        try:
            answering = server.handler(exchange)
        except Exception:  # our own bug: `failed` logs it, and it costs this answer only
            self.failed(exchange)
            return
        if answering is not None:
            self.run(exchange, answering)

    def run(self, exchange: Exchange, answering: Answering) -> None:
        """Answer in a task."""
        self._task = asyncio.get_running_loop().create_task(self._answer(exchange, answering))

    async def _answer(self, exchange: Exchange, answering: Answering) -> None:
        try:
            await answering
            assert exchange.finished
        except asyncio.CancelledError:
            self._abort()
            raise
        except Exception:  # the same
            self._task = None
            self.failed(exchange)
            return
        self._task = None
        self._go_on(exchange)

    def answered(self, exchange: Exchange) -> None:
        """An exchange has its whole answer. Where a task gave it, the task's end counts."""
        exchange.flow = None
        if self._task is not None or self._exchange is not exchange:
            return
        reader = self._reader
        if reader.ready or reader.begun or not exchange.keep_alive:
            self._go_on(exchange)
            return
        self._exchange = None  # and nothing more was asked yet
        self._phase = "idle"
        self._deadline = self._loop.time() + self._limits.idle_s
        if self._server.closing:
            self.close_when_idle()

    def failed(self, exchange: Exchange) -> None:
        """Our own bug, within the handling of an exception: it must cost one answer and a line in the log, not the
        process."""
        log.exception("a request could not be answered: %s", exchange.request.path)
        exchange.flow = None
        if exchange.started:
            self._exchange = None
            self._abort()
        else:
            self._refuse(Refusal(500, "internal_error", "The gateway failed; it has logged why."))
            self._exchange = None

    def _go_on(self, exchange: Exchange) -> None:
        self._exchange = None
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if exchange.keep_alive and not self._server.closing:
            if self._reader.ready:
                self._next()
            else:
                self._set_phase()
        else:
            transport.close()

    def _stop_answering(self) -> None:
        if self._task is not None:
            # once it has begun: one that is cancelled before never gives back what it was given
            asyncio.get_running_loop().call_soon(self._task.cancel)
        elif self._exchange is not None and self._exchange.flow is not None:
            flow, self._exchange.flow = self._exchange.flow, None
            flow.left()

    def _set_phase(self) -> None:
        phase = self._reader.phase()
        if phase == self._phase:
            return  # progress does not extend a limit
        self._phase = phase
        self._deadline = self._loop.time() + self._phase_s[phase]

    def _refuse(self, refusal: Refusal, extra: bytes = b"") -> None:
        """Say why and end. Input goes on being thrown away for a moment: closing a socket with unread input
        resets it, and the client would never read what was said."""
        if self._transport is None or self._transport.is_closing():
            return
        body = self._server.refusal_body(refusal)
        lines = head(refusal.status, JSON, False, extra)
        self.write(b"%bcontent-length: %d\r\n\r\n%b" % (lines, len(body), body))
        self._lingering_bytes = 0
        self._deadline = asyncio.get_running_loop().time() + self._limits.linger_s
        if self._server.linger(self) and self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()  # under TLS too, whose end says that all was said

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class HttpServer:
    """The listening socket and its connections."""

    def __init__(self, handler: Handler, refusal_body: RefusalBody, limits: Limits) -> None:
        self.handler = handler
        self.refusal_body = refusal_body
        self.limits = limits
        self.heads = known_heads(limits.body_bytes)
        self.closing = False
        self._connections: set[HttpConnection] = set()
        self._lingering: set[HttpConnection] = set()
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None

    async def listen(
        self, host: str, port: int, *, reuse_port: bool = False, tls: ssl.SSLContext | None = None
    ) -> int:
        """Accept connections; returns the port (of use when 0 was asked). With `reuse_port` other processes may
        do the same at that port. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: HttpConnection(self),
            host,
            port,
            backlog=1024,
            reuse_port=reuse_port or None,
            ssl=tls,
            ssl_handshake_timeout=self.limits.head_s if tls is not None else None,
            ssl_shutdown_timeout=self.limits.linger_s if tls is not None else None,
        )
        self._sweeper = loop.create_task(self._sweep())
        port_taken: int = self._server.sockets[0].getsockname()[1]
        return port_taken

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._connections)

    @property
    def busy(self) -> int:
        """How many of them are being answered."""
        return sum(connection.busy for connection in self._connections)

    def admit(self, connection: HttpConnection) -> bool:
        """Whether there is room for one more; it is counted if so."""
        if len(self._connections) >= self.limits.connections:
            return False
        self._connections.add(connection)
        return True

    def linger(self, connection: HttpConnection) -> bool:
        """Keep an eye on a refused connection until it is gone; False where too many linger already."""
        if len(self._lingering) >= self.limits.lingering:
            return False
        self._lingering.add(connection)
        return True

    def forget(self, connection: HttpConnection) -> None:
        """A client is gone."""
        self._connections.discard(connection)
        self._lingering.discard(connection)

    async def close(self, grace_s: float) -> None:
        """Accept nothing more, let answers end within the grace, then cut what is left."""
        self.closing = True
        assert self._server is not None and self._sweeper is not None
        self._server.close()
        loop = asyncio.get_running_loop()
        end = loop.time() + grace_s
        while self.busy and loop.time() < end:
            for connection in list(self._connections):
                connection.close_when_idle()
            await asyncio.sleep(0.05)
        self._sweeper.cancel()
        for connection in list(self._connections | self._lingering):
            connection.cut()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self.limits.sweep_s)
            now = loop.time()
            for connection in list(self._connections | self._lingering):
                connection.sweep(now)
