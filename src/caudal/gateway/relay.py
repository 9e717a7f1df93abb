"""One streamed answer on its way from a replica to its client.

While all goes well bytes are forwarded as they come, event by event: a chunk costs a few searches, and is kept
in case that it is needed. When the replica fails, `rescue` decides how the answer goes on at the next one, and
this module carries that out. Knows nothing of which replica is next.
"""

from __future__ import annotations

import asyncio

import msgspec

from caudal.domain.key import Usage
from caudal.gateway import wire
from caudal.gateway.address import Address
from caudal.gateway.admitter import Permit
from caudal.gateway.continuation import Ask, Impossible, Work
from caudal.gateway.engine_dialects import check_parameters
from caudal.gateway.engine_request import RETRY_STATUSES, generation_request, post
from caudal.gateway.events import EventSplitter, ModelName, NotEvents
from caudal.gateway.exchange import Exchange
from caudal.gateway.external import Paid
from caudal.gateway.hedge import hedged_request
from caudal.gateway.metrics import Metrics
from caudal.gateway.openai_api import Call
from caudal.gateway.openai_errors import ApiError, engine_error, rescue_impossible
from caudal.gateway.rescue import Rescue
from caudal.gateway.router import Router, Ticket
from caudal.gateway.said import PACK_BYTES, Said, SaidLog
from caudal.gateway.upstream import UpstreamConnection, UpstreamFailed
from caudal.gateway.upstream_pool import UpstreamPool
from caudal.gateway.usage import Measured, UsageTap, estimated, total

EVENT_STREAM = b"text/event-stream"
NO_BUFFERING = b"cache-control: no-cache\r\nx-accel-buffering: no\r\n"
ASK_S = 5.0
"""How long a replica may take to say how it would go on: tokenizing a long prompt takes milliseconds."""


class Relay:
    """A stream, from its first replica to its last."""

    def __init__(
        self,
        exchange: Exchange,
        call: Call,
        permit: Permit,
        pool: UpstreamPool,
        metrics: Metrics,
        router: Router,
    ) -> None:
        self.model = call.model
        self._heard = 0  # chunks that came here
        self.moves = 0  # how often it was moved because of a silence
        self.silent_s = 0.0  # how long its replica had said nothing when it was given up
        self.ticket: Ticket | None = None
        self.connection: UpstreamConnection | None = None  # the one that is being read
        self.first_byte_s: float | None = None
        self._began_at = router.now()
        self._router = router
        self._exchange = exchange
        self._call = call
        self._permit = permit
        self._pool = pool
        self._metrics = metrics
        self._now = router.now
        self._tap = UsageTap(swallow=not call.include_usage)
        self._log = SaidLog()
        self._pump: wire.Pump | None = None  # what passes chunks on in our place
        self._paid: Paid | None = None
        self._splitter = EventSplitter()
        self._name = ModelName(call.model)
        self._opened = False  # before: then nothing was said yet
        self._rescue: Rescue | None = None
        self._lost_at: float | None = None

    @property
    def chunks(self) -> int:
        """Grows with every sign of life; for the watch."""
        return self._heard if self._pump is None else self._heard + self._pump.pieces

    @property
    def started(self) -> bool:
        """Whether the client has a part of the answer, so that it cannot be begun again."""
        return self._exchange.started

    @property
    def measured(self) -> Measured | None:
        """What the answer used, as far as it went; None where nothing was said."""
        rescue, known = self._rescue, self._tap.measured
        if rescue is not None and rescue.measured is not None:
            known = rescue.measured
        if known is not None or not self.started:
            return known
        tokens = self._said_log().count() if rescue is None else rescue.said.tokens
        return estimated(len(self._call.body), tokens)

    @property
    def usage(self) -> Usage | None:
        """The tokens of that."""
        measured = self.measured
        return measured.usage if measured is not None else None

    @property
    def speaking(self) -> bool:
        """Whether the engine has said a word, and not only that it is there (an empty event, a comment): before
        that it may be reading a long prompt. Costs a look at all that came."""
        log = self._said_log()
        if self._rescue is not None or log.too_long:
            return True
        said = Said()
        try:
            said.add_all(log.bytes())
        except NotEvents:
            return True
        return bool(said.pieces)

    @property
    def finished(self) -> bool:
        """Whether the client has all that it will get."""
        return self._exchange.finished

    async def attempt(
        self, ticket: Ticket, connection: UpstreamConnection | None = None, paid: Paid | None = None
    ) -> None:
        """Begin the answer at this replica, or go on with it there, to its end. Raises ApiError while the
        client has nothing; UpstreamFailed, NotEvents; Impossible."""
        self.ticket = ticket
        if self._rescue is None:
            await self._begin(ticket, connection, paid)
        else:
            await self._go_on(self._rescue, ticket)

    async def _begin(self, ticket: Ticket, connection: UpstreamConnection | None, paid: Paid | None) -> None:
        call = self._call
        self._paid = paid
        if call.extras and connection is None:
            check_parameters(ticket.engine, call.model, call.extras)
        if paid is not None:
            connection = await self._pool.request(ticket.address, paid.request)
        elif connection is None:
            asked = self._pool, ticket, lambda place: generation_request(call, place)
            connection = await hedged_request(self._router, *asked, stream=True)
        try:
            refused = paid is not None and paid.refuses(connection.status)
            if refused or connection.status in RETRY_STATUSES:
                raise UpstreamFailed(f"it answered {connection.status}")
            if connection.status != 200:
                body = await connection.read_all()
                raise engine_error(connection.status, body, self._call.prompt_param)
            await self._forward(connection, ticket)
        finally:
            self._pool.release(ticket.address, connection)

    async def _forward(self, connection: UpstreamConnection, ticket: Ticket) -> None:
        self.open(ticket, connection)
        try:
            while data := await connection.read():
                self.piece(data)
                await self._exchange.drained()
        except UpstreamFailed:
            if not self.over:
                raise  # else it failed after its last word
        finally:
            self.connection = None
        self.whole()

    def open(self, ticket: Ticket, connection: UpstreamConnection) -> None:
        """A replica begins to answer: what is said from here on is its."""
        self.ticket, self.connection = ticket, connection
        if not self._opened:
            self._opened = True
            return
        self._heard, self._pump = self.chunks, None
        self._tap, self._log = UsageTap(swallow=not self._call.include_usage), SaidLog()
        self._splitter, self._name = EventSplitter(), ModelName(self._call.model)

    @property
    def over(self) -> bool:
        """Whether the replica has said its last word."""
        return self._splitter.done and not self._splitter.pending

    def piece(self, data: bytes) -> None:
        """Forward what came. Raises NotEvents."""
        self._heard += 1
        events = self._splitter.feed(data)
        if not events:
            return
        self._said_log().add(events)
        if self._paid is not None:
            self._paid.events(events)  # notes what it costs; what clients see of that, the tap decides
        events = self._name.events(self._tap.feed(events))
        if not events:
            return
        exchange = self._exchange
        if not exchange.started:
            assert self.ticket is not None
            self._permit.first_token()
            exchange.begin_with(events, EVENT_STREAM, NO_BUFFERING + self._permit.headers())
            self.first_byte_s = self._now() - self._began_at
            self._metrics.first_byte(self.first_byte_s)
            self.ticket.first_token()
        else:
            exchange.send(events)

    def pump(self) -> wire.Pump | None:
        """What does the same as `piece` with whole events that need only be sent; None where all of them need more,
        or a part of one waits."""
        if self._splitter.pending or self._splitter.done or not self._name.untouched:
            return None
        if self._paid is not None or not self._exchange.started or self._exchange.finished:
            return None
        if self._pump is None:
            self._pump = self._exchange.pump(self._log.add, PACK_BYTES)
        return self._pump

    def _said_log(self) -> SaidLog:
        """What was said, that which the pump has kept included."""
        if self._pump is not None:
            self._log.add(self._pump.take())
        return self._log

    def whole(self) -> None:
        """The replica has ended its answer. Raises NotEvents where that was not the end."""
        self.connection = None
        if not self.over:
            raise NotEvents("its stream ended without [DONE]")
        used = self._tap.measured
        self._permit.reply_tokens = used.usage.completion_tokens if used is not None else 0
        assert self.ticket is not None
        self.ticket.done(total(used.usage) if used is not None else self._call.prompt_tokens + self.chunks)
        self._exchange.end()

    def lost(self) -> None:
        """The replica failed within the answer. Raises Impossible where that is the end of it."""
        if self._lost_at is None:
            self._lost_at = self._now() - self.silent_s
        self.silent_s = 0.0
        self._permit.read_again()
        if self._rescue is not None:
            return
        log = self._said_log()
        if log.too_long:
            raise Impossible("more had been said than is kept for that")
        said = Said()
        try:
            said.add_all(log.bytes())
        except NotEvents as strange:
            raise Impossible(f"what had been said is not understood: {strange}") from strange
        self._rescue = Rescue(self._call, said)
        if said.done or (self._rescue.whole and said.usage is not None):
            self._finish(self._rescue)  # nothing is missing but its last bytes
        if said.failed:
            raise Impossible("its engine had said itself that it failed")

    async def _go_on(self, rescue: Rescue, ticket: Ticket) -> None:
        work = await self._plan(rescue, ticket)
        if work.body is not None:
            await self._continue(rescue, ticket, work.path, work.body)
        self._finish(rescue)
        if work.body is not None and rescue.measured is not None:
            ticket.done(total(rescue.measured.usage))

    def _finish(self, rescue: Rescue) -> None:
        self._send(rescue.end())
        self._metrics.rescued("whole")
        self._permit.reply_tokens = self._rescue.said.tokens if self._rescue is not None else 0
        self._exchange.end()

    def fail(self, error: ApiError) -> None:
        """End the stream with an event that says why, if it lacks anything but its end."""
        if self._rescue is not None and self._rescue.whole:
            self._finish(self._rescue)
            return
        self._metrics.broken_streams += 1
        self._metrics.rescued("impossible" if error.code == "rescue_impossible" else "failed")
        self._exchange.send(error.event())
        self._exchange.end()

    def impossible(self, why: Impossible) -> None:
        """The same where the answer is of a kind that cannot go on. One whose engine had itself told the
        client that it failed is ended without a second event."""
        if self._rescue is not None and self._rescue.said.failed:
            self._metrics.broken_streams += 1
            self._exchange.end()
        else:
            self.fail(rescue_impossible(str(why)))

    async def _plan(self, rescue: Rescue, ticket: Ticket) -> Work:
        plan = rescue.begin(ticket.engine, ticket.model)
        try:
            ask = next(plan)
            while True:
                try:
                    answer = await self._ask(ticket.address, ask)
                except Impossible as refused:
                    ask = plan.throw(refused)
                else:
                    ask = plan.send(answer)
        except StopIteration as end:
            work: Work = end.value
            return work

    async def _ask(self, address: Address, ask: Ask) -> dict[str, object]:
        request = post(address, ask.path, msgspec.json.encode(ask.body))
        try:
            async with asyncio.timeout(ASK_S):
                connection = await self._pool.request(address, request)
                try:
                    body = await connection.read_all()
                finally:
                    self._pool.release(address, connection)
        except TimeoutError:
            raise UpstreamFailed(f"no answer from {ask.path} within {ASK_S:g} s") from None
        if connection.status in RETRY_STATUSES:
            raise UpstreamFailed(f"it answered {connection.status}")
        try:
            answer = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            answer = None
        if connection.status != 200 or not isinstance(answer, dict):
            raise Impossible(f"its engine refused {ask.path} with status {connection.status}")
        return answer

    async def _continue(self, rescue: Rescue, ticket: Ticket, path: str, body: dict[str, object]) -> None:
        address = ticket.address
        connection = await self._pool.request(address, post(address, path, msgspec.json.encode(body)))
        try:
            if connection.status in RETRY_STATUSES:
                raise UpstreamFailed(f"it answered {connection.status}")
            if connection.status != 200:
                error = engine_error(connection.status, await connection.read_all(), self._call.prompt_param)
                raise Impossible(f"its engine refused to go on: {error.message}")
            splitter = EventSplitter()
            self.connection = connection
            while not rescue.ended and (data := await connection.read()):
                self._heard += 1
                self._send(rescue.hear(splitter.feed(data)))
                await self._exchange.drained()
            if not rescue.ended:
                raise NotEvents("its stream ended without [DONE]")
        finally:
            self.connection = None
            self._pool.release(address, connection)

    def _send(self, data: bytes) -> None:
        if data and self._lost_at is not None:
            self._metrics.paused(self._now() - self._lost_at)
            self._permit.first_token()
            self._lost_at = None
        self._exchange.send(data)
