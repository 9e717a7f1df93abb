"""What each class of requests is promised: numbers in one place. Knows nothing of queues or keys."""

from __future__ import annotations

from dataclasses import dataclass

from caudal.domain.key import Slo


@dataclass(frozen=True, slots=True)
class Promise:
    """Seconds to the first token, and seconds for each further one (0: not promised)."""

    first_token_s: float
    per_token_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SloTargets:
    """The promises by class.

    Interactive: people read about four words a second, and leave a page that says nothing for much longer than
    five. Standard: somebody waits, without watching. Batch: before long; it takes what the others leave.
    """

    interactive: Promise = Promise(5.0, 0.25)
    standard: Promise = Promise(30.0, 1.0)
    batch: Promise = Promise(2 * 3600.0)

    def of(self, slo: Slo) -> Promise:
        """The promise to a class."""
        if slo is Slo.INTERACTIVE:
            return self.interactive
        return self.standard if slo is Slo.STANDARD else self.batch


RANK = {Slo.INTERACTIVE: 0, Slo.STANDARD: 1, Slo.BATCH: 2}
"""Who comes first: the smaller number."""


def allowed_class(asked: Slo | None, best: Slo) -> Slo:
    """The class of a request: what it asked for, no better than its key may have; unnamed is the key's own."""
    if asked is None or RANK[asked] < RANK[best]:
        return best
    return asked
