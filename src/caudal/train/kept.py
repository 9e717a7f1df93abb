"""What a site's optimiser knew before the works that are not settled: where one of them is lost, nothing else is.

Used by the thread that computes. Knows nothing of rounds but their order.
"""

from __future__ import annotations

from caudal.train.interface import Moments, Recalling
from caudal.train.protocol.effects import Compute, Recall


class Kept:
    """The moments before each work that is not settled, by its round. Used by the thread that computes alone."""

    def __init__(self) -> None:
        self._before: dict[int, Moments] = {}

    def mark(self, order: Compute, inner: object) -> None:
        """A work begins."""
        self._before = {number: of for number, of in self._before.items() if number >= order.unsettled}
        if isinstance(inner, Recalling):
            self._before[order.round] = inner.moments()

    def recall(self, order: Recall, inner: object) -> None:
        """Go back before all works behind a round."""
        later = [number for number in self._before if number > order.after]
        if later:
            assert isinstance(inner, Recalling)
            inner.recall(self._before[min(later)])
        self._before.clear()

    def after(self, round_number: int, inner: object) -> Moments:
        """What it knew after its work of a round."""
        assert isinstance(inner, Recalling)
        later = [number for number in self._before if number > round_number]
        return self._before[min(later)] if later else inner.moments()

    def forget(self) -> None:
        """All begins anew."""
        self._before.clear()
