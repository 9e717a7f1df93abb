"""What a plan says: contracts, months, providers' losses, prices. Values only; who makes them is planner.py."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Signature:
    """Sign so many units of an offer, to begin in that month. `chips` is what they give at the end of their ramp (0 for
    promises), `usd` what they cost within the plan, `used` the expected share of it that is used (None: promises)."""

    offer: str
    provider: str
    kind: str
    chip: str
    start: str
    units: int
    chips: float
    term_months: int
    usd: float
    beyond_usd: float  # still owed when the plan ends
    assumed: bool


@dataclass(frozen=True, slots=True)
class MonthOfPlan:
    """One month, expected over the scenarios: dollars as they are borne (`cash_usd`: as they are paid), chips as means
    over the month, except for `peak_chips`, which the services need at the peak."""

    month: str
    held_usd: float
    by_hour_usd: float
    spot_usd: float
    promised_usd: float
    saved_usd: float
    cash_usd: float
    held_chips: float
    service_chips: float
    run_chips: float
    by_hour_chips: float
    spot_chips: float
    peak_chips: float

    @property
    def usd(self) -> float:
        """All of it."""
        return self.held_usd + self.by_hour_usd + self.spot_usd + self.promised_usd - self.saved_usd


@dataclass(frozen=True, slots=True)
class PoolUse:
    """Chips of one type at one provider: the most that is held, and the expected share that is used of what is held
    over all months."""

    provider: str
    chip: str
    most_held: float
    used: float | None


@dataclass(frozen=True, slots=True)
class ShadowPrice:
    """What one more of that chip, for one month at that provider, would take off the expected cost: on the mean of the
    months, and in the best of them."""

    provider: str
    chip: str
    mean_usd_per_month: float
    best_usd_per_month: float
    best_month: str


@dataclass(frozen=True, slots=True)
class BreakEven:
    """A committed offer is cheaper than the hour's price of the same chip where more than `utilisation` of its hours is
    used; None where nothing by the hour is known for that chip."""

    offer: str
    utilisation: float | None
    against: str


@dataclass(frozen=True, slots=True)
class ProviderLoss:
    """What is left of the services' peak, and of what runs have, when a provider is gone: in the worst month and
    scenario."""

    provider: str
    served: float
    worst_month: str
    worst_scenario: str
    runs: float
    share_of_held: float  # the most that the provider has of what is held, in any month


@dataclass(frozen=True, slots=True)
class Shortfall:
    """Demand that nothing meets: `amount` in `unit`, in the worst month and scenario."""

    rule: str
    amount: float
    unit: str
    month: str
    scenario: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to sign, and what follows. `method` is milp or greedy; `gap` how far the cost may be above the least one (None
    for greedy: nobody knows). `usd_now` is the expected present value, `usd` the plain sum."""

    name: str
    method: str
    status: str
    gap: float | None
    usd_now: float
    usd: float
    signatures: tuple[Signature, ...]
    months: tuple[MonthOfPlan, ...]
    pools: tuple[PoolUse, ...]
    losses: tuple[ProviderLoss, ...]
    shadow_prices: tuple[ShadowPrice, ...] = ()
    break_even: tuple[BreakEven, ...] = ()
    shortfalls: tuple[Shortfall, ...] = ()
    conflict: tuple[
        str, ...
    ] = ()  # rules that cannot hold together, none of which can be left out of the set
    remedies: tuple[str, ...] = ()  # the smallest changes that make it feasible
    assumptions: tuple[str, ...] = ()
    scenario_usd: tuple[tuple[str, float], ...] = ()  # the plain sum in each scenario
