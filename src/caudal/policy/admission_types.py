"""What admission is asked and what it answers. Structs, because several are made for every request: a dataclass takes
three times as long to make."""

from __future__ import annotations

from msgspec import Struct

from caudal.domain.key import KeyLimits, Slo
from caudal.policy.slo import RANK

RATE_LIMITED = "rate_limit_exceeded"
OUT_OF_BUDGET = "insufficient_quota"
OVER_SHARE = "over_fair_share"
OVERLOADED = "overloaded"


class Ask(Struct):
    """A request, as it arrives. `id` is the caller's own, and new. `reply_bound`: the most tokens that it lets
    be generated (0: it does not say). `stream`: whether its first token will be told. `deadline_at`: when an
    answer that is not whole is of no use any more (0: never)."""

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


class Admit(Struct):
    """The request may go to a replica now; it waited so long."""

    id: int
    waited_s: float = 0.0


class Park(Struct):
    """The request waits here; `wait_s` is what that is expected to take. An Admit or a Refuse follows."""

    id: int
    wait_s: float


class Refuse(Struct):
    """The request is refused. `retry_after_s`: when it would be admitted, as far as is known now (0: not known,
    or never as it stands)."""

    id: int
    status: int
    code: str
    retry_after_s: float
    text: str


Effect = Admit | Park | Refuse
Outcome = Admit | Refuse


class RateNumbers(Struct):
    """Where a key stands, as OpenAI's `x-ratelimit-*` headers say it. Limits of 0: none."""

    limit_requests: int
    remaining_requests: int
    reset_requests_s: float
    limit_tokens: int
    remaining_tokens: int
    reset_tokens_s: float
