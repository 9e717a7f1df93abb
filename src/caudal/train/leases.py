"""Which sample ids are free, leased, or committed: every id is in exactly one of the three at any time.

Works on ranges, so that a run of a billion ids costs as much as one of a hundred. Knows nothing of sites,
rounds or time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from caudal.train.interface import IdRange


def size(ranges: Iterable[IdRange]) -> int:
    """How many ids there are in disjoint ranges."""
    return sum(r.size for r in ranges)


def first(ranges: Iterable[IdRange], count: int) -> tuple[IdRange, ...]:
    """The first `count` ids of the ranges, in their order."""
    taken: list[IdRange] = []
    for r in ranges:
        if count <= 0:
            break
        taken.append(IdRange(r.start, min(r.stop, r.start + count)))
        count -= taken[-1].size
    return tuple(taken)


def union(ranges: Sequence[IdRange], more: Iterable[IdRange]) -> tuple[IdRange, ...]:
    """Disjoint ranges joined, sorted, neighbours melted together. Raises ValueError naming the first id that
    would be in it twice."""
    joined: list[IdRange] = []
    for r in sorted((*ranges, *more)):
        if r.start >= r.stop:
            raise ValueError(f"{r.start}..{r.stop} is not a range of ids")
        if joined and r.start < joined[-1].stop:
            raise ValueError(f"id {r.start} is there twice")
        if joined and r.start == joined[-1].stop:
            joined[-1] = IdRange(joined[-1].start, r.stop)
        else:
            joined.append(r)
    return tuple(joined)


def clip(ranges: Iterable[IdRange], start: int, stop: int) -> tuple[IdRange, ...]:
    """The part of the ranges that lies in start ... stop - 1."""
    parts = (IdRange(max(r.start, start), min(r.stop, stop)) for r in ranges)
    return tuple(r for r in parts if r.start < r.stop)


def complement(ranges: Sequence[IdRange], stop: int) -> tuple[IdRange, ...]:
    """The ids of 0 ... stop - 1 that are not in the sorted, disjoint ranges."""
    missing: list[IdRange] = []
    at = 0
    for r in ranges:
        if r.start > at:
            missing.append(IdRange(at, min(r.start, stop)))
        at = max(at, r.stop)
    if at < stop:
        missing.append(IdRange(at, stop))
    return tuple(missing)


class Pool:
    """The ids of a run. Mutable; one owner."""

    def __init__(self, total: int, committed: Iterable[IdRange] = ()) -> None:
        self.total = total
        self.committed = union((), committed)
        self.free = complement(self.committed, total)
        self.leases: dict[str, tuple[IdRange, ...]] = {}

    def free_in(self, start: int, stop: int) -> int:
        """How many ids of start ... stop - 1 can be leased now."""
        return size(clip(self.free, start, stop))

    def committed_in(self, start: int, stop: int) -> int:
        """How many ids of start ... stop - 1 count as trained."""
        return size(clip(self.committed, start, stop))

    def lease(self, name: str, count: int, start: int, stop: int) -> tuple[IdRange, ...]:
        """Take the `count` lowest free ids of start ... stop - 1 (fewer where there are fewer)."""
        assert name not in self.leases, f"lease {name} exists"
        taken = first(clip(self.free, start, stop), count)
        busy = union(self.committed, (*taken, *(r for ranges in self.leases.values() for r in ranges)))
        self.free = complement(busy, self.total)
        if taken:
            self.leases[name] = taken
        return taken

    def lease_exactly(self, name: str, ranges: Sequence[IdRange]) -> bool:
        """Take just these ids, if all of them are free; returns whether they were."""
        assert name not in self.leases, f"lease {name} exists"
        try:
            wanted = union((), ranges)
        except ValueError:
            return False
        held = [clip(self.free, r.start, r.stop) for r in wanted]
        if any(part != (r,) for part, r in zip(held, wanted, strict=True)):
            return False
        busy = union(wanted, (*self.committed, *(r for some in self.leases.values() for r in some)))
        self.free = complement(busy, self.total)
        self.leases[name] = wanted
        return True

    def shorten(self, name: str, count: int) -> tuple[IdRange, ...]:
        """Keep the first `count` ids of a lease; those behind them are free again. Returns what is kept."""
        held = self.leases[name]
        kept = first(held, count)
        rest = complement(union((), kept), self.total)
        self.free = union(self.free, [part for r in held for part in clip(rest, r.start, r.stop)])
        self.leases[name] = kept
        return kept

    def give_back(self, name: str) -> tuple[IdRange, ...]:
        """End a lease without training: its ids are free again. Returns them; none for an unknown lease."""
        ranges = self.leases.pop(name, ())
        self.free = union(self.free, ranges)
        return ranges

    def commit(self, names: Iterable[str]) -> None:
        """The ids of these leases count as trained, from now on and for ever."""
        ranges = [r for name in names for r in self.leases.pop(name)]
        self.committed = union(self.committed, ranges)

    @property
    def done(self) -> bool:
        """Whether every id counts as trained."""
        return size(self.committed) == self.total
