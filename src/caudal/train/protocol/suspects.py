"""Samples that make every site's delta useless: which of the ids in failed leases are to be set aside.

A delta that is not finite, or explodes, tells of its site or of one of its samples. So its ids are leased again,
first to a site that has not tried them: where that trains them the samples were good. Where they fail once more
they are tried a quarter at a time. Ids that failed in leases of no more than a batch, often enough and at two sites
(or very often at one), are set aside, and so few in all that a run which fails on everything stands still, rather
than finish untrained. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from caudal.train.interface import IdRange, RunPlan
from caudal.train.leases import clip, complement, size, union

TRIES = 3
"""Failed leases that an id was in before it is set aside, at two sites at least."""

TRIES_ALONE = 6
"""The same where one site alone tried."""

SHARE = 0.01
"""Of a run's ids are set aside at most, or two batches."""

REMEMBERED = 64
"""Failed leases."""


@dataclass(frozen=True, slots=True)
class Aside:
    """Ids that no site could train."""

    ids: tuple[IdRange, ...]
    why: str
    workers: tuple[str, ...]
    tries: int


@dataclass(frozen=True, slots=True)
class _Failure:
    ids: tuple[IdRange, ...]
    worker: str
    leased: int  # how many ids the lease had


@dataclass(slots=True)
class Suspects:
    """What failed in this epoch. Mutable; one owner."""

    most: int
    set_aside: int = 0
    _failures: list[_Failure] = field(default_factory=list)

    @staticmethod
    def of(plan: RunPlan) -> Suspects:
        """None yet."""
        return Suspects(max(math.ceil(SHARE * plan.total_ids), 2 * max(s.batch for s in plan.stages)))

    def failed(self, ids: Sequence[IdRange], worker: str, batch: int, why: str) -> Aside | None:
        """One more failed lease. Returns those of its ids that are to be set aside now."""
        self._failures.append(_Failure(tuple(ids), worker, size(ids)))
        del self._failures[:-REMEMBERED]
        if size(ids) > batch:
            return None
        ripe = [i for r in ids for i in range(r.start, r.stop) if self._is_ripe(i)]
        if not ripe or self.set_aside + len(ripe) > self.most:
            return None
        self.set_aside += len(ripe)
        tried = [f for f in self._failures if _holds(f.ids, ripe[0])]
        ranges = union((), (IdRange(i, i + 1) for i in ripe))
        self.trained(ranges)  # whatever comes of them, they are no question any more
        return Aside(ranges, why, tuple(sorted({f.worker for f in tried})), len(tried))

    def trained(self, ids: Iterable[IdRange]) -> None:
        """These are good."""
        gone = union((), ids)
        kept = [_Failure(_without(f.ids, gone), f.worker, f.leased) for f in self._failures]
        self._failures = [f for f in kept if f.ids]

    def tried(self, free: Sequence[IdRange]) -> frozenset[str]:
        """Who failed with the first of the free ids: others come first."""
        return frozenset(f.worker for f in self._failures if free and _holds(f.ids, free[0].start))

    def count(self, free: Sequence[IdRange], wanted: int) -> int:
        """How many of the lowest free ids a lease takes that may have `wanted`: what failed twice is tried a
        quarter of the failed lease at a time, and not together with other ids."""
        if len(self._failures) < 2 or not size(free):
            return wanted
        first = free[0].start
        if failed := self._twice(first):
            return min(wanted, max(1, min(failed) // 4))
        starts = {r.start for f in self._failures for r in f.ids if r.start > first}
        suspect = min((start for start in starts if self._twice(start)), default=first)
        before = size(clip(free, first, suspect))
        return min(wanted, before) if before else wanted

    def _twice(self, one: int) -> list[int]:
        """How large the leases were in which an id failed, where those were two at least."""
        leased = [f.leased for f in self._failures if _holds(f.ids, one)]
        return leased if len(leased) > 1 else []

    def _is_ripe(self, one: int) -> bool:
        tried = [f.worker for f in self._failures if _holds(f.ids, one)]
        return len(tried) >= (TRIES if len(set(tried)) > 1 else TRIES_ALONE)


def _holds(ranges: Iterable[IdRange], one: int) -> bool:
    return any(r.start <= one < r.stop for r in ranges)


def _without(ranges: Sequence[IdRange], gone: Sequence[IdRange]) -> tuple[IdRange, ...]:
    """The ranges less the sorted, disjoint others."""
    stop = max(r.stop for r in ranges)
    return tuple(part for hole in complement(gone, stop) for part in clip(ranges, hole.start, hole.stop))
