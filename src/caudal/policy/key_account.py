"""What each key has running and has used, against its limits. Knows nothing of models, queues or replicas.

A gateway counts what passes through it. Where several processes serve the same keys, each holds its part
(`share` of them) of every rate and of the concurrency; a key whose requests fall unevenly on them is
refused early at one while another has room. Budgets are whole: what was spent is told to every process.
"""

from __future__ import annotations

import math

from caudal.domain.key import KeyLimits
from caudal.policy.admission_types import OUT_OF_BUDGET, RATE_LIMITED, RateNumbers, Refuse
from caudal.policy.rates import SlidingMinute


class KeyAccount:
    """One key. A request's tokens are counted when it arrives: its prompt and the most that it lets be generated,
    as OpenAI does, or what its reply is expected to have where it does not say. They are put right when it ends."""

    __slots__ = ("_share", "active", "limits", "requests", "spent_tokens", "spent_usd", "tokens")

    def __init__(self, share: int = 1) -> None:
        self._share = share
        self.limits = KeyLimits()  # what its last request came with
        self.active = 0  # running or waiting; batch only while it runs
        self.requests = SlidingMinute()
        self.tokens = SlidingMinute()
        self.spent_tokens = 0
        self.spent_usd = 0.0

    def part(self, limit: int) -> int:
        """What of a limit is this process's."""
        return max(1, limit // self._share)

    def refusal(self, now: float, id_: int, tokens: int, *, batch: bool, held_s: float) -> Refuse | None:
        """Why one more request of so many tokens is not let in, if so. `held_s`: how long one takes, about."""
        limits = self.limits
        if limits.budget_tokens and self.spent_tokens >= limits.budget_tokens:
            return _over(id_, f"all of its {limits.budget_tokens} tokens")
        if limits.budget_usd and self.spent_usd >= limits.budget_usd:
            return _over(id_, f"all of its ${limits.budget_usd:g}")
        if limits.requests_per_minute:
            limit = self.part(limits.requests_per_minute)
            wait = self.requests.wait_s(now, 1, limit)
            if wait:
                return _limited(id_, wait, f"requests per minute: limit {limit}, used {limit}")
        if limits.tokens_per_minute:
            limit = self.part(limits.tokens_per_minute)
            wait = self.tokens.wait_s(now, tokens, limit)
            if wait:
                used = self.tokens.used(now)
                what = f"tokens per minute: limit {limit}, used {used}, asked for about {tokens}"
                return _limited(id_, wait, what)
        if limits.concurrency and not batch:
            limit = self.part(limits.concurrency)
            if self.active >= limit:
                return _limited(id_, held_s / limit, f"requests at once: limit {limit}, all in use")
        return None

    def may_run(self) -> bool:
        """Whether the key may have one more running; for what waits without being counted as active."""
        concurrency = self.limits.concurrency
        return not concurrency or self.active < self.part(concurrency)

    def arrived(self, now: float, tokens: int) -> None:
        """A request was let in, to run or to wait."""
        limits = self.limits
        if limits.requests_per_minute:
            self.requests.add(now, 1)
        if limits.tokens_per_minute:
            self.tokens.add(now, tokens)

    def settled(self, now: float, arrived_at: float, counted: int, used: int) -> None:
        """A request that was counted as so many tokens used so many."""
        if not self.limits.tokens_per_minute:
            return
        if used > counted:
            self.tokens.add(now, used - counted)
        elif used < counted:
            self.tokens.take_back(arrived_at, counted - used)

    def numbers(self, now: float) -> RateNumbers:
        """Where it stands."""
        limits = self.limits
        requests = self.part(limits.requests_per_minute) if limits.requests_per_minute else 0
        tokens = self.part(limits.tokens_per_minute) if limits.tokens_per_minute else 0
        used_requests, reset_requests_s = self.requests.standing(now)
        used_tokens, reset_tokens_s = self.tokens.standing(now)
        return RateNumbers(
            requests,
            max(0, requests - used_requests),
            reset_requests_s,
            tokens,
            max(0, tokens - used_tokens),
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
