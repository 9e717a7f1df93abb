"""One request and its answer: what a handler gets, and how it answers. Knows nothing of sockets, models or OpenAI."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any, Protocol

from caudal.gateway import wire
from caudal.gateway.callers import NOBODY
from caudal.gateway.http_request import Request

Answering = Coroutine[Any, Any, None]

JSON = b"application/json"
CLOSE = b"connection: close\r\n"

_STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}


class Client(Protocol):
    """The connection that an exchange is on."""

    def write(self, data: bytes) -> None:
        """Send, or drop it when the client is gone."""

    def write_whole(self, data: bytes) -> None:
        """The same, of what nothing follows at once."""

    async def drained(self) -> None:
        """Return when the client has taken enough."""

    def pump(self, keep: Callable[[bytes], object], most: int) -> wire.Pump | None:
        """What sends chunks of an answer to it in C."""

    def answered(self, exchange: Exchange) -> None:
        """An exchange has its whole answer."""

    def run(self, exchange: Exchange, answering: Answering) -> None:
        """Answer in a task."""

    def address(self) -> str:
        """Where the client is."""


def head(status: int, content_type: bytes, keep_alive: bool, extra: bytes) -> bytes:
    """The head of an answer, up to the lines that say how long its body is."""
    connection = b"" if keep_alive else CLOSE
    return b"%bcontent-type: %b\r\n%b%b" % (_STATUS_LINES[status], content_type, connection, extra)


class Flow(Protocol):
    """Who answers an exchange from callbacks, and is told how its client does."""

    def pause(self) -> None:
        """The client takes less than is sent: send no more for now."""

    def resume(self) -> None:
        """It caught up."""

    def left(self) -> None:
        """It is gone, or cut off: whatever is done for it stops. Nothing is told after this."""


def _no_lines(exchange: Exchange) -> bytes:
    return b""


class Exchange:
    """One request, who asks, and its answer: either `respond` once, or `begin`, `send`..., `end`."""

    __slots__ = (
        "_chunked",
        "_connection",
        "begun_at",
        "caller",
        "finished",
        "flow",
        "keep_alive",
        "lines",
        "request",
        "started",
    )

    def __init__(self, connection: Client, request: Request, keep_alive: bool) -> None:
        self.request = request
        self.caller = NOBODY  # until the handler knows better
        self.started = False
        self.finished = False
        self.flow: Flow | None = None
        self.begun_at: float  # by the clock of whoever makes the lines, and set by whom
        self.lines: Callable[[Exchange], bytes] = _no_lines  # further header lines of whatever is answered
        self._connection = connection
        self.keep_alive = keep_alive  # whether the connection may serve another request after this one
        self._chunked = False

    def respond(self, status: int, body: bytes, content_type: bytes = JSON, extra: bytes = b"") -> None:
        """The whole answer at once. `extra` are further header lines, each with its line end."""
        assert not self.started
        self.started = self.finished = True
        connection = self._connection
        connection.write_whole(
            b"%bcontent-type: %b\r\n%b%b%bcontent-length: %d\r\n\r\n%b"
            % (
                _STATUS_LINES[status],
                content_type,
                b"" if self.keep_alive else CLOSE,
                extra,
                self.lines(self),
                len(body),
                b"" if self.request.head.method == "HEAD" else body,
            )
        )
        connection.answered(self)

    def begin(self, status: int, content_type: bytes, extra: bytes = b"") -> None:
        """Start an answer whose length is not known."""
        assert not self.started
        self.started = True
        self._chunked = self.request.head.http_1_1
        self.keep_alive = self.keep_alive and self._chunked
        coding = b"transfer-encoding: chunked\r\n\r\n" if self._chunked else b"\r\n"
        extra += self.lines(self)
        self._connection.write(head(status, content_type, self.keep_alive, extra) + coding)

    def begin_with(self, data: bytes, content_type: bytes, extra: bytes) -> None:
        """`begin` of a good answer, and `send` of its first bytes, without waiting for the loop's turn."""
        assert not self.started and data
        self.started = True
        lines = self.lines(self)
        if self.request.head.http_1_1:
            self._chunked = True
            form = b"%bcontent-type: %b\r\n%b%b%btransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n"
            close = b"" if self.keep_alive else CLOSE
            said = form % (_STATUS_LINES[200], content_type, close, extra, lines, len(data), data)
        else:
            self.keep_alive = False
            said = head(200, content_type, False, extra + lines) + b"\r\n" + data
        self._connection.write_whole(said)

    def send(self, data: bytes) -> None:
        """The next bytes of a begun answer."""
        assert self.started and not self.finished
        if data:
            self._connection.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def pump(self, keep: Callable[[bytes], object], most: int) -> wire.Pump | None:
        """What sends events of a begun answer as `send` would; see _wire.pyi. None where there is nothing like that."""
        return self._connection.pump(keep, most) if self._chunked else None

    def end(self) -> None:
        """The end of a begun answer."""
        assert self.started and not self.finished
        self.finished = True
        if self._chunked:
            self._connection.write(b"0\r\n\r\n")
        self._connection.answered(self)

    def go_on(self, answering: Answering) -> None:
        """What callbacks began goes on in a task; the flow has ended."""
        self.flow = None
        self._connection.run(self, answering)

    def address(self) -> str:
        """The address that the client's connection comes from."""
        return self._connection.address()

    async def drained(self) -> None:
        """Return when the client has taken enough for more to be sent."""
        await self._connection.drained()
