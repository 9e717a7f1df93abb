"""One answer that is not streamed: asked for, read to its end, sent. Until then it can be asked for again."""

from __future__ import annotations

from caudal.domain.key import Usage
from caudal.gateway import wire
from caudal.gateway.admitter import Permit
from caudal.gateway.engine_dialects import check_parameters
from caudal.gateway.engine_request import RETRY_STATUSES, generation_request
from caudal.gateway.events import NotEvents, renamed, right_names
from caudal.gateway.exchange import Exchange
from caudal.gateway.external import Paid
from caudal.gateway.metrics import Metrics
from caudal.gateway.openai_api import BYTES_PER_TOKEN, Call
from caudal.gateway.openai_errors import ApiError, engine_error
from caudal.gateway.router import Router, Ticket
from caudal.gateway.upstream import UpstreamConnection, UpstreamFailed
from caudal.gateway.upstream_pool import UpstreamPool
from caudal.gateway.usage import Measured, usage_of

MAX_BYTES = 32 * 1024 * 1024


class Whole:
    """An answer in one piece."""

    def __init__(
        self,
        exchange: Exchange,
        call: Call,
        permit: Permit,
        pool: UpstreamPool,
        metrics: Metrics,
        router: Router,
    ) -> None:
        self.usage: Usage | None = None  # what it used; None: it does not say
        self._exchange = exchange
        self._call = call
        self._permit = permit
        self._pool = pool
        self._metrics = metrics
        self._now = router.now
        self._began_at = router.now()

    @property
    def measured(self) -> Measured | None:
        """The same, as it is told of streams."""
        return Measured(self.usage) if self.usage is not None else None

    @property
    def started(self) -> bool:
        """Whether the client has a part of it; after an attempt that failed it never has."""
        return self._exchange.started

    @property
    def finished(self) -> bool:
        """The same."""
        return self._exchange.finished

    async def attempt(
        self, ticket: Ticket, connection: UpstreamConnection | None = None, paid: Paid | None = None
    ) -> None:
        """Get it from this replica. Raises ApiError, UpstreamFailed, NotEvents."""
        call = self._call
        if call.extras and connection is None:
            check_parameters(ticket.engine, call.model, call.extras)
        if paid is not None:
            connection = await self._pool.request(ticket.address, paid.request)
        elif connection is None:
            connection = await self._pool.request(ticket.address, generation_request(call, ticket))
        try:
            refused = paid is not None and paid.refuses(connection.status)
            if refused or connection.status in RETRY_STATUSES:
                raise UpstreamFailed(f"it answered {connection.status}")
            body = await connection.read_all()
            if connection.status != 200:
                raise engine_error(connection.status, body, call.prompt_param)
            self.open(ticket, connection)
            self.piece(body if paid is None else paid.whole(body))
            self.whole()
        finally:
            self._pool.release(ticket.address, connection)

    def open(self, ticket: Ticket, connection: UpstreamConnection) -> None:
        """A replica begins to answer."""
        self._ticket = ticket
        self._pieces: list[bytes] = []
        self._size = 0

    over = False

    def piece(self, data: bytes) -> None:
        """Keep what came. Raises NotEvents where that is too much."""
        self._pieces.append(data)
        self._size += len(data)
        if self._size > MAX_BYTES:
            raise NotEvents("the answer is larger than is accepted")

    def pump(self) -> wire.Pump | None:
        """It is kept until it is whole."""
        return None

    def whole(self) -> None:
        """Say all of it. Raises NotEvents where it is no answer."""
        self.say(self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces))

    def say(self, body: bytes) -> None:
        """Say this, which is all of it. Raises NotEvents where it is no answer."""
        close, wide = right_names(self._call.model)
        named = body if close in body or wide in body else renamed(self._call.model, body)
        self.usage = used = usage_of(body)
        permit = self._permit
        if used is not None:
            permit.reply_tokens = used.completion_tokens
            self._ticket.done(used.prompt_tokens + used.completion_tokens)
        else:
            permit.reply_tokens = 0
            self._ticket.done(self._call.prompt_tokens + len(body) // BYTES_PER_TOKEN)
        self._exchange.respond(200, named, extra=permit.headers())
        self._metrics.first_byte(self._now() - self._began_at)

    def lost(self) -> None:
        """Nothing is to be saved."""

    def fail(self, error: ApiError) -> None:
        """Not to be called: an answer that is not begun fails by raising."""
        raise error
