"""What was paid for what: from leases, the gangs that ran on them, and contracts alone.

The price is the lease's own, frozen when it was opened; no catalogue is asked. Amounts are exact until a day's are
rounded to cents, once: every grouping is then a sum of the same whole cents, so that all of them add up to the
same total, and a window cut in two adds up to the whole. Knows nothing of where the rows come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Literal

from caudal.domain.fleet import Contract, Lease, Resources
from caudal.domain.gang import Gang
from caudal.domain.term import DAY_S, HOUR_S, changes, committed_per_hour, day_of, moment

By = Literal["contract", "workload", "team", "day", "provider"]

IDLE = "(idle)"
"""The time of machines that nothing ran on, or the part of them that nothing had."""

UNUSED = "(unused)"
"""What a contract costs beyond what was used of it."""

FLEET = "(fleet)"
"""The fleet's own gangs: gateways."""

PAY_AS_YOU_GO = "(by the hour)"
DEFAULT_TEAM = "default"


@dataclass(frozen=True, slots=True)
class Cell:
    """What one amount is of. Words in brackets are no names."""

    day: str
    provider: str
    contract: str
    workload: str
    team: str


@dataclass(frozen=True, slots=True)
class Line:
    """A cell with its whole cents (US)."""

    cell: Cell
    cents: int


@dataclass(frozen=True, slots=True)
class Bill:
    """All cells of a window since <= t < until that cost something."""

    since: float
    until: float
    lines: tuple[Line, ...]

    @property
    def total_cents(self) -> int:
        """The sum."""
        return sum(line.cents for line in self.lines)

    def by(self, key: By) -> dict[str, int]:
        """Cents by one part of the cells: days in their order, else the dearest first."""
        sums: dict[str, int] = {}
        for line in self.lines:
            name: str = getattr(line.cell, key)
            sums[name] = sums.get(name, 0) + line.cents
        ordered = sorted(sums.items(), key=lambda item: item[0] if key == "day" else (-item[1], item[0]))
        return dict(ordered)


@dataclass(frozen=True, slots=True)
class Books:
    """What a bill is made from. Leases and gangs have to reach back to the start of the first day, and for
    contracts of kind `spend` to the start of their term. `providers`: by site, for leases that do not say."""

    leases: Sequence[Lease]
    gangs: Sequence[Gang]
    contracts: Sequence[Contract] = ()
    providers: Mapping[str, str] | None = None
    share_idle: bool = False  # what nothing has of a machine counts for those that are on it, in proportion

    def provider(self, lease: Lease) -> str:
        """Whose machine a lease is."""
        return lease.provider or (self.providers or {}).get(lease.site, "") or "(unknown)"


def bill(books: Books, since: float, until: float) -> Bill:
    """The bill of a window that ends now or earlier. Costs that are not incurred yet are not in it."""
    lines: list[Line] = []
    day = since - since % DAY_S
    while day < until:
        begin, end = max(day, since), min(day + DAY_S, until)
        before = Fraction(0) if begin == day else sum(exact(books, day, begin).values(), Fraction(0))
        cells = exact(books, begin, end)
        after = before + sum(cells.values(), Fraction(0))
        shared = apportion(cells, round(after * 100) - round(before * 100))
        lines += [Line(cell, cents) for cell, cents in shared.items() if cents]
        day += DAY_S
    return Bill(since, until, tuple(lines))


def apportion(amounts: Mapping[Cell, Fraction], total_cents: int) -> dict[Cell, int]:
    """Dollars as whole cents that add up to the total: all are cut, and the largest remainders get one more."""
    order = sorted(amounts, key=lambda c: (c.day, c.provider, c.contract, c.workload, c.team))
    cents = {cell: (amounts[cell] * 100).__floor__() for cell in order}
    left = total_cents - sum(cents.values())
    by_remainder = sorted(order, key=lambda cell: cents[cell] - amounts[cell] * 100)
    for cell in by_remainder if left > 0 else reversed(by_remainder):
        if not left:
            break
        if left > 0 or cents[cell] > 0:
            step = 1 if left > 0 else -1
            cents[cell] += step
            left -= step
    assert left == 0 or not cents, "cells and total are more than a cent a cell apart"
    return cents


def exact(books: Books, since: float, until: float) -> dict[Cell, Fraction]:
    """Dollars by cell within one day, exactly. Times count in milliseconds."""
    cells: dict[Cell, Fraction] = {}
    for cell, usd in (*_leases(books, since, until), *_commitments(books, since, until)):
        cells[cell] = cells.get(cell, Fraction(0)) + usd
    return cells


def spending(books: Books, since: float, until: float) -> dict[str, Decimal]:
    """Dollars by team, for budgets: the part of a machine that nothing has counts for the teams that are on it, since
    it was taken for them. On the bill it is idle."""
    books = replace(books, share_idle=True)
    return {team: Decimal(cents) / 100 for team, cents in bill(books, since, until).by("team").items()}


def span(lease: Lease, until: float) -> tuple[float, float] | None:
    """From when to when a lease costs: from when its machine was first listed as running until the list no longer
    showed it. None: its machine never ran."""
    if lease.active_at is None:
        return None
    return lease.active_at, until if lease.ended_at is None else min(lease.ended_at, until)


def draws_on(books: Books, lease: Lease) -> str:
    """The contract that a lease draws on: its own, or the `spend` that its provider's use counts towards."""
    if lease.contract:
        return lease.contract
    provider = books.provider(lease)
    for contract in books.contracts:
        if contract.kind == "spend" and contract.provider == provider and lease.active_at is not None:
            here = not contract.sites or lease.site in contract.sites
            if here and moment(contract.start) <= lease.active_at < moment(contract.end):
                return contract.name
    return PAY_AS_YOU_GO


def _leases(books: Books, since: float, until: float) -> Iterator[tuple[Cell, Fraction]]:
    gangs: dict[str, list[Gang]] = {}
    for gang in books.gangs:
        gangs.setdefault(gang.lease_id, []).append(gang)
    day = day_of(since)
    owned = {c.name: moment(c.end) for c in books.contracts if c.kind == "own"}
    for lease in books.leases:
        costs = span(lease, until)
        if costs is None or costs[1] <= since or costs[0] >= until or not lease.price_usd_per_hour:
            continue
        begin, end = max(costs[0], since), min(costs[1], owned.get(lease.contract, costs[1]))
        if begin >= end:
            continue  # the user's own machine, and paid
        provider, contract = books.provider(lease), draws_on(books, lease)
        for workload, team, share in _shares(lease, gangs.get(lease.id, []), begin, end, books.share_idle):
            usd = Fraction(lease.price_usd_per_hour) * share / (HOUR_S * 1000)
            yield Cell(day, provider, contract, workload, team), usd


def _shares(
    lease: Lease, gangs: Iterable[Gang], begin: float, end: float, share_idle: bool
) -> Iterator[tuple[str, str, Fraction]]:
    """Milliseconds of a machine by who had it. A gang has the largest of its shares of the machine's cores, memory,
    accelerators and Neuron cores; where all together have more than the machine, they share it in proportion."""
    here = [g for g in gangs if g.created_at < end and (g.ended_at is None or g.ended_at > begin)]
    cuts = {begin, end}
    for gang in here:
        cuts |= {t for t in (gang.created_at, gang.ended_at) if t is not None and begin < t < end}
    ordered = sorted(cuts)
    sizes = {g.id: _size(g.resources, lease.machine_type.resources) for g in here}
    for left, right in pairwise(ordered):
        length = _ms(right) - _ms(left)
        running = [g for g in here if g.created_at <= left and (g.ended_at is None or g.ended_at >= right)]
        held = sum((sizes[g.id] for g in running), Fraction(0))
        whole = held if share_idle and held else max(held, Fraction(1))
        for gang in running:
            yield gang.workload or FLEET, _team(gang), length * sizes[gang.id] / whole
        if held < whole:
            yield IDLE, IDLE, length * (1 - held)


def _team(gang: Gang) -> str:
    return (gang.team or DEFAULT_TEAM) if gang.workload else FLEET


@lru_cache(maxsize=10_000)  # the same few sizes again and again, and fractions are slow
def _size(asked: Resources, has: Resources) -> Fraction:
    pairs = (
        (_exactly(asked.cpus), _exactly(has.cpus)),
        (Fraction(asked.memory_bytes), Fraction(has.memory_bytes)),
        (Fraction(asked.accelerators), Fraction(has.accelerators)),
        (Fraction(asked.neuron_cores), Fraction(has.neuron_cores)),
    )
    return min(Fraction(1), max((a / b for a, b in pairs if b), default=Fraction(0)))


def _exactly(cpus: float) -> Fraction:
    return Fraction(cpus).limit_denominator(1_000_000)


def _ms(at: float) -> int:
    return round(at * 1000)


def _commitments(books: Books, since: float, until: float) -> Iterator[tuple[Cell, Fraction]]:
    """What contracts cost beyond what was used of them."""
    day = day_of(since)
    for contract in books.contracts:
        cell = Cell(day, contract.provider, contract.name, UNUSED, UNUSED)
        if contract.kind == "spend":
            end = moment(contract.end)
            if since < end <= until:
                yield cell, max(Fraction(0), Fraction(contract.commitment_usd) - drawn(books, contract, end))
            continue
        draws = [x for x in books.leases if x.contract == contract.name]
        unused = Fraction(0)
        used = Fraction(0)
        changed = _changes_of_use(draws, since, until)
        cuts = sorted({since, until, *changed, *(t for t in changes(contract) if since < t < until)})
        for left, right in pairwise(cuts):
            used += changed.get(left, Fraction(0))
            rate = committed_per_hour(contract, left) - used
            unused += max(Fraction(0), rate) * (_ms(right) - _ms(left)) / (HOUR_S * 1000)
        if unused:
            yield cell, unused


def _changes_of_use(draws: Iterable[Lease], since: float, until: float) -> dict[float, Fraction]:
    """By how many dollars an hour what leases cost together changes, by when."""
    found: dict[float, Fraction] = {}
    for lease in draws:
        costs = span(lease, until)
        if costs is None or costs[1] <= since or costs[0] >= until:
            continue
        price = Fraction(lease.price_usd_per_hour)
        for at, change in ((max(costs[0], since), price), (costs[1], -price)):
            found[at] = found.get(at, Fraction(0)) + change
    return found


def drawn(books: Books, contract: Contract, until: float, since: float | None = None) -> Fraction:
    """Dollars of leases that drew on a contract, from the start of its term (or `since`)."""
    begin = max(moment(contract.start), since if since is not None else 0.0)
    end = min(until, moment(contract.end))
    total = Fraction(0)
    for lease in books.leases:
        costs = span(lease, end)
        if costs and max(costs[0], begin) < costs[1] and draws_on(books, lease) == contract.name:
            length = _ms(costs[1]) - _ms(max(costs[0], begin))
            total += Fraction(lease.price_usd_per_hour) * length / (HOUR_S * 1000)
    return total
