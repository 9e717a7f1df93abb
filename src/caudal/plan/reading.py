"""A solution of the program → what the plan says. Knows no solver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from caudal.domain.demand import COMMITTED, RunDemand
from caudal.plan import months as calendar
from caudal.plan.horizon import Horizon, Pool, speed, unit_cost
from caudal.plan.model import MILLION, Model
from caudal.plan.result import (
    BreakEven,
    MonthOfPlan,
    PoolUse,
    ProviderLoss,
    ShadowPrice,
    Shortfall,
    Signature,
)

TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class Solution:
    """A model with its variables' values."""

    model: Model
    values: Sequence[float]

    def units(self) -> dict[tuple[int, int], int]:
        """Whole units by (offer, start), where any are signed."""
        read = {key: round(self.values[variable]) for key, variable in self.model.signed.items()}
        return {key: units for key, units in read.items() if units > 0}

    def held(self, pool: Pool, month: int) -> float:
        """Chips of a pool in a month."""
        horizon = self.model.horizon
        total = horizon.held(pool, month)
        for (number, start), units in self.units().items():
            offer = horizon.spec.offers[number]
            if (offer.provider, offer.chip) == pool and month in horizon.term(offer, start):
                total += units * offer.unit_chips * horizon.share(offer, start, month)
        return total


def signatures(solution: Solution) -> tuple[Signature, ...]:
    """What to sign, the first first."""
    horizon = solution.model.horizon
    found = []
    for (number, start), units in sorted(solution.units().items(), key=lambda item: (item[0][1], item[0][0])):
        offer = horizon.spec.offers[number]
        term = horizon.term(offer, start)
        if offer.kind in COMMITTED:
            inside = sum(unit_cost(horizon, offer, start).values())
            whole = _whole_term(horizon, number, start)
        elif offer.kind == "savings":
            inside = float(offer.unit_usd) * sum(horizon.hours[month] for month in term)
            ages = range(offer.term_months)
            whole = float(offer.unit_usd) * sum(calendar.hours(horizon.first + start + age) for age in ages)
        else:
            whole = float(offer.unit_usd)
            inside = whole * len(term) / offer.term_months
        found.append(
            Signature(
                offer.name,
                offer.provider,
                offer.kind,
                offer.chip,
                horizon.name(start),
                units,
                units * offer.unit_chips if offer.kind in COMMITTED else 0.0,
                offer.term_months,
                units * inside,
                max(0.0, units * (whole - inside)),
                offer.assumed,
            )
        )
    return tuple(found)


def _whole_term(horizon: Horizon, number: int, start: int) -> float:
    offer = horizon.spec.offers[number]
    price = float(offer.price_usd_per_chip_hour + offer.egress_usd_per_chip_hour) * offer.unit_chips
    total = 0.0
    for age in range(offer.term_months):
        share = horizon.share(offer, start, start + age)
        total += price * calendar.hours(horizon.first + start + age) * share
    return total


def months(solution: Solution) -> tuple[MonthOfPlan, ...]:
    """Costs and chips, month by month."""
    return tuple(_Month(solution, month).read() for month in range(solution.model.horizon.months))


class _Month:
    def __init__(self, solution: Solution, month: int) -> None:
        self._solution = solution
        self._model = solution.model
        self._horizon = solution.model.horizon
        self._month = month
        spec = self._horizon.spec
        self._places = [
            ((s, month, b), told.probability * part.share)
            for s, told in enumerate(spec.scenarios)
            for b, part in enumerate(spec.load)
        ]

    def read(self) -> MonthOfPlan:
        horizon, month = self._horizon, self._month
        services = len(horizon.spec.services)
        held_usd, promised, cash = self._signed()
        hourly_chips, hourly_usd = self._hourly()
        spot_chips, spot_usd = self._spot()
        saved = self._saved()
        by_hour = hourly_usd + spot_usd
        peaks = [
            told.probability * horizon.load(service, told, month, horizon.peak)
            for told in horizon.spec.scenarios
            for service in horizon.spec.services
        ]
        return MonthOfPlan(
            horizon.name(month),
            held_usd,
            hourly_usd,
            spot_usd,
            promised,
            saved,
            cash + by_hour - saved,
            sum(self._solution.held(pool, month) for pool in horizon.pools),
            self._used(range(services)),
            self._used(range(services, len(self._model.demands))) + spot_chips,
            hourly_chips,
            spot_chips,
            sum(peaks),
        )

    def _signed(self) -> tuple[float, float, float]:
        """Dollars for what is held, for promises, and both as they are paid."""
        horizon, month = self._horizon, self._month
        held = sum(
            float(x.price_usd_per_chip_hour) * x.chips * horizon.hours[month]
            for x in horizon.spec.held
            if horizon.runs(x, month)
        )
        cash, promised = held, 0.0
        for (number, start), units in self._solution.units().items():
            offer = horizon.spec.offers[number]
            if offer.kind in COMMITTED:
                held += units * unit_cost(horizon, offer, start).get(month, 0.0)
                cash += units * unit_cost(horizon, offer, start, cash=True).get(month, 0.0)
            elif month in horizon.term(offer, start):
                if offer.kind == "savings":
                    due = units * float(offer.unit_usd) * horizon.hours[month]
                else:  # what is left of the sum is owed: spread over the term
                    due = self._owed(number, start, units)
                promised += due
                cash += due
        return held, promised, cash

    def _owed(self, number: int, start: int, units: int) -> float:
        horizon = self._horizon
        offer = horizon.spec.offers[number]
        term = horizon.term(offer, start)
        inside = units * float(offer.unit_usd) * len(term) / offer.term_months
        used = 0.0
        for (which, first, scenario, _), variable in self._model.spent.items():
            if (which, first) == (number, start):
                share = horizon.spec.scenarios[scenario].probability * (1.0 - offer.discount)
                used += share * self._solution.values[variable] * MILLION
        return max(0.0, inside - used) / len(term)

    def _hourly(self) -> tuple[float, float]:
        chips = usd = 0.0
        for number, offer in enumerate(self._horizon.spec.offers):
            if offer.kind != "on_demand":
                continue
            mean = sum(w * self._solution.values[self._model.hourly[number, p]] for p, w in self._places)
            chips += mean
            usd += mean * float(offer.price_usd_per_chip_hour + offer.egress_usd_per_chip_hour)
        return chips, usd * self._horizon.hours[self._month]

    def _spot(self) -> tuple[float, float]:
        chips = usd = 0.0
        runs = range(len(self._horizon.spec.services), len(self._model.demands))
        for number, offer in enumerate(self._horizon.spec.offers):
            if offer.kind == "spot":
                keys = [((number, which, place), w) for place, w in self._places for which in runs]
                found = [(self._model.spot[key], w) for key, w in keys if key in self._model.spot]
                mean = sum(w * self._solution.values[variable] for variable, w in found)
                chips += mean
                usd += mean * float(offer.price_usd_per_chip_hour + offer.egress_usd_per_chip_hour)
        return chips, usd * self._horizon.hours[self._month]

    def _saved(self) -> float:
        """Dollars that promises take off what is used by the hour."""
        saved = 0.0
        for (_, place), variable in self._model.covered.items():
            weight = dict(self._places).get(place)
            if weight:
                saved += weight * self._solution.values[variable] * self._horizon.hours[self._month]
        for (number, _, scenario, month), variable in self._model.spent.items():
            if month == self._month:
                offer, told = self._horizon.spec.offers[number], self._horizon.spec.scenarios[scenario]
                saved += told.probability * offer.discount * self._solution.values[variable] * MILLION
        return saved

    def _used(self, demands: range) -> float:
        pools = range(len(self._horizon.pools))
        keys = [((pool, which, place), w) for place, w in self._places for pool in pools for which in demands]
        found = [(self._model.used[key], w) for key, w in keys if key in self._model.used]
        return sum(w * self._solution.values[variable] for variable, w in found)


def pools(solution: Solution) -> tuple[PoolUse, ...]:
    """How far what is held is used: what is held is used before what is paid by the hour."""
    model, horizon = solution.model, solution.model.horizon
    spec = horizon.spec
    found = []
    for index, pool in enumerate(horizon.pools):
        most = held_hours = used_hours = 0.0
        for month in range(horizon.months):
            held = solution.held(pool, month)
            most = max(most, held)
            held_hours += held * horizon.hours[month]
            for s, told in enumerate(spec.scenarios):
                for b, part in enumerate(spec.load):
                    place = (s, month, b)
                    keys = [(index, which, place) for which in range(len(model.demands))]
                    used = sum(solution.values[model.used[key]] for key in keys if key in model.used)
                    used_hours += min(used, held) * horizon.hours[month] * part.share * told.probability
        found.append(PoolUse(*pool, most, used_hours / held_hours if held_hours else None))
    return tuple(found)


def losses(solution: Solution) -> tuple[ProviderLoss, ...]:
    """What is left without each provider."""
    model, horizon = solution.model, solution.model.horizon
    found = []
    for lost in horizon.providers:
        share = 0.0
        worst = (1.0, "", "")
        runs_with = runs_without = 0.0
        for month in range(horizon.months):
            by_pool = {pool: solution.held(pool, month) for pool in horizon.pools}
            whole = sum(by_pool.values())
            if whole:
                share = max(share, sum(n for pool, n in by_pool.items() if pool[0] == lost) / whole)
            runs_with += whole
            runs_without += sum(n for pool, n in by_pool.items() if pool[0] != lost)
            for scenario, told in enumerate(horizon.spec.scenarios):
                served = _left(solution, model, lost, scenario, month)
                if served < worst[0]:
                    worst = (served, horizon.name(month), told.name)
        found.append(ProviderLoss(lost, *worst, runs_without / runs_with if runs_with else 1.0, share))
    return tuple(found)


def _left(solution: Solution, model: Model, lost: str, scenario: int, month: int) -> float:
    """The share of the services' peak that what is held elsewhere can still serve: by the quickest chips for each
    service first, service by service."""
    horizon = model.horizon
    there: dict[Pool, float] = {}
    for pool in horizon.pools:
        if pool[0] != lost:
            there[pool] = solution.held(pool, month)
    wanted = served = 0.0
    for service in horizon.spec.services:
        load = horizon.load(service, horizon.spec.scenarios[scenario], month, horizon.peak)
        wanted += load
        for pool in sorted(there, key=lambda one: -speed(service, one[1])):
            factor = speed(service, pool[1])
            if factor and load > 0:
                taken = min(load / factor, there[pool])
                there[pool] -= taken
                load -= taken * factor
                served += taken * factor
    return 1.0 if wanted <= 0 else min(1.0, served / wanted)


def shadow_prices(model: Model, duals: Sequence[float]) -> tuple[ShadowPrice, ...]:
    """From the rows' duals, with everything signed as it is."""
    horizon = model.horizon
    found = []
    for index, pool in enumerate(horizon.pools):
        by_month = [0.0] * horizon.months
        for (which, place), row in model.pool_rows.items():
            if which == index:
                by_month[place[1]] -= duals[row] * MILLION
        for (which, _, month), rows in model.loss_rows.items():
            if which == index:
                by_month[month] -= sum(duals[row] for row in rows) * MILLION
        best = max(range(horizon.months), key=lambda month: by_month[month])
        mean = sum(by_month) / len(by_month)
        found.append(ShadowPrice(*pool, mean, by_month[best], horizon.name(best)))
    return tuple(found)


def break_even(horizon: Horizon) -> tuple[BreakEven, ...]:
    """Each committed offer against the cheapest hour of the same chip."""
    found = []
    for offer in horizon.by_kind(*COMMITTED):
        same = [o for o in horizon.by_kind("on_demand") if o.chip == offer.chip]
        cheapest = min(same, key=lambda o: o.price_usd_per_chip_hour, default=None)
        if cheapest is None or not cheapest.price_usd_per_chip_hour:
            found.append(BreakEven(offer.name, None, ""))
        else:
            share = float(offer.price_usd_per_chip_hour / cheapest.price_usd_per_chip_hour)
            found.append(BreakEven(offer.name, share, cheapest.name))
    return tuple(found)


def shortfalls(solution: Solution) -> tuple[Shortfall, ...]:
    """What nothing meets, one line a rule: its worst place."""
    model, horizon = solution.model, solution.model.horizon
    spec = horizon.spec
    found: dict[str, Shortfall] = {}

    def note(rule: str, amount: float, unit: str, month: int | None, scenario: str, scale: float) -> None:
        if amount > TOLERANCE * max(1.0, scale) and amount > found.get(rule, _NONE).amount:
            found[rule] = Shortfall(
                rule, amount, unit, "" if month is None else horizon.name(month), scenario
            )

    for (which, place), variable in model.short.items():
        service, told = spec.services[which], spec.scenarios[place[0]]
        scale = horizon.load(service, told, place[1], place[2])
        note(
            f"service {service.name} is served",
            solution.values[variable],
            "chips",
            place[1],
            told.name,
            scale,
        )
    for (which, scenario), variable in model.undone.items():
        run = model.demands[which]
        assert isinstance(run, RunDemand)
        told = spec.scenarios[scenario]
        rule = f"run {run.name} is done by {run.last}"
        note(rule, solution.values[variable], "chip-hours", None, told.name, horizon.work(run, told))
    for (which, lost, scenario, month), variable in model.exposed.items():
        rule = f"service {spec.services[which].name} survives the loss of {lost}"
        told = spec.scenarios[scenario]
        scale = horizon.load(spec.services[which], told, month, horizon.peak)
        note(rule, solution.values[variable], "chips elsewhere", month, told.name, scale)
    for (provider, month), variable in model.crowded.items():
        rule = f"{provider} has at most {spec.max_provider_share:.0%} of what is held"
        note(rule, solution.values[variable], "chips too many", month, "", 1.0)
    return tuple(found.values())


_NONE = Shortfall("", 0.0, "", "", "")
