"""Which offers were refused, why, and until when they are not asked for again: so that placement goes elsewhere
instead of asking in a loop.

In memory: after a restart everything may be asked once more. Knows nothing of Azure.
"""

from __future__ import annotations

from dataclasses import dataclass

from caudal.domain.errors import (
    CaudalError,
    NoCapacity,
    NotAllowed,
    NotOffered,
    QuotaExceeded,
)
from caudal.ports import Clock

FIRST_S = {QuotaExceeded: 600.0, NotOffered: 600.0, NotAllowed: 60.0, NoCapacity: 60.0}
"""The first pause by what was said: capacity comes back by itself, a quota or a name only by somebody's hand; a
permission is usually given while somebody watches."""

LONGEST_S = 1800.0


@dataclass(frozen=True, slots=True)
class _Refusal:
    error: CaudalError
    at: float
    until: float
    row: int


class Backoff:
    """Refusals by offer id. Each one in a row doubles the pause."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._refusals: dict[str, _Refusal] = {}

    def note(self, offer_id: str, error: CaudalError) -> None:
        """An offer was refused. Errors that say nothing of the offer (Unreachable) are not kept; a second one within
        the pause does not lengthen it, since it is the same refusal seen twice."""
        first_s = next((s for kind, s in FIRST_S.items() if isinstance(error, kind)), None)
        before = self._refusals.get(offer_id)
        now = self._clock.now()
        if first_s is None or (before is not None and now < before.until):
            return
        row = before.row + 1 if before is not None else 0
        self._refusals[offer_id] = _Refusal(error, now, now + min(first_s * 2.0**row, LONGEST_S), row)

    def worked(self, offer_id: str, asked_at: float) -> None:
        """A machine of the offer, asked for then, runs: what was held against it before that is over. A refusal that
        came later stays: that machine may have been the last one."""
        refusal = self._refusals.get(offer_id)
        if refusal is not None and refusal.at < asked_at:
            del self._refusals[offer_id]

    def room(self, offer_ids: list[str]) -> None:
        """A machine was given back: what was full may have room again. Other refusals stay."""
        for offer_id in offer_ids:
            refusal = self._refusals.get(offer_id)
            if refusal is not None and isinstance(refusal.error, NoCapacity):
                del self._refusals[offer_id]

    def refusal(self, offer_id: str) -> CaudalError | None:
        """What holds against the offer now; None where it may be asked for."""
        refusal = self._refusals.get(offer_id)
        if refusal is None or self._clock.now() >= refusal.until:
            return None
        return refusal.error

    def seconds_left(self, offer_id: str) -> float:
        """How long until it may be asked for again; 0: now."""
        refusal = self._refusals.get(offer_id)
        return max(0.0, refusal.until - self._clock.now()) if refusal is not None else 0.0
