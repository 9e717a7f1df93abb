"""An exchange whose answer is changed on its way to the client. What it is changed to is a subclass's business.

Whoever answers it sees an ordinary exchange: retries, rescues and errors work as they do for any other.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from caudal.gateway import wire
from caudal.gateway.events import NotEvents
from caudal.gateway.exchange import JSON, Exchange

_GARBAGE = (LookupError, TypeError, AttributeError, ValueError, RecursionError, msgspec.DecodeError)


def understood(change: Callable[[bytes], bytes], data: bytes) -> bytes:
    """The change made. Raises NotEvents where the engine sent what cannot be changed: it failed, then."""
    try:
        return change(data)
    except _GARBAGE as error:
        raise NotEvents(f"what it sent is not an answer ({type(error).__name__})") from None


class EventLines:
    """Bytes of a stream of events in any pieces, the data of whole events out."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """What the `data:` lines that are whole now say, `[DONE]` included."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]


class FilteredExchange(Exchange):
    """The exchange within, with other bytes. Errors pass as they are."""

    __slots__ = ("inner",)

    def __init__(self, inner: Exchange) -> None:
        self.inner = inner
        self.request = inner.request
        self.caller = inner.caller
        self.started = self.finished = False

    def whole(self, body: bytes) -> bytes:
        """What a good answer becomes."""
        return body

    def events(self, data: bytes) -> bytes:
        """What a piece of a stream becomes (maybe nothing)."""
        return data

    def respond(self, status: int, body: bytes, content_type: bytes = JSON, extra: bytes = b"") -> None:
        """The whole answer at once."""
        changed = understood(self.whole, body) if status == 200 else body
        self.started = self.finished = True
        self.inner.respond(status, changed, content_type, extra)

    def begin(self, status: int, content_type: bytes, extra: bytes = b"") -> None:
        """Start a stream."""
        self.started = True
        self.inner.begin(status, content_type, extra)

    def begin_with(self, data: bytes, content_type: bytes, extra: bytes) -> None:
        """Start a stream with its first piece."""
        self.begin(200, content_type, extra)
        self.send(data)

    def send(self, data: bytes) -> None:
        """The next piece of it."""
        changed = understood(self.events, data)
        if changed:
            self.inner.send(changed)

    def pump(self, keep: Callable[[bytes], object], most: int) -> wire.Pump | None:
        """Nothing passes here unseen."""
        return None

    def end(self) -> None:
        """Its end."""
        self.finished = True
        self.inner.end()

    async def drained(self) -> None:
        """Return when the client has taken enough for more to be sent."""
        await self.inner.drained()
