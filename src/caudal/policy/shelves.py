"""Nodes that are alike stand on one shelf: a fleet of ten thousand has few kinds of them, and a slot asks each kind once.

Knows nothing of slots; what makes nodes alike is the caller's to say.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Hashable, Iterable, Sequence

from caudal.domain.fleet import Lease


class Shelf:
    """The places (in `Shelves.nodes`, in their order) of the nodes that are alike; never empty."""

    __slots__ = ("likeness", "places")

    def __init__(self, likeness: Hashable) -> None:
        self.likeness = likeness
        self.places: list[int] = []


class Shelves:
    """All nodes, in the order in which they are told of, shelved by `likeness`."""

    def __init__(self, nodes: Sequence[Lease], likeness: Callable[[Lease], Hashable]) -> None:
        self.nodes = nodes
        self._likeness = likeness
        self._shelves: dict[Hashable, Shelf] = {}
        self._of: list[Shelf] = []  # by place
        self._place: dict[str, int] = {}
        for place, node in enumerate(nodes):
            shelf = self._shelf(likeness(node))
            shelf.places.append(place)
            self._of.append(shelf)
            self._place[node.id] = place

    def all(self) -> list[Shelf]:
        """Every shelf."""
        return list(self._shelves.values())

    def place(self, lease_id: str) -> int | None:
        """Where a node stands among all; None where it is none of them."""
        return self._place.get(lease_id)

    def changed(self, lease_ids: Iterable[str]) -> None:
        """These nodes may be like others now."""
        for place in {self._place[x] for x in lease_ids if x in self._place}:
            before, likeness = self._of[place], self._likeness(self.nodes[place])
            if likeness == before.likeness:
                continue
            before.places.pop(bisect_left(before.places, place))
            if not before.places:
                del self._shelves[before.likeness]
            shelf = self._of[place] = self._shelf(likeness)
            insort(shelf.places, place)

    def _shelf(self, likeness: Hashable) -> Shelf:
        known = self._shelves.get(likeness)
        if known is None:
            known = self._shelves[likeness] = Shelf(likeness)
        return known
