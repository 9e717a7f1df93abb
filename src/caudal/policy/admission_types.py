"""What admission is asked and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from caudal.domain.key import KeyLimits, Slo
from caudal.policy.slo import RANK

RATE_LIMITED = "rate_limit_exceeded"
OUT_OF_BUDGET = "insufficient_quota"
OVER_SHARE = "over_fair_share"
OVERLOADED = "overloaded"


@dataclass(slots=True)
class Ask:
    """A request, as it arrives. `id` is the caller's own, and new. `reply_bound`: the most tokens that it lets
    be generated (0: it does not say). `stream`: whether its first token will be told. `deadline_at`: when an
    answer that is not whole is of no use any more (0: never). Not frozen: making a frozen one takes longer than
    admitting it."""

    id: int
    key: str
    limits: KeyLimits
    slo: Slo
    model: str
    prompt_tokens: int
    reply_bound: int = 0
    stream: bool = True
    deadline_at: float = 0.0

    @property
    def rank(self) -> int:
        """The smaller, the sooner."""
        return RANK[self.slo]


@dataclass(slots=True)
class Admit:
    """The request may go to a replica now; it waited so long."""

    id: int
    waited_s: float = 0.0


@dataclass(slots=True)
class Park:
    """The request waits here; `wait_s` is what that is expected to take. An Admit or a Refuse follows."""

    id: int
    wait_s: float


@dataclass(slots=True)
class Refuse:
    """The request is refused. `retry_after_s`: when it would be admitted, as far as is known now (0: not known,
    or never as it stands)."""

    id: int
    status: int
    code: str
    retry_after_s: float
    text: str


Effect = Admit | Park | Refuse
Outcome = Admit | Refuse


class RateNumbers(NamedTuple):  # every answer to a key with rates has them
    """Where a key stands, as OpenAI's `x-ratelimit-*` headers say it. Limits of 0: none."""

    limit_requests: int
    remaining_requests: int
    reset_requests_s: float
    limit_tokens: int
    remaining_tokens: int
    reset_tokens_s: float
