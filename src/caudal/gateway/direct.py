"""A generation carried by callbacks alone: the way of nearly every request, without a task, a future or a timer.

It begins where a place and a kept connection are to be had at once, and goes on while all goes well. Whatever else
happens (a status that is not 200, a failure, a stream that is no stream) is handed over, with what has been said so
far, to the task that gateway/generation.py makes of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

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


class Direct(ABC):
    """upstream.Sink and http_server.Flow of one request. A subclass says what is done at its end: `finish` is told the
    status, once, unless it was handed over; then whoever took it tells. What is set at the `start` is there from then on."""

    __slots__ = ("_connection", "_pool", "answer", "exchange", "takes_whole", "ticket")

    answer: Relay | Whole
    ticket: Ticket

    def __init__(self, exchange: Exchange, pool: UpstreamPool) -> None:
        self.exchange = exchange
        self._pool = pool

    def start(self, ticket: Ticket, connection: UpstreamConnection, request: bytes) -> None:
        """Send it."""
        self.ticket = ticket
        self._connection = connection
        self.exchange.flow = self
        answer = self.answer
        answer.open(ticket, connection)
        self.takes_whole = type(answer) is Whole  # a stream is looked at event by event
        self._pool.start(connection, request, self)

    @abstractmethod
    def finish(self, status: int) -> None:
        """It is over, with this status."""

    @abstractmethod
    def hand_over(self, begun: UpstreamConnection | None, failure: Failure | None) -> None:
        """What came is not carried here: `begun` has it, or `failure` says why there is nothing."""

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

    def in_one(self, body: bytes) -> None:
        """All of a good answer."""
        answer, ticket = self.answer, self.ticket
        assert isinstance(answer, Whole)
        self._pool.keep(ticket.address, self._connection)
        try:
            answer.say(body)
        except NotEvents as failure:
            self.hand_over(None, failure)
            return
        ticket.release(True)
        self.finish(200)

    def whole(self) -> None:
        """All of it came."""
        ticket = self.ticket
        self._pool.release(ticket.address, self._connection)
        try:
            self.answer.whole()
        except NotEvents as failure:
            self.hand_over(None, failure)
            return
        ticket.release()
        self.finish(200)

    def failed(self, failure: UpstreamFailed) -> None:
        """The replica failed; after its last word that does not matter."""
        if self.answer.over:
            self.whole()
        else:
            self.hand_over(None, failure)

    def _leave(self, failure: Failure | None) -> None:
        connection = self._connection
        connection.detach()
        if failure is not None:
            connection.close()
        self.hand_over(connection if failure is None else None, failure)

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
        self.finish(CLIENT_LEFT)
