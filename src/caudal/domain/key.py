"""API keys of the front door, what each may ask for, and what an answer used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

SECRET_PREFIX = "ck-"
"""What every key's secret begins with; what does not is no key of ours."""

SECRET_VARIABLE = "CAUDAL_API_KEY"
"""The environment variable from which Caudal's own clients of the gateway take their key."""

ANONYMOUS = "anonymous"
"""The id and the name under which requests without a key are counted."""

HOUR_S = 3600

PICO = 10**12
"""Picodollars in a US dollar: money of requests is counted in whole ones."""


class Slo(StrEnum):
    """How soon an answer is wanted: a person reads along, somebody waits, or nobody does before tomorrow."""

    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BATCH = "batch"


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What one key may take; 0 is without a limit.

    `weight` is its share against other keys' where not all can be served. Rates count over a sliding minute,
    budgets over a calendar month (UTC); `budget_usd` by what external addresses cost by their prices: the fleet's own
    replicas have none, and cost nothing here. `slo` is the class of requests that
    name none, and the best that the key may ask for. `models` empty: all.
    """

    weight: float = 1.0
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrency: int = 0
    budget_tokens: int = 0
    budget_usd: float = 0.0
    slo: Slo = Slo.INTERACTIVE
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as it is kept: `sha256` (hex) is of the whole secret, which has 256 random bits and is shown once.
    Times are seconds since 1970; `expires_at` 0: never; `revoked_at` 0: not."""

    id: str
    name: str
    sha256: str
    created_at: float
    limits: KeyLimits = field(default_factory=KeyLimits)
    expires_at: float = 0.0
    revoked_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer, as the engine counted them. `cached_tokens` are those of the prompt that it had
    computed before; `picodollars` is what it cost at somebody else's address (10^-12 US dollars; 0: at ours)."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    picodollars: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            self.picodollars + other.picodollars,
        )


@dataclass(frozen=True, slots=True)
class UsageHour:
    """What one key used of one model within one hour. `hour` is when it began, in seconds since 1970; of
    `requests`, `failed` were answered with a status of 400 or more, or left by their client."""

    key_id: str
    model: str
    hour: int
    requests: int = 0
    failed: int = 0
    usage: Usage = Usage()

    def plus(self, other: UsageHour) -> UsageHour:
        """Both together; they are of the same key, model and hour."""
        return UsageHour(
            self.key_id,
            self.model,
            self.hour,
            self.requests + other.requests,
            self.failed + other.failed,
            self.usage + other.usage,
        )


@dataclass(frozen=True, slots=True)
class UsageBatch:
    """Usage that a gateway hands over at once. `source` is one gateway process, `seq` rises within it: whoever
    keeps the sums keeps the last `seq` of each source with them, and so counts every batch once."""

    source: str
    seq: int
    rows: tuple[UsageHour, ...]


def hour_of(at: float) -> int:
    """When the hour of that time began; both in seconds since 1970."""
    return int(at // HOUR_S) * HOUR_S


def summed(rows: Iterable[UsageHour]) -> list[UsageHour]:
    """One row for each key, model and hour, in that order."""
    sums: dict[tuple[str, str, int], UsageHour] = {}
    for row in rows:
        key = (row.key_id, row.model, row.hour)
        before = sums.get(key)
        sums[key] = row if before is None else before.plus(row)
    return [sums[key] for key in sorted(sums)]
