"""Which offers AWS refused, and until when they are not worth asking for again.

Asking again at once is how a control loop hangs on a region without capacity. Here an offer that was refused is listed
with nothing available until its pause is over, so that placement goes elsewhere; each refusal for want of capacity in a
row doubles the pause. It lives in memory: after a restart each offer may be asked for once more. Pure: told the time.
"""

from __future__ import annotations

from dataclasses import dataclass

from caudal.domain.errors import CaudalError, NoCapacity, QuotaExceeded

CAPACITY_S = 30.0  # capacity comes and goes within minutes
OTHERWISE_S = 300.0  # a quota, a permission or an image changes only when a person acts, and then soon
MAX_S = 900.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """The last of `count` refusals in a row."""

    error: CaudalError
    count: int
    until: float


class Refusals:
    """By offer."""

    def __init__(self) -> None:
        self._by_offer: dict[str, Refusal] = {}

    def note(self, offer_id: str, error: CaudalError, now: float) -> Refusal:
        """It was refused again."""
        before = self._by_offer.get(offer_id)
        count = before.count + 1 if before is not None else 1
        quick = isinstance(error, NoCapacity) and not isinstance(error, QuotaExceeded)
        pause_s = min(CAPACITY_S * 2.0 ** min(count - 1, 10), MAX_S) if quick else OTHERWISE_S
        self._by_offer[offer_id] = Refusal(error, count, now + pause_s)
        return self._by_offer[offer_id]

    def standing(self, offer_id: str, now: float) -> Refusal | None:
        """The refusal that still holds."""
        found = self._by_offer.get(offer_id)
        return found if found is not None and now < found.until else None

    def forget(self, offer_id: str) -> None:
        """It was given, or room came back."""
        self._by_offer.pop(offer_id, None)

    def forget_like(self, start: str) -> None:
        """Room came back for all offers whose id starts like this."""
        for offer_id in [known for known in self._by_offer if known.startswith(start)]:
            del self._by_offer[offer_id]
