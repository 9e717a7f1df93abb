"""One generation from a client's request to the last byte of its answer: replicas, attempts, what it used.

Until the first byte has gone to the client a failed replica costs a pause only: the request is sent again,
to another one where there is one. After that a stream goes on at another one where it can (`relay`, `rescue`),
and ends with an explicit error event where it cannot.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from caudal.domain.key import Slo
from caudal.gateway.account import Account, Record, status_of
from caudal.gateway.admitter import Admitter, Permit
from caudal.gateway.callers import MAX_KEYS, NOBODY, Caller
from caudal.gateway.continuation import Impossible
from caudal.gateway.direct import Direct, Failure
from caudal.gateway.engine_request import generation_request
from caudal.gateway.events import NotEvents
from caudal.gateway.exchange import Answering, Exchange
from caudal.gateway.external import Externals
from caudal.gateway.metrics import Metrics
from caudal.gateway.openai_api import Call
from caudal.gateway.openai_errors import (
    ApiError,
    model_not_found,
    no_replica,
    replica_failed,
    stream_broken,
)
from caudal.gateway.outside import Admits
from caudal.gateway.plain_head import PlainHead
from caudal.gateway.relay import Relay
from caudal.gateway.router import Router, Ticket
from caudal.gateway.tracing import Tracing, within_trace
from caudal.gateway.upstream import UpstreamConnection, UpstreamFailed
from caudal.gateway.upstream_pool import UpstreamPool
from caudal.gateway.usage import Measured
from caudal.gateway.watch import Watch
from caudal.gateway.whole import Whole
from caudal.gateway.wishes import wishes
from caudal.policy.admission_types import Ask

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


class Job(Direct):
    """One request on its way; `answer` and `permit` from its admission on. `who` gets the same version of a model each
    time (empty: any). `cost`: what it cost so far at somebody else's addresses, in picodollars. `named`: the model that
    its answer is counted for (empty: it is not)."""

    __slots__ = ("_owner", "account", "call", "cost", "named", "permit", "who")

    permit: Permit

    def __init__(
        self, owner: Generations, exchange: Exchange, call: Call, who: str, account: Account, named: str
    ) -> None:
        self.exchange = exchange
        self._pool = owner.pool
        self._owner = owner
        self.call = call
        self.who = who
        self.account = account
        self.named = named
        self.cost = 0

    def finish(self, status: int) -> None:
        """All that is done at the end of a request, however it ends."""
        answer, account, owner = self.answer, self.account, self._owner
        metrics = owner.metrics
        if isinstance(answer, Relay):
            owner.watch.remove(answer)
            metrics.streams -= 1
            if account.trace is not None:
                account.trace.first_byte(answer.first_byte_s)
        usage = answer.usage
        if usage is not None:
            account.usage = usage
        if owner.used is not None and answer.measured is not None:
            owner.used(self.call, answer.measured)
        if self.cost:
            account.usage = replace(account.usage, picodollars=self.cost)
        self.permit.done()
        account.close(status)
        if self.named:
            metrics.requests += 1
            metrics.answers[self.named, status] += 1

    def hand_over(self, begun: UpstreamConnection | None, failure: Failure | None) -> None:
        """It goes on in a task."""
        self.exchange.go_on(self._owner.finish_in_task(self, self.ticket, begun, failure))


class Generations:
    """Carries generations out."""

    def __init__(
        self,
        router: Router,
        pool: UpstreamPool,
        metrics: Metrics,
        externals: Externals,
        wait_s: float = WAIT_FOR_REPLICA_S,
        record: Record = lambda *_: None,
        *,
        used: Used | None = None,
        watch: Watch | None = None,
        admitter: Admitter | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._record = record
        self._told: dict[str, Caller] = {}  # who has a budget, as admission was told of it
        self.used = used
        self._externals = externals
        self._tracing = tracing
        self._admitter = admitter or Admitter(router.capacity, router.now, metrics.admission)
        self._router = router
        self.pool = pool
        self.metrics = metrics
        self._wait_s = wait_s
        self.watch = watch or Watch(router)

    def begin(self, exchange: Exchange, call: Call, head: PlainHead, known: bool) -> Answering | None:
        """Answer the exchange from callbacks where that can begin at once, else by what is returned, which is to be
        awaited. `known`: the fleet serves the model. The status is counted once, unless this raises ApiError."""
        caller, model = exchange.caller, call.model
        limits = caller.limits
        if not known or (limits.models and model not in limits.models):
            raise model_not_found(model)
        slo = Slo.BATCH if head.slo is None and call.flex else head.slo
        account = Account(self._record, caller.id, model, self._router.asked(model))
        if self._tracing is not None:  # from here on it is closed, however this ends
            account.trace = self._tracing.begin(exchange.request.headers, call, caller.id)
        if head.traced or account.trace is not None:
            call = within_trace(call, exchange.request.headers, account.trace)
        if (limits.budget_tokens or limits.budget_usd) and self._told.get(caller.id) is not caller:
            self._tell_spent(caller)
        try:
            admitted = self._admitter.admit_now(call, caller.id, limits, slo, head.deadline_s)
        except ApiError as refused:
            account.close(refused.status)
            raise
        job = Job(self, exchange, call, "" if caller is NOBODY else caller.id, account, model)
        if not isinstance(admitted, Permit):
            return self._wait_and_answer(job, admitted)
        if call.stream:
            self._open(job, admitted)
        else:
            job.permit = admitted
            job.answer = Whole(exchange, call, admitted, self.pool, self.metrics, self._router)
        if call.extras:
            return self.finish_in_task(job, None, None, None)
        ticket = self._router.take(model, call.tokens, call.prompt_tokens, call.prefix, job.who)
        if ticket is None:
            return self.finish_in_task(job, None, None, None)
        if account.trace is not None:
            account.trace.place(ticket, started=False)
        connection = self.pool.take(ticket.address)
        if connection is None:
            return self.finish_in_task(job, ticket, None, None)
        job.start(ticket, connection, generation_request(call, ticket))
        return None

    async def _wait_and_answer(self, job: Job, waiting: Ask) -> None:
        try:
            permit = await self._admitter.wait(waiting)
        except BaseException as error:
            status = status_of(error)
            job.account.close(status)
            self.metrics.answered(job.named, status)
            if not isinstance(error, ApiError):
                raise
            job.exchange.respond(error.status, error.body(), extra=error.headers())
            return
        self._open(job, permit)
        await self.finish_in_task(job, None, None, None)

    async def finish_in_task(
        self,
        job: Job,
        ticket: Ticket | None,
        begun: UpstreamConnection | None,
        failure: Failure | None,
    ) -> None:
        """Answer, or go on answering, from where callbacks came to."""
        status = 200
        try:
            await self._carry_out(job, ticket, begun, failure)
        except BaseException as error:
            status = status_of(error)
            if not isinstance(error, ApiError):
                raise
            job.exchange.respond(error.status, error.body(), extra=error.headers())
        finally:
            job.finish(status)

    def _open(self, job: Job, permit: Permit) -> None:
        kind = Relay if job.call.stream else Whole
        job.permit = permit
        job.answer = kind(job.exchange, job.call, permit, self.pool, self.metrics, self._router)
        if isinstance(job.answer, Relay):
            self.watch.add(job.answer)
            self.metrics.streams += 1

    async def run(self, exchange: Exchange, call: Call, caller: Caller = NOBODY) -> int:
        """Answer the exchange, on the caller's account; returns the status that was sent. Raises ApiError while
        nothing was sent."""
        if self._router.model(call.model) is None or not caller.may_use(call.model):
            raise model_not_found(call.model)
        slo, deadline_s = wishes(exchange.request.headers, call.body)
        account = self._account(exchange, call, caller)  # from here on it is closed, however this ends
        call = within_trace(call, exchange.request.headers, account.trace)
        if caller.limits.budget_tokens or caller.limits.budget_usd:
            self._tell_spent(caller)
        try:
            permit = await self._admitter.admit(call, caller.id, caller.limits, slo, deadline_s)
        except BaseException as error:
            account.close(status_of(error))
            raise
        job = Job(self, exchange, call, "" if caller is NOBODY else caller.id, account, "")
        self._open(job, permit)
        status = 200
        try:
            await self._carry_out(job, None, None, None)
        except BaseException as error:
            status = status_of(error)
            raise
        finally:
            job.finish(status)
        return 200

    def _account(self, exchange: Exchange, call: Call, caller: Caller) -> Account:
        account = Account(self._record, caller.id, call.model, self._router.asked(call.model))
        if self._tracing is not None:
            account.trace = self._tracing.begin(exchange.request.headers, call, caller.id)
        return account

    def _tell_spent(self, caller: Caller) -> None:
        """What a key with a budget used so far, as control said last."""
        if len(self._told) >= MAX_KEYS:
            self._told.clear()
        self._told[caller.id] = caller
        self._admitter.spent(caller.id, caller.spent_tokens, caller.spent_usd)

    async def _carry_out(
        self, job: Job, ticket: Ticket | None, begun: UpstreamConnection | None, failure: Failure | None
    ) -> None:
        answer = job.answer
        try:
            await self._answer(answer, job, ticket, begun, failure)
        except Impossible as impossible:
            assert isinstance(answer, Relay)
            answer.impossible(impossible)

    async def _answer(
        self,
        answer: Relay | Whole,
        job: Job,
        ticket: Ticket | None,
        begun: UpstreamConnection | None,
        failure: Failure | None,
    ) -> None:
        """Attempt after attempt. The first one may have begun already: at `ticket`, with the head of its answer in
        `begun`, or with its end in `failure`."""
        call = job.call
        tried: frozenset[str] = frozenset()
        losses = Losses()
        why = ""
        version = 0
        if isinstance(failure, UpstreamFailed) and failure.stale:
            failure = None  # a kept connection was closed meanwhile: the same replica again
        for attempt in range(MAX_ATTEMPTS):
            place = ticket or await self._router.acquire(
                call.model,
                call.tokens,
                tried,
                self._wait_s,
                prompt_tokens=call.prompt_tokens,
                prefix=call.prefix,
                who=job.who,
                version=version,
                admits=None if answer.started else self._admits(call),
            )
            if not isinstance(place, Ticket):
                if answer.started:
                    break
                raise no_replica(call.model, place.reason)
            ticket = place
            version = ticket.version
            if job.account.trace is not None:
                job.account.trace.place(ticket, started=answer.started)
            self.metrics.retries += attempt > 0 and not answer.started
            try:
                if failure is not None:
                    raise failure
                if ticket.route.external is None:
                    await answer.attempt(ticket, begun)
                else:
                    await self._outside(answer, job, ticket)
                return
            except (UpstreamFailed, NotEvents) as failed:
                ticket.failed(hard=isinstance(failed, UpstreamFailed))
                tried |= {ticket.gang}
                why = str(failed)
                if isinstance(failed, UpstreamFailed) and failed.lost:
                    losses.add(self._router.now(), streaming=answer.started)
                log.warning("replica %s failed a request: %s", ticket.gang, why)
                if answer.started and ticket.route.external is not None:
                    break  # nobody knows that it is the very same model elsewhere
                if answer.started:
                    answer.lost()
                if answer.finished:
                    return
                if losses.count >= MAX_LOST:
                    break
            finally:
                ticket.release()
                ticket = begun = failure = None
        if not answer.started:
            raise replica_failed(call.model, why)
        answer.fail(stream_broken(why))

    def _admits(self, call: Call) -> Admits:
        """Which external addresses a request can be paid at."""
        model = self._router.model(call.model)
        return self._externals.admits(call, model.context if model is not None else 0)

    async def _outside(self, answer: Relay | Whole, job: Job, ticket: Ticket) -> None:
        """An attempt at somebody else's address: with a key, for money."""
        paid = self._externals.begin(job.call, ticket.route, ticket.address, ticket.context)
        try:
            await answer.attempt(ticket, None, paid)
        except UpstreamFailed as failure:
            if failure.unsent:
                paid.unsent()
            raise
        finally:
            job.cost += paid.close()
