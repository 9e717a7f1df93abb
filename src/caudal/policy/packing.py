"""Which machines hold a number of slots together for the least, and which slots go into which machine.

Bins of several sizes and prices, items in several dimensions: nobody finds the least in a moment. A beam of partial
plans is carried from machine to machine; each machine is filled with what is worth most, by what a slot costs where it
is cheapest. Several ways to say what a slot is worth are tried, and the cheapest plan counts. Pure; knows no leases.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from caudal.domain.fleet import Resources
from caudal.policy.filling import EPSILON, Counts, Kind, Option, Packer, Spread, packers, without

WIDTH = 6
"""Partial plans that are kept side by side; one where there is much to place."""

BRANCHES = 4
MUCH = 1_000
"""Kinds × options from which on one partial plan is kept."""

TAIL = 48
"""Slots up to which a plan is searched for. Of more, machines are first filled with what is worth most for the price."""

NEAR = 1.005
"""A plan that costs no more than this times what its slots are worth is not looked at again."""

MOST_IMPROVED = 32
"""Machines of a plan that is looked at machine by machine."""

MOST_TRIES = 150


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


def cheapest(kinds: Sequence[Kind], options: Sequence[Option], priced: Iterable[Option]) -> list[Filled]:
    """Machines that hold as many of the slots as there is room for, at the least that is found, in the order in which
    they were filled. `priced` are all options that say what slots are worth, whether they can be had now or not."""
    width = 1 if len(kinds) * len(options) > MUCH else WIDTH
    best: _Partial | None = None
    tried: set[tuple[float, ...]] = set()
    least: float | None = None  # the first worths are such that no machine holds more than its price
    for packer in packers(kinds, priced):
        if packer.worths in tried:
            continue
        tried.add(packer.worths)
        least = packer.worth(tuple(kind.count for kind in kinds)) if least is None else least
        found = _planned(packer, options, width)
        if best is None or (sum(found.left), found.cost) < (sum(best.left), best.cost - EPSILON):
            best = found
        if not sum(best.left) and best.cost <= NEAR * least:
            break
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
            left, spread = without(kinds, left, spread, site, counts)
            made.append(counts)
        placed = sum(sum(counts) for counts in made)
        if placed > best[0]:
            best = (placed, made)
        if not sum(left):
            break
    return best[1]


def _planned(packer: Packer, options: Sequence[Option], width: int) -> _Partial:
    """One plan at these worths: in bulk first, then searched for, then improved."""
    shapes = [packer.shape(option.resources, option.site) for option in options]
    start = _Partial(0.0, tuple(kind.count for kind in packer.kinds), frozenset(), ())
    while sum(start.left) > TAIL:
        following = _steps(packer, options, shapes, start, 1)
        if not following:
            break
        start = _repeated(packer, options, following[0])
    return _improved(packer, options, start, _search(packer, options, shapes, start, width))


def _repeated(packer: Packer, options: Sequence[Option], partial: _Partial) -> _Partial:
    """The last machine again, as often as as much is left and more than a tail stays."""
    last = partial.made[-1]
    option = options[last.option]
    if any(n and packer.kinds[k].apart for k, n in enumerate(last.counts)):
        return partial
    used = dict(partial.used)
    name = option.pool or option.name
    times = min(left // n for left, n in zip(partial.left, last.counts, strict=True) if n)
    times = min(times, (sum(partial.left) - TAIL) // sum(last.counts))
    if option.most is not None:
        times = min(times, option.most - used[name])
        used[name] += max(times, 0)
    if times <= 0:
        return partial
    left = tuple(there - times * n for there, n in zip(partial.left, last.counts, strict=True))
    cost = partial.cost + times * option.usd_per_hour
    return _Partial(cost, left, partial.spread, tuple(sorted(used.items())), partial.made + times * (last,))


def _search(
    packer: Packer, options: Sequence[Option], shapes: Sequence[int], start: _Partial, width: int
) -> _Partial:
    """The cheapest plan of a beam; where not all have room, one that leaves the fewest out."""
    if not sum(start.left):
        return start
    beam, furthest = [start], start
    best: _Partial | None = None
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


def _improved(packer: Packer, options: Sequence[Option], start: _Partial, plan: _Partial) -> _Partial:
    """The plan without machines that the others can do without, and with cheaper ones where they do: filled anew, the
    dearest first, so that what has to be taken anyway is used up before anything else."""
    bulk = len(start.made)
    if not bulk < len(plan.made) <= bulk + MOST_IMPROVED or sum(plan.left) > 0:
        return plan
    dearest = sorted((f.option for f in plan.made[bulk:]), key=lambda o: (-options[o].usd_per_hour, o))
    best = min((plan, _filled(packer, options, start, dearest) or plan), key=lambda p: p.cost)
    tries = MOST_TRIES
    while tries > 0:
        better, tries = _bettered(packer, options, start, best, tries)
        if better is None:
            break
        best = better
    return best


def _bettered(
    packer: Packer, options: Sequence[Option], start: _Partial, plan: _Partial, tries: int
) -> tuple[_Partial | None, int]:
    """The plan with one machine less, or a cheaper one; None where none is found. And how many tries are left."""
    chosen = [f.option for f in plan.made[len(start.made) :]]
    before = [start]  # what is filled ahead of each machine stays as it is
    for number in chosen:
        before.append(_after(packer, options, before[-1], number))
    for at in sorted(range(len(chosen)), key=lambda i: (-options[chosen[i]].usd_per_hour, i)):
        for cheaper in [None, *_cheaper(options, start, chosen, chosen[at])]:
            rest = chosen[at + 1 :]
            tries -= 1
            tried = _filled(packer, options, before[at], rest if cheaper is None else [cheaper, *rest])
            if tried is not None and tried.cost < plan.cost - EPSILON:
                return tried, tries
            if tries <= 0:
                return None, 0
    return None, tries


def _cheaper(options: Sequence[Option], start: _Partial, chosen: Sequence[int], than: int) -> list[int]:
    """Options below the price of one that is chosen, of which one more can be had; the cheapest first."""
    used = dict(start.used)
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


def _filled(
    packer: Packer, options: Sequence[Option], start: _Partial, chosen: Sequence[int]
) -> _Partial | None:
    """A start with these machines filled one after the other; empty ones are left out. None where not all have room."""
    partial = start
    for number in chosen:
        partial = _after(packer, options, partial, number)
    return None if sum(partial.left) else partial


def _after(packer: Packer, options: Sequence[Option], partial: _Partial, number: int) -> _Partial:
    """With one machine more, unless nothing would go into it."""
    option = options[number]
    counts = packer.fill(packer.shape(option.resources, option.site), partial.left, partial.spread)
    if not any(counts):
        return partial
    left, spread = without(packer.kinds, partial.left, partial.spread, option.site, counts)
    made = (*partial.made, Filled(number, counts))
    return _Partial(partial.cost + option.usd_per_hour, left, spread, partial.used, made)


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
    left, spread = without(packer.kinds, partial.left, partial.spread, option.site, counts)
    name = option.pool or option.name
    taken = (
        tuple(sorted((used | {name: used.get(name, 0) + 1}).items()))
        if option.most is not None
        else partial.used
    )
    made = (*partial.made, Filled(number, counts))
    return _Partial(partial.cost + option.usd_per_hour, left, spread, taken, made)
