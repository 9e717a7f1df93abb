"""What each key has running and has used, against its limits. Knows nothing of models, queues or replicas.

A gateway counts what passes through it. Where several processes serve the same keys, each holds its part
(`share` of them) of every rate and of the concurrency; a key whose requests fall unevenly on them is
refused early at one while another has room. Budgets are whole: what was spent is told to every process.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from caudal.domain.key import KeyLimits
from caudal.policy.admission_types import OUT_OF_BUDGET, RATE_LIMITED, RateNumbers, Refuse
from caudal.policy.rates import SlidingMinute


class KeyAccount:
    """One key. A request's tokens are counted when it arrives: its prompt and the most that it lets be generated,
    as OpenAI does, or what its reply is expected to have where it does not say. They are put right when it ends."""

    __slots__ = (
        "_concurrency",
        "_requests_limit",
        "_share",
        "_tokens_limit",
        "active",
        "limits",
        "requests",
        "spent_tokens",
        "spent_usd",
        "tokens",
    )

    def __init__(self, share: int = 1) -> None:
        self._share = share
        self.take(KeyLimits())
        self.active = 0  # running or waiting; batch only while it runs
        self.requests = SlidingMinute()
        self.tokens = SlidingMinute()
        self.spent_tokens = 0
        self.spent_usd = 0.0

    def take(self, limits: KeyLimits) -> None:
        """These are its limits: what its last request came with."""
        self.limits = limits
        self._requests_limit = self._part(limits.requests_per_minute)
        self._tokens_limit = self._part(limits.tokens_per_minute)
        self._concurrency = self._part(limits.concurrency)

    def _part(self, limit: int) -> int:
        """What of a limit is this process's; 0: it is without."""
        return max(1, limit // self._share) if limit else 0

    def refusal(
        self, now: float, id_: int, tokens: int, batch: bool, held_s: Callable[[], float]
    ) -> Refuse | None:
        """Why one more request of so many tokens is not let in, if so. `held_s` says how long one takes, about."""
        limits = self.limits
        if limits.budget_tokens and self.spent_tokens >= limits.budget_tokens:
            return _over(id_, f"all of its {limits.budget_tokens} tokens")
        if limits.budget_usd and self.spent_usd >= limits.budget_usd:
            return _over(id_, f"all of its ${limits.budget_usd:g}")
        limit = self._requests_limit
        if limit:
            wait = self.requests.wait_s(now, 1, limit)
            if wait:
                return _limited(id_, wait, f"requests per minute: limit {limit}, used {limit}")
        limit = self._tokens_limit
        if limit:
            wait = self.tokens.wait_s(now, tokens, limit)
            if wait:
                used = self.tokens.used(now)
                what = f"tokens per minute: limit {limit}, used {used}, asked for about {tokens}"
                return _limited(id_, wait, what)
        limit = self._concurrency
        if limit and self.active >= limit and not batch:
            return _limited(id_, held_s() / limit, f"requests at once: limit {limit}, all in use")
        return None

    def admit(self, now: float, id_: int, tokens: int, held_s: Callable[[], float]) -> Refuse | None:
        """`refusal`, and where there is none the request runs: of those that are not batch, and need not wait."""
        requests, tokens_used = self.requests, self.tokens
        limits = self.limits
        most_requests, most_tokens, most = self._requests_limit, self._tokens_limit, self._concurrency
        if (
            (most_requests and requests.total + 1 > most_requests)
            or (most_tokens and tokens_used.total + tokens > most_tokens)
            or (most and self.active >= most)
            or (limits.budget_tokens and self.spent_tokens >= limits.budget_tokens)
            or limits.budget_usd
        ):
            refusal = self.refusal(now, id_, tokens, False, held_s)
            if refusal is not None:
                return refusal
        second = math.floor(now)
        if most_requests:
            requests.count(now, second, 1)
        if most_tokens:
            tokens_used.count(now, second, tokens)
        self.active += 1
        return None

    def may_run(self) -> bool:
        """Whether the key may have one more running; for what waits without being counted as active."""
        return not self._concurrency or self.active < self._concurrency

    def arrived(self, now: float, tokens: int) -> None:
        """A request was let in, to run or to wait."""
        if self._requests_limit:
            self.requests.add(now, 1)
        if self._tokens_limit:
            self.tokens.add(now, tokens)

    def settled(self, now: float, arrived_at: float, counted: int, used: int) -> None:
        """A request that was counted as so many tokens used so many."""
        if not self._tokens_limit:
            return
        if used > counted:
            self.tokens.add(now, used - counted)
        elif used < counted:
            self.tokens.take_back(arrived_at, counted - used)

    def numbers(self, now: float) -> RateNumbers:
        """Where it stands."""
        requests, tokens = self._requests_limit, self._tokens_limit
        used_requests, reset_requests_s = self.requests.standing(now)
        used_tokens, reset_tokens_s = self.tokens.standing(now)
        return RateNumbers(
            requests,
            requests - used_requests if used_requests < requests else 0,
            reset_requests_s,
            tokens,
            tokens - used_tokens if used_tokens < tokens else 0,
            reset_tokens_s,
        )


def _limited(id_: int, wait_s: float, what: str) -> Refuse:
    if math.isinf(wait_s):
        text = f"This request is larger than its key may use ({what}). Make it shorter, or lower max_tokens."
        return Refuse(id_, 429, RATE_LIMITED, 0.0, text)
    again = f"Try again in {math.ceil(wait_s) or 1} s."
    return Refuse(id_, 429, RATE_LIMITED, max(1.0, wait_s), f"Rate limit reached for {what}. {again}")


def _over(id_: int, what: str) -> Refuse:
    text = f"This key has used {what} of this month's budget. Whoever manages its fleet can raise it."
    return Refuse(id_, 429, OUT_OF_BUDGET, 0.0, text)
