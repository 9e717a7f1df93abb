"""Which machines hold a number of slots together for the least, and which slots go into which machine.

Bins of several sizes and prices, items in several dimensions: nobody finds the least in a moment. A beam of partial
plans is carried from machine to machine; each machine is filled with what is worth most, by what a slot costs where it
is cheapest. Several ways to say what a slot is worth are tried, and the cheapest plan counts. Pure; knows no leases.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import mul

from caudal.domain.fleet import Resources

WIDTH = 6
"""Partial plans that are kept side by side; one where there is much to place."""

BRANCHES = 4
MUCH = 2_000
"""Kinds × options from which on one partial plan is kept."""

FILL_STEPS = 300
MOST_IMPROVED = 16
MOST_TIMES = 1_000_000
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


@dataclass(frozen=True, slots=True)
class Filled:
    """One machine of an option, and how many slots of each kind it is for."""

    option: int
    counts: Counts


@dataclass(frozen=True, slots=True)
class _Partial:
    cost: float
    left: Counts
    spread: Spread  # (kind that keeps apart, site that it has)
    used: tuple[tuple[str, int], ...]  # option or pool → machines taken
    made: tuple[Filled, ...] = ()


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
        return sum(map(mul, counts, self.worths))

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
            for count in range(min(limits[kind], _times(asked, left)), -1, -1):
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


def cheapest(kinds: Sequence[Kind], options: Sequence[Option], priced: Iterable[Option]) -> list[Filled]:
    """Machines that hold as many of the slots as there is room for, at the least that is found, in the order in which
    they were filled. `priced` are all options that say what slots are worth, whether they can be had now or not."""
    width = 1 if len(kinds) * len(options) > MUCH else WIDTH
    best: _Partial | None = None
    for packer in packers(kinds, priced):
        found = _improved(packer, options, _search(packer, options, width))
        if best is None or (sum(found.left), found.cost) < (sum(best.left), best.cost - EPSILON):
            best = found
    return list(best.made) if best else []


def into(
    kinds: Sequence[Kind], machines: Sequence[tuple[str, Resources]], priced: Iterable[Option]
) -> list[Counts]:
    """How many of each kind go into each of these machines (its site, what it has free), filled one after the other.

    Machines that `cheapest` had taken, in its order, are filled as it meant them: the same worths are tried.
    """
    best: tuple[int, list[Counts]] = (-1, [])
    for packer in packers(kinds, priced):
        left, spread, made = tuple(kind.count for kind in kinds), Spread(), []
        for site, has in machines:
            counts = packer.fill(packer.shape(has, site), left, spread)
            left, spread = _without(kinds, left, spread, site, counts)
            made.append(counts)
        placed = sum(sum(counts) for counts in made)
        if placed > best[0]:
            best = (placed, made)
        if not sum(left):
            break
    return best[1]


def packers(kinds: Sequence[Kind], priced: Iterable[Option]) -> list[Packer]:
    """One for each way to say what a slot is worth: alone where it is cheapest; with what else is in a machine; by the
    largest share that it takes of a machine."""
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
    return [Packer(kinds, worths) for worths in (together, alone, [share + EPSILON for share in shares])]


def _search(packer: Packer, options: Sequence[Option], width: int) -> _Partial:
    """The cheapest plan of a beam; where not all have room, one that leaves the fewest out."""
    shapes = [packer.shape(option.resources, option.site) for option in options]
    start = _Partial(0.0, tuple(kind.count for kind in packer.kinds), frozenset(), ())
    beam, best, furthest = [start], None, start
    while beam:
        following: dict[tuple[Counts, Spread, tuple[tuple[str, int], ...]], _Partial] = {}
        for partial in beam:
            for then in _steps(packer, options, shapes, partial, BRANCHES if width > 1 else 1):
                if not sum(then.left):
                    if best is None or then.cost < best.cost - EPSILON:
                        best = then
                elif best is None or then.cost < best.cost:
                    key = (then.left, then.spread, then.used)
                    if key not in following or then.cost < following[key].cost:
                        following[key] = then
                if (sum(then.left), then.cost) < (sum(furthest.left), furthest.cost):
                    furthest = then
        beam = sorted(following.values(), key=lambda p: p.cost + packer.worth(p.left))[:width]
    return best or furthest


def _improved(packer: Packer, options: Sequence[Option], plan: _Partial) -> _Partial:
    """The plan without machines that the others can do without, and with cheaper ones where they do: filled anew, the
    dearest first, so that what has to be taken anyway is used up before anything else."""
    if len(plan.made) > MOST_IMPROVED or sum(plan.left):
        return plan
    dearest = sorted((f.option for f in plan.made), key=lambda o: (-options[o].usd_per_hour, o))
    best = min((plan, _filled(packer, options, dearest) or plan), key=lambda p: p.cost)
    changed = True
    while changed:
        changed = False
        chosen = [f.option for f in best.made]
        for at in sorted(range(len(chosen)), key=lambda i: (-options[chosen[i]].usd_per_hour, i)):
            rest = chosen[:at] + chosen[at + 1 :]
            for cheaper in [None, *_cheaper(options, chosen, chosen[at])]:
                told = rest if cheaper is None else chosen[:at] + [cheaper] + chosen[at + 1 :]
                tried = _filled(packer, options, told)
                if tried is not None and tried.cost < best.cost - EPSILON:
                    best, changed = tried, True
                    break
            if changed:
                break
    return best


def _cheaper(options: Sequence[Option], chosen: Sequence[int], than: int) -> list[int]:
    """Options below the price of one that is chosen, of which one more can be had; the cheapest first."""
    used: dict[str, int] = {}
    for number in chosen:
        name = options[number].pool or options[number].name
        used[name] = used.get(name, 0) + 1
    found = [
        (option.usd_per_hour, number)
        for number, option in enumerate(options)
        if option.usd_per_hour < options[than].usd_per_hour - EPSILON
        and (option.most is None or used.get(option.pool or option.name, 0) < option.most)
    ]
    return [number for _, number in sorted(found)]


def _filled(packer: Packer, options: Sequence[Option], chosen: Sequence[int]) -> _Partial | None:
    """The plan that fills these machines one after the other; empty ones are left out. None where not all have room."""
    left, spread = tuple(kind.count for kind in packer.kinds), frozenset[tuple[int, str]]()
    made, cost = [], 0.0
    for number in chosen:
        option = options[number]
        counts = packer.fill(packer.shape(option.resources, option.site), left, spread)
        if any(counts):
            left, spread = _without(packer.kinds, left, spread, option.site, counts)
            made.append(Filled(number, counts))
            cost += option.usd_per_hour
    return None if sum(left) else _Partial(cost, left, spread, (), tuple(made))


def _steps(
    packer: Packer, options: Sequence[Option], shapes: Sequence[int], partial: _Partial, branches: int
) -> list[_Partial]:
    """The best few machines to take next: those with which all costs least by what is left is worth, and the cheapest
    that would hold all of it."""
    used = dict(partial.used)
    found: list[tuple[float, float, int, Counts]] = []
    whole: tuple[float, int, Counts] | None = None
    for number, option in enumerate(options):
        if option.most is not None and used.get(option.pool or option.name, 0) >= option.most:
            continue
        counts = packer.fill(shapes[number], partial.left, partial.spread)
        worth = packer.worth(counts)
        if not any(counts):
            continue
        found.append((option.usd_per_hour / max(worth, EPSILON), option.usd_per_hour, number, counts))
        if counts == partial.left and (whole is None or option.usd_per_hour < whole[0]):
            whole = (option.usd_per_hour, number, counts)
    chosen = [(number, counts) for _, _, number, counts in sorted(found)[:branches]]
    if whole is not None and whole[1] not in {number for number, _ in chosen}:
        chosen.append(whole[1:])
    return [_with(packer, options, partial, number, counts, used) for number, counts in chosen]


def _with(
    packer: Packer,
    options: Sequence[Option],
    partial: _Partial,
    number: int,
    counts: Counts,
    used: dict[str, int],
) -> _Partial:
    option = options[number]
    left, spread = _without(packer.kinds, partial.left, partial.spread, option.site, counts)
    name = option.pool or option.name
    taken = (
        tuple(sorted((used | {name: used.get(name, 0) + 1}).items()))
        if option.most is not None
        else partial.used
    )
    made = (*partial.made, Filled(number, counts))
    return _Partial(partial.cost + option.usd_per_hour, left, spread, taken, made)


def _without(
    kinds: Sequence[Kind], left: Counts, spread: Spread, site: str, counts: Counts
) -> tuple[Counts, Spread]:
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
