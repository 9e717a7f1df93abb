"""A generation carried by callbacks alone: the way of nearly every request, without a task, a future or a timer.

It begins where a place and a kept connection are to be had at once, and goes on while all goes well. Whatever else
happens (a status that is not 200, a failure, a stream that is no stream) is handed over, with what has been said so
far, to the task that gateway/generation.py makes of it.
"""

from __future__ import annotations

from collections.abc import Callable

from caudal.gateway import wire
from caudal.gateway.account import CLIENT_LEFT
from caudal.gateway.events import NotEvents
from caudal.gateway.exchange import Exchange
from caudal.gateway.relay import Relay
from caudal.gateway.router import Ticket
from caudal.gateway.upstream import UpstreamConnection, UpstreamFailed
from caudal.gateway.upstream_pool import UpstreamPool
from caudal.gateway.whole import Whole

Failure = UpstreamFailed | NotEvents
HandOver = Callable[["Direct", UpstreamConnection | None, Failure | None], None]


class Direct:
    """upstream.Sink and http_server.Flow of one request. `finish` is told the status, once, unless it was handed
    over: then whoever took it tells."""

    __slots__ = ("_connection", "_exchange", "_finish", "_hand_over", "_pool", "answer", "ticket")

    def __init__(
        self,
        exchange: Exchange,
        answer: Relay | Whole,
        ticket: Ticket,
        connection: UpstreamConnection,
        pool: UpstreamPool,
        hand_over: HandOver,
        finish: Callable[[int], None],
    ) -> None:
        self._exchange = exchange
        self.answer = answer
        self.ticket = ticket
        self._connection = connection
        self._pool = pool
        self._hand_over = hand_over
        self._finish = finish

    def start(self, request: bytes) -> None:
        """Send it."""
        self._exchange.flow = self
        self.answer.open(self.ticket, self._connection)
        self._pool.start(self._connection, request, self)

    # What the upstream connection says.

    def begun(self) -> None:
        """Only a good answer is carried here."""
        if self._connection.status != 200:
            self._leave(None)

    def piece(self, data: bytes) -> None:
        """Bytes of the answer."""
        try:
            self.answer.piece(data)
        except NotEvents as failure:
            self._leave(failure)

    def pump(self) -> wire.Pump | None:
        """A stream's."""
        return self.answer.pump()

    def whole(self) -> None:
        """All of it came."""
        self._pool.release(self.ticket.address, self._connection)
        try:
            self.answer.whole()
        except NotEvents as failure:
            self._hand_over(self, None, failure)
            return
        self.ticket.release()
        self._finish(200)

    def failed(self, failure: UpstreamFailed) -> None:
        """The replica failed; after its last word that does not matter."""
        if self.answer.over:
            self.whole()
        else:
            self._hand_over(self, None, failure)

    def _leave(self, failure: Failure | None) -> None:
        connection = self._connection
        connection.detach()
        if failure is not None:
            connection.close()
        self._hand_over(self, connection if failure is None else None, failure)

    # What the client's connection says.

    def pause(self) -> None:
        """The client is slow: so is its replica."""
        self._connection.pause()

    def resume(self) -> None:
        """It caught up."""
        self._connection.resume()

    def left(self) -> None:
        """The client is gone: its replica is told by the end of the connection."""
        self._connection.detach()
        self._connection.close()
        self.ticket.release()
        self._finish(CLIENT_LEFT)
