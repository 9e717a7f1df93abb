"""A demand laid out over its months: loads, capacities that are held, start months. Knows no program and no solver."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from caudal.domain.demand import (
    COMMITTED,
    PROMISES,
    CapacityOffer,
    DemandSpec,
    HeldContract,
    RunDemand,
    Scenario,
    ServiceDemand,
)
from caudal.plan import months

Pool = tuple[str, str]
"""Chips of one type at one provider: (provider, chip)."""

EVERY_MONTHS = 3
"""How far apart an offer's start months are where it names none."""


@dataclass(frozen=True)
class Horizon:
    """A demand over its months, 0 to `months` - 1."""

    spec: DemandSpec

    @cached_property
    def first(self) -> int:
        """The calendar month of month 0."""
        return months.number(self.spec.first)

    @property
    def months(self) -> int:
        """How many there are."""
        return self.spec.months

    def name(self, month: int) -> str:
        """2027-03."""
        return months.name(self.first + month)

    def within(self, first: str, last: str) -> range:
        """The months from `first` to `last`, both included, as far as they are in the plan; empty text is open."""
        start = months.number(first) - self.first if first else 0
        stop = months.number(last) - self.first + 1 if last else self.months
        return range(max(0, start), min(self.months, stop))

    @cached_property
    def hours(self) -> tuple[float, ...]:
        """Of each month."""
        return tuple(months.hours(self.first + month) for month in range(self.months))

    @cached_property
    def worth(self) -> tuple[float, ...]:
        """What a dollar of each month's middle is worth today, at the first month's beginning."""
        rate = 1.0 + self.spec.discount_rate_per_year
        return tuple(rate ** (-(month + 0.5) / 12.0) for month in range(self.months))

    @cached_property
    def pools(self) -> tuple[Pool, ...]:
        """Where chips are held, or can be had by the hour without being taken away."""
        found = {(x.provider, x.chip) for x in self.spec.held}
        kinds = COMMITTED | {"on_demand"}
        return tuple(sorted(found | {(o.provider, o.chip) for o in self.spec.offers if o.kind in kinds}))

    @cached_property
    def providers(self) -> tuple[str, ...]:
        """All that can give chips."""
        return tuple(sorted({p for p, _ in self.pools} | {o.provider for o in self.by_kind("spot")}))

    def by_kind(self, *kinds: str) -> tuple[CapacityOffer, ...]:
        """The offers of these kinds, in their order."""
        return tuple(o for o in self.spec.offers if o.kind in kinds)

    @cached_property
    def signable(self) -> tuple[CapacityOffer, ...]:
        """What a signature is needed for."""
        return self.by_kind(*COMMITTED, *PROMISES)

    def starts(self, offer: CapacityOffer) -> tuple[int, ...]:
        """The months of the plan in which it can begin."""
        if offer.starts:
            given = (months.number(text) - self.first for text in offer.starts)
            return tuple(sorted({month for month in given if 0 <= month < self.months}))
        return tuple(range(0, self.months, EVERY_MONTHS))

    def term(self, offer: CapacityOffer, start: int) -> range:
        """The months of the plan in which it holds when it begins in `start`."""
        return range(start, min(self.months, start + offer.term_months))

    def share(self, offer: CapacityOffer, start: int, month: int) -> float:
        """How much of it is there in that month of its term: all, once its ramp is over."""
        age = month - start
        return offer.ramp[age] if age < len(offer.ramp) else 1.0

    def held(self, pool: Pool, month: int) -> float:
        """Chips that are signed for already."""
        return sum(x.chips for x in self.spec.held if (x.provider, x.chip) == pool and self.runs(x, month))

    def runs(self, contract: HeldContract, month: int) -> bool:
        """Whether a contract that is held gives chips in that month."""
        return month in self.within(contract.first, contract.last)

    @cached_property
    def peak(self) -> int:
        """The block with the highest load."""
        return max(range(len(self.spec.load)), key=lambda block: self.spec.load[block].load)

    def load(self, service: ServiceDemand, scenario: Scenario, month: int, block: int) -> float:
        """Chips of speed 1 that a service needs then; 0 outside its months."""
        if month not in self.within(service.first, service.last):
            return 0.0
        grown: float = scenario.growth_per_year ** (month / 12.0)
        return service.mean_chips * grown * self.spec.load[block].load

    def busiest(self, month: int) -> int:
        """The scenario with the most load in a month: the first of them where several have it."""
        growth = [told.growth_per_year ** (month / 12.0) for told in self.spec.scenarios]
        return growth.index(max(growth))

    def work(self, run: RunDemand, scenario: Scenario) -> float:
        """Chip-hours of speed 1 that a run needs."""
        return run.chip_hours * scenario.runs


def speed(demand: ServiceDemand | RunDemand, chip: str) -> float:
    """How fast a chip does a demand's work; 0 where it cannot."""
    return next((c.speed for c in demand.chips if c.chip == chip), 0.0)


def unit_cost(horizon: Horizon, offer: CapacityOffer, start: int, *, cash: bool = False) -> dict[int, float]:
    """What one unit of a committed offer costs, by month of the plan, in dollars. With `cash` what is prepaid lies in
    the month of the signature, for the whole of the term; else every month bears its own part."""
    price = float(offer.price_usd_per_chip_hour + offer.egress_usd_per_chip_hour) * offer.unit_chips
    due: dict[int, float] = {}
    for month in horizon.term(offer, start):
        whole = price * horizon.hours[month] * horizon.share(offer, start, month)
        due[month] = whole * (1.0 - offer.prepaid) if cash else whole
    if cash and offer.prepaid:
        ages = range(offer.term_months)
        full = sum(
            months.hours(horizon.first + start + age) * horizon.share(offer, start, start + age)
            for age in ages
        )
        due[start] = due.get(start, 0.0) + price * full * offer.prepaid
    return due
