"""Carries out policy/admission: lets a request through, keeps it waiting, or raises its refusal.

A request that finds room costs no task, future or timer. While any waits, one timer asks twenty times a second
what time has changed. Knows neither replicas nor bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from math import ceil

import msgspec
from msgspec import Struct

from caudal.domain.key import KeyLimits, Slo
from caudal.gateway.admission_metrics import AdmissionMetrics
from caudal.gateway.openai_api import Call
from caudal.gateway.openai_errors import ApiError
from caudal.gateway.wishes import names_its_bound
from caudal.policy.admission import Admission
from caudal.policy.admission_types import OUT_OF_BUDGET, Admit, Ask, Outcome, Refuse
from caudal.policy.slo import SloTargets, allowed_class

TICK_S = 0.05
ANYBODY = ""
REQUESTS_LINES, TOKENS_LINES = (
    b"x-ratelimit-limit-%b: %%d\r\nx-ratelimit-remaining-%b: %%d\r\nx-ratelimit-reset-%b: %%ds\r\n"
    % (what, what, what)
    for what in (b"requests", b"tokens")
)
RATE_LINES = REQUESTS_LINES + TOKENS_LINES
UNLIMITED = KeyLimits()

Capacity = Callable[[str], tuple[int, int]]
"""A model's (replicas, slots of all of them together). The same object while nothing changed."""


class Refused(ApiError):
    """An answer that admission gave: with what OpenAI's clients read in its head."""

    def __init__(self, refusal: Refuse, rates: bytes = b"") -> None:
        retry_s = ceil(refusal.retry_after_s) or None
        super().__init__(refusal.status, refusal.code, refusal.text, retry_after_s=retry_s)
        self._rates = rates

    def body(self) -> bytes:
        """OpenAI's clients tell a spent budget from a rate by `type`, too."""
        if self.status != 429:
            return super().body()
        kind = OUT_OF_BUDGET if self.code == OUT_OF_BUDGET else "rate_limit_error"
        error = {"message": self.message, "type": kind, "param": None, "code": self.code}
        return msgspec.json.encode({"error": error})

    def headers(self) -> bytes:
        """When to come again, or that it is no use; and the key's rates."""
        again = super().headers() or b"x-should-retry: false\r\n"
        return again + self._rates


class Permit(Struct, eq=False):
    """A request's leave to go to a replica, until it is `done`. `reply_tokens` is set before that where the answer
    was whole (0: nobody knows how long it is)."""

    _admitter: Admitter
    _id: int
    _key: str
    _limits: KeyLimits
    _open: bool = True
    _read: bool = False
    reply_tokens: int | None = None

    def first_token(self) -> None:
        """The first bytes of a stream came."""
        if not self._read:
            self._read = True
            self._admitter.first_token(self._id)

    def read_again(self) -> None:
        """The stream goes on at another replica, which reads it first: `first_token` follows once more."""
        if self._read:
            self._read = False
            self._admitter.read_again(self._id)

    def done(self) -> None:
        """The request is over, however it went."""
        if self._open:
            self._open = False
            self._admitter.ended(self._id, self.reply_tokens)

    def headers(self) -> bytes:
        """Lines for the answer's head: where the key stands, if it has rates."""
        limits = self._limits
        if limits.requests_per_minute or limits.tokens_per_minute:
            return self._admitter.rates(self._key, limits)
        return b""


class Admitter:
    """The admission of one gateway process; `share`: how many such processes serve the same replicas and keys."""

    def __init__(
        self,
        capacity: Capacity,
        now: Callable[[], float],
        metrics: AdmissionMetrics | None = None,
        *,
        targets: SloTargets | None = None,
        share: int = 1,
    ) -> None:
        self.admission = Admission(targets, share=share)
        self.metrics = metrics or AdmissionMetrics()
        self.metrics.queued = self.admission.queued
        self._now = now
        self._capacity = capacity
        self._capacities: dict[str, tuple[int, int]] = {}
        self._serial = 0
        self._waiting: dict[int, asyncio.Future[Outcome]] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def admit(
        self,
        call: Call,
        key: str = ANYBODY,
        limits: KeyLimits = UNLIMITED,
        slo: Slo | None = None,
        deadline_s: float = 0.0,
    ) -> Permit:
        """Leave for a request of a key; waits where that is promised to be short enough. Raises Refused. `slo`
        is what it asked for, and no better than the key's; `deadline_s` how long the whole may take (0: any
        time)."""
        admitted = self.admit_now(call, key, limits, slo, deadline_s)
        if isinstance(admitted, Permit):
            return admitted
        return await self.wait(admitted)

    def admit_now(
        self, call: Call, key: str, limits: KeyLimits, slo: Slo | None, deadline_s: float
    ) -> Permit | Ask:
        """The same without waiting: a request that has to is given back, and is to `wait` at once. Raises
        Refused."""
        now, model = self._now(), call.model
        if self._capacities.get(model) is not self._capacity(model):
            self._learn(now, model)
        self._serial = id_ = self._serial + 1
        prompt, bounded = call.prompt_tokens, call.bounded
        if bounded is None:
            bounded = names_its_bound(call.body)
        ask = Ask(
            id_,
            key,
            limits,
            limits.slo if slo is None else allowed_class(slo, limits.slo),
            model,
            prompt,
            (call.tokens - prompt if call.tokens > prompt else 1) if bounded else 0,
            call.stream,
            now + deadline_s if deadline_s else 0.0,
        )
        effect = self.admission.arrive(now, ask)
        if isinstance(effect, Admit):
            self.metrics.at_once += 1
            return Permit(self, id_, key, limits)
        if isinstance(effect, Refuse):
            raise self._refused(ask, effect)
        return ask

    async def wait(self, ask: Ask) -> Permit:
        """Leave for a request that waits. Raises Refused."""
        await self._wait(ask)
        return Permit(self, ask.id, ask.key, ask.limits)

    def first_token(self, id_: int) -> None:
        """The first bytes of a stream came."""
        self._tell(self.admission.first_token(self._now(), id_))

    def read_again(self, id_: int) -> None:
        """A stream is read again, at another replica."""
        self.admission.read_again(self._now(), id_)

    def ended(self, id_: int, reply_tokens: int | None) -> None:
        """A request is over; None: not well, 0: well, by an engine that does not say how many."""
        outcomes = self.admission.end(self._now(), id_, reply_tokens or None, reply_tokens is not None)
        if outcomes:
            self._tell(outcomes)

    def spent(self, key: str, tokens: int, usd: float) -> None:
        """So much has a key used this month, everywhere."""
        self.admission.spent(key, tokens, usd)

    def rates(self, key: str, limits: KeyLimits) -> bytes:
        """Header lines on where a key stands; none where it has no rates."""
        if not limits.requests_per_minute and not limits.tokens_per_minute:
            return b""
        has = self.admission.numbers(self._now(), key)
        of_requests = has.limit_requests, has.remaining_requests, ceil(has.reset_requests_s)
        of_tokens = has.limit_tokens, has.remaining_tokens, ceil(has.reset_tokens_s)
        if has.limit_requests and has.limit_tokens:
            return RATE_LINES % (*of_requests, *of_tokens)
        if has.limit_requests:
            return REQUESTS_LINES % of_requests
        return TOKENS_LINES % of_tokens if has.limit_tokens else b""

    def _learn(self, now: float, model: str) -> None:
        """What the model's replicas hold, if that changed."""
        capacity = self._capacity(model)
        if self._capacities.get(model) is not capacity:
            self._capacities[model] = capacity
            self._tell(self.admission.capacity(now, model, *capacity))

    async def _wait(self, ask: Ask) -> None:
        loop = asyncio.get_running_loop()
        future = self._waiting[ask.id] = loop.create_future()
        if self._timer is None:
            self._timer = loop.call_later(TICK_S, self._tick)
        try:
            outcome = await future
        except asyncio.CancelledError:
            self._left(ask, future)
            raise
        if isinstance(outcome, Refuse):
            raise self._refused(ask, outcome)
        self.metrics.waited(outcome.waited_s)

    def _left(self, ask: Ask, future: asyncio.Future[Outcome]) -> None:
        """Its client is gone: out of the queue, or off the place that it was given at this very moment."""
        if future.cancelled():
            if self._waiting.pop(ask.id, None) is not None:
                self.admission.leave(self._now(), ask.id)
        elif isinstance(future.result(), Admit):
            self.ended(ask.id, None)

    def _tick(self) -> None:
        self._timer = None
        now = self._now()
        for model in list(self._capacities):
            self._learn(now, model)
        self._tell(self.admission.tick(now))
        if self._waiting:
            self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _tell(self, outcomes: Iterable[Outcome]) -> None:
        todo = list(outcomes)
        while todo:
            outcome = todo.pop()
            future = self._waiting.pop(outcome.id)
            if not future.cancelled():
                future.set_result(outcome)
            elif isinstance(outcome, Admit):  # its client left a moment ago, and does not know of this
                todo += self.admission.end(self._now(), outcome.id, None, ok=False)

    def _refused(self, ask: Ask, refusal: Refuse) -> Refused:
        self.metrics.refused[ask.slo, refusal.code] += 1
        return Refused(refusal, self.rates(ask.key, ask.limits) if refusal.status == 429 else b"")
