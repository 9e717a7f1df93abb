"""One generation from a client's request to the last byte of its answer: replicas, attempts, what it used.

Until the first byte has gone to the client a failed replica costs a pause only: the request is sent again,
to another one where there is one. After that a stream goes on at another one where it can (`relay`, `rescue`),
and ends with an explicit error event where it cannot.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from caudal.gateway.account import Account, Record
from caudal.gateway.admitter import Admitter, Permit
from caudal.gateway.callers import NOBODY, Caller
from caudal.gateway.continuation import Impossible
from caudal.gateway.events import NotEvents
from caudal.gateway.http_server import Exchange
from caudal.gateway.metrics import Metrics
from caudal.gateway.openai_api import Call
from caudal.gateway.openai_errors import (
    model_not_found,
    no_replica,
    replica_failed,
    stream_broken,
)
from caudal.gateway.relay import Relay
from caudal.gateway.router import Router, Ticket
from caudal.gateway.upstream import UpstreamFailed, UpstreamPool
from caudal.gateway.usage import Measured
from caudal.gateway.watch import Watch
from caudal.gateway.whole import Whole
from caudal.gateway.wishes import wishes

log = logging.getLogger("caudal.gateway")

MAX_ATTEMPTS = 4
MAX_LOST = 2
"""A request over which so many replicas hung up is not given to another: it may be what kills them."""

OUTAGE_S = 1.0
"""Losses of a stream that are no further apart count as one: a site's replicas go together."""

WAIT_FOR_REPLICA_S = 10.0


Used = Callable[[Call, Measured], None]
"""Told what every answer used, once, also of one that was cut off."""


class Losses:
    """How often replicas hung up over one request."""

    def __init__(self) -> None:
        self.count = 0
        self._last_at = float("-inf")

    def add(self, now: float, *, streaming: bool) -> None:
        """One more. That a stream loses two replicas at once says nothing against it: it had got on well."""
        if not (streaming and now - self._last_at < OUTAGE_S):
            self.count += 1
        self._last_at = now


class Generations:
    """Carries generations out."""

    def __init__(
        self,
        router: Router,
        pool: UpstreamPool,
        metrics: Metrics,
        wait_s: float = WAIT_FOR_REPLICA_S,
        record: Record = lambda *_: None,
        *,
        used: Used = lambda call, measured: None,
        watch: Watch | None = None,
        admitter: Admitter | None = None,
    ) -> None:
        self._record = record
        self._used = used
        self._admitter = admitter or Admitter(router.capacity, router.now, metrics.admission)
        self._router = router
        self._pool = pool
        self._metrics = metrics
        self._wait_s = wait_s
        self._watch = watch or Watch(router)

    async def run(self, exchange: Exchange, call: Call, caller: Caller = NOBODY) -> int:
        """Answer the exchange, on the caller's account; returns the status that was sent. Raises ApiError while
        nothing was sent."""
        if self._router.model(call.model) is None or not caller.may_use(call.model):
            raise model_not_found(call.model)
        slo, deadline_s = wishes(exchange.request.headers, call.body)
        if caller.limits.budget_tokens:
            self._admitter.spent(caller.id, caller.spent_tokens, 0.0)
        with Account(self._record, caller.id, call.model) as account:
            permit = await self._admitter.admit(call, caller.id, caller.limits, slo, deadline_s)
            try:
                await self._carry_out(exchange, call, account, permit, caller.id)
            finally:
                permit.done()
        return 200

    async def _carry_out(
        self, exchange: Exchange, call: Call, account: Account, permit: Permit, who: str
    ) -> None:
        kind = Relay if call.stream else Whole
        answer = kind(exchange, call, permit, self._pool, self._metrics, self._router)
        if isinstance(answer, Relay):
            self._watch.add(answer)
        try:
            await self._answer(answer, call, who)
        except Impossible as impossible:
            assert isinstance(answer, Relay)
            answer.impossible(impossible)
        finally:
            if isinstance(answer, Relay):
                self._watch.remove(answer)
            if answer.measured is not None:
                account.usage = answer.measured.usage
                self._used(call, answer.measured)

    async def _answer(self, answer: Relay | Whole, call: Call, who: str) -> None:
        tried: frozenset[str] = frozenset()
        losses = Losses()
        why = ""
        version = 0
        for attempt in range(MAX_ATTEMPTS):
            ticket = await self._router.acquire(
                call.model,
                call.tokens,
                tried,
                self._wait_s,
                prompt_tokens=call.prompt_tokens,
                prefix=call.prefix,
                who=who,
                version=version,
            )
            if not isinstance(ticket, Ticket):
                if answer.started:
                    break
                raise no_replica(call.model, ticket.reason)
            version = ticket.version
            self._metrics.retries += attempt > 0 and not answer.started
            try:
                await answer.attempt(ticket)
                return
            except (UpstreamFailed, NotEvents) as failure:
                ticket.failed(hard=isinstance(failure, UpstreamFailed))
                tried |= {ticket.gang}
                why = str(failure)
                if isinstance(failure, UpstreamFailed) and failure.lost:
                    losses.add(self._router.now(), streaming=answer.started)
                log.warning("replica %s failed a request: %s", ticket.gang, why)
                if answer.started:
                    answer.lost()
                if answer.finished:
                    return
                if losses.count >= MAX_LOST:
                    break
            finally:
                ticket.release()
        if not answer.started:
            raise replica_failed(call.model, why)
        answer.fail(stream_broken(why))
