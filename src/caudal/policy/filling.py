"""What goes into one machine: the slots that are worth most together, and what a slot is worth.

Pure; knows neither leases nor what machines cost in all: that is `packing`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import mul

from caudal.domain.fleet import Resources

FILL_STEPS = 120
MOST_TIMES = 1_000_000
DEPTH = 6
"""How many kinds are tried in every number that fits; of those that are less dense, as many as fit."""

EPSILON = 1e-9

Counts = tuple[int, ...]
Sizes = tuple[float, float, float, float]
Spread = frozenset[tuple[int, str]]


@dataclass(frozen=True, slots=True)
class Kind:
    """Slots that are alike: `count` of them wait. `apart` ones never share a site, nor go to those in `taken`."""

    resources: Resources
    sites: frozenset[str]
    count: int
    apart: bool = False
    taken: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Option:
    """A machine that can be had: `most` of them (None: any number), together with others of the same `pool`."""

    name: str
    site: str
    resources: Resources
    usd_per_hour: float
    most: int | None = None
    pool: str = ""


class Packer:
    """Packs the same kinds at the same worths; what was filled once is remembered."""

    def __init__(self, kinds: Sequence[Kind], worths: Sequence[float]) -> None:
        self.kinds = kinds
        self.worths = tuple(worths)
        self._asked = [_sizes(kind.resources) for kind in kinds]
        self._shapes: dict[tuple[Resources, str], int] = {}
        self._sizes: list[Sizes] = []
        self._sites: list[str] = []
        self._most: list[Counts] = []
        self._fills: dict[tuple[Sizes, Counts], Counts] = {}

    def shape(self, has: Resources, site: str) -> int:
        """A number for machines of that size at that site."""
        known = self._shapes.setdefault((has, site), len(self._most))
        if known == len(self._most):
            self._sizes.append(_sizes(has))
            self._sites.append(site)
            self._most.append(tuple(self._limit(kind, has, site) for kind in self.kinds))
        return known

    def fill(self, shape: int, left: Counts, spread: Spread) -> Counts:
        """How many of each kind go into a machine, when so many are left: those that are worth most."""
        limits = tuple(map(min, left, self._most[shape]))
        if spread:
            site = self._sites[shape]
            limits = tuple(0 if (k, site) in spread else n for k, n in enumerate(limits))
        key = self._sizes[shape], limits
        known = self._fills.get(key)
        if known is None:
            known = self._fills[key] = self._most_worth(*key)
        return known

    def worth(self, counts: Counts) -> float:
        """Of so many of each kind."""
        return float(sum(map(mul, counts, self.worths)))

    def _limit(self, kind: Kind, has: Resources, site: str) -> int:
        """How many of a kind one such machine holds, alone."""
        if site not in kind.sites or (kind.apart and site in kind.taken):
            return 0
        times = _times(_sizes(kind.resources), _sizes(has))
        return min(times, 1) if kind.apart else times

    def _most_worth(self, has: Sizes, limits: Counts) -> Counts:
        """By trying, the densest kind first, for a bounded number of steps: the first try is the greedy one."""
        order = sorted((k for k, n in enumerate(limits) if n), key=lambda k: (-self._density(k, has), k))
        values = [limits[k] * self.worths[k] for k in order]
        rests = [sum(values[at:]) for at in range(len(order) + 1)]
        best, found = -1.0, [0] * len(limits)
        taken = [0] * len(limits)
        steps = 0

        def go(at: int, left: Sizes, worth: float) -> None:
            nonlocal best, found, steps
            steps += 1
            if worth > best + EPSILON:
                best, found = worth, taken[:]
            if at == len(order) or worth + rests[at] <= best + EPSILON:
                return
            kind = order[at]
            asked, one = self._asked[kind], self.worths[kind]
            most = min(limits[kind], _times(asked, left))
            for count in range(most, -1 if at < DEPTH else most - 1, -1):
                taken[kind] = count
                a, b, c, d = (there - count * each for there, each in zip(left, asked, strict=True))
                go(at + 1, (a, b, c, d), worth + count * one)
                if steps > FILL_STEPS:
                    break
            taken[kind] = 0

        go(0, has, 0.0)
        return tuple(found)

    def _density(self, kind: int, has: Sizes) -> float:
        share = sum(asked / there for asked, there in zip(self._asked[kind], has, strict=True) if there)
        return self.worths[kind] / share if share else 1e300


def packers(kinds: Sequence[Kind], priced: Iterable[Option]) -> list[Packer]:
    """One for each way to say what a slot is worth: with what else is in a machine; the same, but one that keeps apart
    is worth the machine that it needs at its site; alone where it is cheapest; by the largest share of a machine."""
    options = sorted(priced, key=lambda o: (o.usd_per_hour, o.name))
    alone = [_alone(kind, options) for kind in kinds]
    together = _together(kinds, options, alone)
    largest = [
        max((_sizes(o.resources) for o in options), key=lambda s: s[i])[i] if options else 1.0
        for i in range(4)
    ]
    shares = [
        max(
            (asked / there for asked, there in zip(_sizes(k.resources), largest, strict=True) if there),
            default=1.0,
        )
        for k in kinds
    ]
    forced = [
        _whole(kind, options) if kind.apart else worth for kind, worth in zip(kinds, together, strict=True)
    ]
    return [
        Packer(kinds, worths) for worths in (together, forced, alone, [share + EPSILON for share in shares])
    ]


def without(
    kinds: Sequence[Kind], left: Counts, spread: Spread, site: str, counts: Counts
) -> tuple[Counts, Spread]:
    """What is left, and which sites are had, when a machine at a site is filled with these."""
    apart = {(k, site) for k, n in enumerate(counts) if n and kinds[k].apart}
    return tuple(a - b for a, b in zip(left, counts, strict=True)), spread | apart if apart else spread


def _alone(kind: Kind, options: Sequence[Option]) -> float:
    """What one costs in a machine that is full of its like, where that is cheapest."""
    prices = [
        option.usd_per_hour / times
        for option in options
        if option.site in kind.sites and (times := _times(_sizes(kind.resources), _sizes(option.resources)))
    ]
    return max(min(prices, default=1.0), EPSILON)


def _whole(kind: Kind, options: Sequence[Option]) -> float:
    """The price of the cheapest machine that holds one."""
    sizes = _sizes(kind.resources)
    prices = [o.usd_per_hour for o in options if o.site in kind.sites and _times(sizes, _sizes(o.resources))]
    return max(min(prices, default=1.0), EPSILON)


def _together(kinds: Sequence[Kind], options: Sequence[Option], alone: Sequence[float]) -> list[float]:
    """What one costs where others fill the machine up: no machine is worth more than its price. These are near the
    prices that the linear program's dual would give; found by lowering what is in a machine that is worth too much."""
    worths = list(alone)
    for _ in range(12):
        lowered = False
        packer = Packer(kinds, worths)
        for option in options:
            if not option.usd_per_hour:
                continue
            counts = packer.fill(
                packer.shape(option.resources, option.site), tuple(k.count for k in kinds), frozenset()
            )
            worth = packer.worth(counts)
            if worth > option.usd_per_hour * (1 + 1e-6):
                lowered = True
                factor = option.usd_per_hour / worth
                worths = [w * factor if n else w for w, n in zip(worths, counts, strict=True)]
                packer = Packer(kinds, worths)
        if not lowered:
            break
    return worths


def _times(asked: Sizes, has: Sizes) -> int:
    """How often it fits in (a millionth of a core is rounding)."""
    most = MOST_TIMES
    for one, there in zip(asked, has, strict=True):
        if one > 0:
            most = min(most, int((there + 1e-6) // one))
    return max(most, 0)


def _sizes(resources: Resources) -> Sizes:
    return resources.cpus, resources.memory_bytes, resources.accelerators, resources.neuron_cores
