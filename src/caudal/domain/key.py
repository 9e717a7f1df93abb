"""API keys of the front door, what each may ask for, and what an answer used."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Slo(StrEnum):
    """How soon an answer is wanted: a person reads along, somebody waits, or nobody does before tomorrow."""

    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BATCH = "batch"


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What one key may take; 0 is without a limit.

    `weight` is its share against other keys' where not all can be served. Rates count over a sliding minute,
    budgets over a calendar month (UTC); `budget_usd` by the models' prices. `slo` is the class of requests that
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
    computed before."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
        )
