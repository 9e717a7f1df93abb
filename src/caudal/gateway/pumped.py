"""A connection to a replica whose ordinary chunks go to the client in C. Only to be made where wire.BUILT.

Python reads every answer's beginning, its end, and whatever is not ordinary. When it has dealt with that, and stands
between two chunks and two events, it opens the valve for the sink's pump; the first bytes that are not ordinary close
it again, unread. httptools' parser knows nothing of the chunks in between, and need not: between two chunks its state is
the same after every one of them.
"""

from __future__ import annotations

from caudal.gateway import wire
from caudal.gateway.upstream import FOREVER, UpstreamConnection, UpstreamLimits


class PumpedConnection(UpstreamConnection):
    """`UpstreamConnection`, with a valve before it."""

    def __init__(self, limits: UpstreamLimits) -> None:
        self._valve = wire.Valve(self._heard)
        self._passed = 0
        self._between_chunks = False
        self._read = super().data_received
        super().__init__(limits)
        self.data_received = self._valve.feed  # type: ignore[method-assign, assignment]  # for transports

    def detach(self) -> None:
        """The sink is told no more."""
        self._valve.close()
        super().detach()

    def overdue(self, now: float) -> bool:
        """Whether the sink has waited for too long; what C passed on since this was asked last is a sign of life."""
        passed = self._valve.passed
        if passed != self._passed:
            self._passed = passed
            if self.deadline != FOREVER:
                self.deadline = now + self._limits.stall_s
        return super().overdue(now)

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._between_chunks = False
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        """A chunk begins."""
        self._between_chunks = False

    def on_chunk_complete(self) -> None:
        """It is whole."""
        self._between_chunks = True

    def _heard(self, data: bytes) -> None:
        """Bytes of an answer that are not ordinary chunks."""
        if not self._head_bytes and not self.complete:
            found = self._find(data)
            if found is not None:
                self._answered(*found)
                return
        self._read(data)
        # a size's line that has begun has no line feed yet
        if self._between_chunks and not self.complete and self.sink is not None and data.endswith(b"\n"):
            pump = self.sink.pump()
            if pump is not None:
                self._valve.open(pump)

    def _fail(self, why: str, *, stale: bool = False, lost: bool = False) -> None:
        self._valve.close()
        super()._fail(why, stale=stale, lost=lost)
