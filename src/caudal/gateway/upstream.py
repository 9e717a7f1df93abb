"""Connections from the gateway to replicas: pooled, kept alive, read as a stream.

Knows HTTP/1.1 only, nothing of models. Whoever asks waits for the answer and reads it, or gives a `Sink` that is
told of it from the loop's callbacks: no task, future or timer is made then. An answer that is not read to its end
closes its connection, which is how a replica learns that nobody waits any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import httptools

from caudal.gateway import wire
from caudal.gateway.known_heads import known_heads


class UpstreamFailed(Exception):
    """The other side could not be reached, died, stalled, or said what is not HTTP.

    `stale` marks the one harmless case: a kept connection that was closed before any byte of the answer.
    `lost` marks the one that the request itself may have caused: the other side hung up over it. `unsent`: there
    was no connection, and nothing of the request has left.
    """

    def __init__(self, why: str, *, stale: bool = False, lost: bool = False, unsent: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.stale = stale
        self.lost = lost
        self.unsent = unsent


@dataclass(frozen=True, slots=True)
class UpstreamLimits:
    """How long the other side may take, and how much may wait here.

    `first_byte_s` is long, because an engine queues requests and reads long prompts before it says anything;
    `stall_s` is the longest silence within an answer. `idle_s` is below the 5 s after which llama.cpp
    closes a kept connection.
    """

    connect_s: float = 2.0
    tls_connect_s: float = 6.0  # three round trips instead of one, and mostly farther away
    first_byte_s: float = 300.0
    stall_s: float = 60.0
    idle_s: float = 4.0
    idle_connections: int = 64
    buffer_bytes: int = 256 * 1024
    head_bytes: int = 32 * 1024
    body_bytes: int = 32 * 1024 * 1024


class Sink(Protocol):
    """Who is told of an answer as it comes. After `whole` or `failed` nothing more is said."""

    def begun(self) -> None:
        """The head is there: status and headers."""

    def piece(self, data: bytes) -> None:
        """Bytes of the body."""

    @property
    def takes_whole(self) -> bool:
        """Whether a good answer that came in one may be said in one, by `in_one`."""

    def in_one(self, body: bytes) -> None:
        """A good answer (its status is 200) is whole, and the connection may be given back: `begun`, `piece` and `whole`
        at once."""

    def whole(self) -> None:
        """The answer is whole, and the connection may be given back."""

    def pump(self) -> wire.Pump | None:
        """What may be given ordinary chunks from here on, in the sink's place; None: nothing."""

    def failed(self, failure: UpstreamFailed) -> None:
        """There will be no more of it; the connection is closed."""


FOREVER = float("inf")
SWEEP_S = 0.5


_HEADS = known_heads(UpstreamLimits().body_bytes)
"""What they mean is the status, which is 200 for all that are kept."""


class UpstreamConnection(asyncio.Protocol):
    """One connection to a replica, used for one request after the other."""

    def __init__(self, limits: UpstreamLimits) -> None:
        self.status = 0
        self.complete = True  # nothing of an answer is outstanding
        self.idle_since = 0.0
        self.sink: Sink | None = None
        self.deadline = FOREVER  # of who has a sink
        self._head_told = False
        self._limits = limits
        self._first_byte_s = limits.first_byte_s
        self._loop = asyncio.get_running_loop()
        self._find = _HEADS.find
        self._transport: asyncio.Transport | None = None
        self._write: Callable[[bytes], None]  # from when it is connected
        self._parser = httptools.HttpResponseParser(self)
        self._chunks: list[bytes] = []
        self._buffered_bytes = 0
        self._head_bytes = 0
        self._head_done = False
        self._any_byte = False
        self._length: bytes | None = None  # its content-length
        self._coded = False  # it has a transfer-encoding
        self._stays = False  # the connection, behind the last answer that was parsed
        self._paused = False
        self._failure: UpstreamFailed | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._uses = 0

    def usable(self) -> bool:
        """Whether another request can be sent on it."""
        transport = self._transport
        return (
            self.complete and self._failure is None and transport is not None and not transport.is_closing()
        )

    @property
    def waiting(self) -> bool:
        """Whether somebody waits for the other side to say something."""
        return self._waiter is not None or (self.sink is not None and not self._paused)

    async def request(self, data: bytes) -> None:
        """Send a whole request and wait for the head of its answer. Raises UpstreamFailed."""
        self._send(data)
        while not self._head_done:
            await self._wait(self._limits.first_byte_s, "no answer within {:g} s")

    def start(self, data: bytes, sink: Sink) -> None:
        """Send a whole request; the sink is told of its answer."""
        assert self.complete
        self.sink, self._head_told = sink, False
        self.deadline = self._loop.time() + self._first_byte_s
        self.complete = self._head_done = self._any_byte = False
        self._head_bytes = 0
        self._uses += 1
        if self._failure is None:
            self._write(data)

    def overdue(self, now: float) -> bool:
        """Whether the sink has waited for too long."""
        return now > self.deadline

    def detach(self) -> None:
        """The sink is told no more: the rest is read, or the connection closed."""
        self.sink, self.deadline = None, FOREVER
        self.resume()

    def pause(self) -> None:
        """Read no more for now: what is said waits at the other side."""
        if not self._paused and self._transport is not None and not self.complete:
            self._paused = True
            self.deadline = FOREVER
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
            if self.sink is not None:
                self.deadline = self._loop.time() + self._limits.stall_s

    def _send(self, data: bytes) -> None:
        assert self.complete and self._transport is not None
        self.complete = self._head_done = self._any_byte = False
        self._head_bytes = 0
        self._uses += 1
        if self._failure is None:
            self._write(data)

    async def read(self) -> bytes:
        """What arrived since the last call, all of it; empty at the end. Raises UpstreamFailed."""
        while not self._chunks:
            if self.complete:
                return b""
            await self._wait(self._limits.stall_s, "silent for {:g} s within an answer")
        data = self._take()
        self.resume()
        return data

    def _take(self) -> bytes:
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._buffered_bytes = 0
        return data

    async def begun(self) -> None:
        """Wait for the first byte of the body, and leave it where it is. Raises UpstreamFailed."""
        while not self._chunks and not self.complete:
            await self._wait(self._limits.first_byte_s, "no answer within {:g} s")

    async def read_all(self) -> bytes:
        """The whole body. Raises UpstreamFailed, also when it is larger than this side keeps."""
        parts: list[bytes] = []
        size = 0
        while data := await self.read():
            parts.append(data)
            size += len(data)
            if size > self._limits.body_bytes:
                raise UpstreamFailed("the answer is larger than is accepted")
        return b"".join(parts)

    def give_up(self, why: str) -> None:
        """Wait no longer: whoever reads gets an UpstreamFailed with this reason."""
        self._fail(why)

    def close(self) -> None:
        """Leave now."""
        if self._transport is not None:
            self._transport.abort()

    # What the event loop and the parser call.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self._transport = told = cast(asyncio.Transport, transport)  # uvloop's is one in all but its class
        outlet = wire.outlet(told)
        self._write = told.write if outlet is None else outlet.send

    def data_received(self, data: bytes) -> None:
        """Bytes of an answer."""
        self._any_byte = True
        if self.complete:
            self._fail("it spoke without being asked")
            return
        fresh = not self._head_bytes
        if fresh:
            found = self._find(data)
            if found is not None:
                self._answered(*found)
                return
            self._length, self._coded = None, False
        if not self._head_done:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
            if fresh:
                self._remember(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail("what it said is not HTTP/1.1")
            return
        if not self._head_done and self._head_bytes > self._limits.head_bytes:
            self._fail("its headers are too large")
            return
        if self.sink is not None:
            self._tell(self.sink)
            return
        if self._buffered_bytes > self._limits.buffer_bytes and not self._paused and not self.complete:
            assert self._transport is not None
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def _answered(self, status: int, body: bytes) -> None:
        """A whole answer with a head that was parsed before."""
        self.status = status
        self._any_byte = self._head_done = self.complete = True
        self._head_bytes = 1
        sink = self.sink
        if sink is not None and status == 200 and sink.takes_whole:
            self.sink, self.deadline = None, FOREVER
            sink.in_one(body)
            return
        self._chunks.append(body)
        self._buffered_bytes += len(body)
        if sink is not None:
            self._tell(sink)
        else:
            self._wake()

    def _remember(self, data: bytes) -> None:
        """Keep the head of what was just read, if that was one plain good answer and nothing else. (One with another
        status may be of those that have no body whatever they say of its length.)"""
        plain = self.status == 200 and self.complete and self._stays and not self._coded
        if plain and self._length == b"%d" % self._buffered_bytes:
            _HEADS.keep(data, self.status)

    def connection_lost(self, error: Exception | None) -> None:
        """It is gone. An answer that is ended by nothing but this (no length, not chunked) cannot be told
        from one that was cut off, and counts as that."""
        if not self.complete:
            stale = self._uses > 1 and not self._any_byte
            self._fail("the connection was lost before the answer was whole", stale=stale, lost=True)
        elif self._failure is None:
            self._failure = UpstreamFailed("the connection was closed", stale=True)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header of the answer."""
        if self._head_done:
            return
        name = name.lower()
        if name == b"content-length":
            self._length = value if self._length is None else b""
        elif name == b"transfer-encoding":
            self._coded = True

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self.status = self._parser.get_status_code()
        if self.status < 200:
            raise ValueError("nobody asked for an interim answer")  # httptools makes a parser error of it
        self._head_done = True

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        self._chunks.append(data)
        self._buffered_bytes += len(data)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        self.complete = True
        self._stays = self._parser.should_keep_alive()  # only now: afterwards the parser has forgotten
        if not self._stays:
            self.close()

    def _fail(self, why: str, *, stale: bool = False, lost: bool = False) -> None:
        if self._failure is None:
            self._failure = UpstreamFailed(why, stale=stale, lost=lost)
        self.close()
        sink = self.sink
        if sink is None:
            self._wake()
        else:
            self.sink, self.deadline = None, FOREVER
            sink.failed(self._failure)

    def _tell(self, sink: Sink) -> None:
        """What just came. A sink may detach itself at any word; what is left is then read, or never."""
        if not self._head_done:
            return
        if not self._head_told:
            self._head_told = True
            sink.begun()
            if self.sink is not sink:
                return
        if self._chunks:
            sink.piece(self._take())
            if self.sink is not sink:
                return
        if self.complete:
            self.sink, self.deadline = None, FOREVER
            sink.whole()
        elif not self._paused:
            self.deadline = self._loop.time() + self._limits.stall_s

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def _wait(self, timeout_s: float, what: str) -> None:
        """Return when something arrived. What arrived before a failure is read first, by the caller."""
        self._raise_failure()
        self._waiter = self._loop.create_future()
        timer = self._loop.call_later(timeout_s, self._too_long, what, timeout_s)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None
        if not self._chunks and not self.complete:
            self._raise_failure()

    def _too_long(self, what: str, timeout_s: float) -> None:
        self._fail(what.format(timeout_s))

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
