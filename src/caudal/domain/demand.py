"""What a team expects to need, and what it could sign for: the input of the capacity planner.

Amounts are chips of a named type; an hour of one of them is a chip-hour. Months are written 2027-01. All prices are US
dollars per chip and hour. Filled by spec/; read by plan/.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

OfferKind = Literal["reserved", "block", "own", "on_demand", "spot", "savings", "spend"]

COMMITTED: frozenset[str] = frozenset({"reserved", "block", "own"})
"""Kinds that give chips for a term, used or not."""

BY_THE_HOUR: frozenset[str] = frozenset({"on_demand", "spot"})
"""Kinds that are paid for as they are used."""

PROMISES: frozenset[str] = frozenset({"savings", "spend"})
"""Kinds that give no chips, and take something off what is paid by the hour."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One way in which things may go. `growth_per_year` multiplies every service's load each year (1.5: half as much
    again); `runs` multiplies the work of every run."""

    name: str
    probability: float
    growth_per_year: float = 1.0
    runs: float = 1.0


@dataclass(frozen=True, slots=True)
class LoadBlock:
    """A part of the hours of a month (`share` of them) in which the load is `load` times its mean."""

    name: str
    share: float
    load: float


@dataclass(frozen=True, slots=True)
class ChipSpeed:
    """A type of chip that can do the work, and how much of it in an hour, against the demand's own unit (1.0)."""

    chip: str
    speed: float = 1.0


@dataclass(frozen=True, slots=True)
class ServiceDemand:
    """An assistant that has to be served: `mean_chips` of speed 1 on the mean of the first month.

    With `survives` 1 the whole peak can still be served by what is held when any one provider is gone, in every
    scenario; with 0.5, half of it; with 0 nothing is promised.
    """

    name: str
    mean_chips: float
    chips: tuple[ChipSpeed, ...]
    first: str = ""  # empty: the plan's first month
    last: str = ""  # empty: the plan's last month
    survives: float = 1.0


@dataclass(frozen=True, slots=True)
class RunDemand:
    """A training run: `chip_hours` of speed 1, within the months `first` to `last` (its deadline), both included, on at
    most `max_chips` at once (0: any number). One that is `interruptible` may use spot."""

    name: str
    chip_hours: float
    first: str
    last: str
    chips: tuple[ChipSpeed, ...]
    max_chips: float = 0.0
    interruptible: bool = True


@dataclass(frozen=True, slots=True)
class CapacityOffer:
    """Something that can be signed, or used by the hour.

    A committed kind is signed in units of `unit_chips`, at most `max_chips` in all over all start months (0: any
    number), for `term_months`; `ramp` says which share of it is there in its first months. `starts`: the months in which
    it can begin (empty: every third). `prepaid` of its price is paid when it is signed. For `spot`, `interrupted` is the
    share of work that interruptions cost. For `savings` and `spend` the price is of no use: `discount` is taken off the
    hourly use at the provider, up to a commitment (dollars an hour; dollars over the term) of units of `unit_usd`.
    `egress_usd_per_chip_hour` comes on top of each hour used. `assumed`: not from a source, and shown as such.
    """

    name: str
    provider: str
    kind: OfferKind
    chip: str = ""
    price_usd_per_chip_hour: Decimal = Decimal(0)
    term_months: int = 12
    unit_chips: float = 8.0
    max_chips: float = 0.0
    starts: tuple[str, ...] = ()
    ramp: tuple[float, ...] = ()
    prepaid: float = 0.0
    interrupted: float = 0.0
    discount: float = 0.0
    unit_usd: Decimal = Decimal(0)
    max_units: int = 100
    egress_usd_per_chip_hour: Decimal = Decimal(0)
    source: str = ""
    assumed: bool = False


@dataclass(frozen=True, slots=True)
class HeldContract:
    """A contract that is signed already: it is paid for, whatever the plan says."""

    name: str
    provider: str
    chip: str
    chips: float
    first: str
    last: str
    price_usd_per_chip_hour: Decimal = Decimal(0)
    source: str = ""
    assumed: bool = False


@dataclass(frozen=True, slots=True)
class DemandSpec:
    """What a `type: demand` file says.

    `load` is the shape of a month for all services: its blocks' shares add up to 1, and so does load times share.
    `max_provider_share`: no provider may have more of the committed capacity than this, in any month in which there is
    any (1: no such rule). `discount_rate_per_year` weighs later dollars. `shortfall_usd_per_chip_hour` is the price of
    demand that nothing meets; it only decides what is left out first.
    """

    name: str
    first: str
    months: int
    scenarios: tuple[Scenario, ...]
    offers: tuple[CapacityOffer, ...]
    services: tuple[ServiceDemand, ...] = ()
    runs: tuple[RunDemand, ...] = ()
    held: tuple[HeldContract, ...] = ()
    load: tuple[LoadBlock, ...] = field(default_factory=lambda: (LoadBlock("all", 1.0, 1.0),))
    max_provider_share: float = 1.0
    discount_rate_per_year: float = 0.08
    shortfall_usd_per_chip_hour: Decimal = Decimal(1000)
    assumptions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class QuoteSpec:
    """What a `type: quote` file says: one offer that came in, to be judged against a demand."""

    name: str
    offer: CapacityOffer
