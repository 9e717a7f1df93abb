"""A plan without a solver: the base of the load under the cheapest contracts, the rest by the hour.

Works month by month on the expected load: every chip-month that is used for longer than an offer's break-even share is
signed for, the longest need first. It keeps the rules that it can see (offers' largest, the peak without any one
provider) by signing for more; it knows no promises and no spot, and nothing of how far it is from the least cost.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from caudal.domain.demand import COMMITTED, CapacityOffer, RunDemand, ServiceDemand
from caudal.plan import reading
from caudal.plan.horizon import Horizon, speed
from caudal.plan.model import Model, build
from caudal.plan.reading import Solution
from caudal.plan.result import Plan


@dataclass
class _Book:
    horizon: Horizon
    model: Model
    values: list[float] = field(default_factory=list)

    def units(self, number: int, month: int) -> float:
        """Units of an offer that are held in a month."""
        offer = self.horizon.spec.offers[number]
        return sum(
            self.values[v]
            for (which, start), v in self.model.signed.items()
            if which == number and month in self.horizon.term(offer, start)
        )

    def work(self, demand: ServiceDemand | RunDemand, month: int, without: str = "") -> float:
        """What all that is held, but at one provider, can do for a demand in a month."""
        solution = Solution(self.model, self.values)
        return sum(
            solution.held(pool, month) * speed(demand, pool[1])
            for pool in self.horizon.pools
            if pool[0] != without
        )


def plan(horizon: Horizon) -> Plan:
    """What to sign, and by the hour for the rest."""
    model = build(horizon)
    book = _Book(horizon, model, [0.0] * len(model.program.costs))
    _sign_base(book)
    _sign_losses(book)
    for place in model.places():
        _fill(book, place)
    _deadlines(book)
    _exposed(book)
    solution = Solution(model, book.values)
    months = reading.months(solution)
    worth = sum(month.usd * factor for month, factor in zip(months, horizon.worth, strict=True))
    return Plan(
        name=horizon.spec.name,
        method="greedy",
        status="feasible",
        gap=None,
        usd_now=worth,
        usd=sum(month.usd for month in months),
        signatures=reading.signatures(solution),
        months=months,
        pools=reading.pools(solution),
        losses=reading.losses(solution),
        break_even=reading.break_even(horizon),
        shortfalls=reading.shortfalls(solution),
        assumptions=horizon.spec.assumptions,
    )


def _need(horizon: Horizon, month: int) -> list[tuple[float, float]]:
    """Chips of speed 1 that are needed in a month, with the expected share of its hours: the runs' work spread over
    their months, and services by block."""
    spec = horizon.spec
    runs = 0.0
    for run in spec.runs:
        within = horizon.within(run.first, run.last)
        if month in within:
            hours = sum(horizon.hours[m] for m in within)
            expected = sum(told.probability * horizon.work(run, told) for told in spec.scenarios)
            runs += expected / hours
    found = []
    for told in spec.scenarios:
        for block, part in enumerate(spec.load):
            load = sum(horizon.load(service, told, month, block) for service in spec.services)
            found.append((load + runs, told.probability * part.share))
    return found


def _sign_base(book: _Book) -> None:
    """Offer by offer, cheapest work first; start by start: as many units as pay for themselves."""
    horizon = book.horizon
    offers = [(n, o) for n, o in enumerate(horizon.spec.offers) if o.kind in COMMITTED]
    for number, offer in sorted(offers, key=lambda item: _per_work(horizon, item[1])):
        alternative = _by_the_hour(horizon)
        share = min(1.0, _per_work(horizon, offer) / alternative) if alternative else 0.0
        for start in horizon.starts(offer):
            term = horizon.term(offer, start)
            gaps = []
            for month in term:
                held = max((book.work(d, month) for d in book.model.demands), default=0.0)
                level = _level(_need(horizon, month), share)
                gaps.append(max(0.0, level - held))
            factor = _speed(horizon, offer)
            if gaps and factor:
                wanted = int(sum(gaps) / len(gaps) / (offer.unit_chips * factor))
                _sign(book, number, start, wanted)


def _level(need: list[tuple[float, float]], share: float) -> float:
    """The load that is reached in at least that share of the hours."""
    left = 0.0
    for load, weight in sorted(need, reverse=True):
        left += weight
        if left >= share - 1e-9:
            return load
    return 0.0


def _sign(book: _Book, number: int, start: int, wanted: int) -> None:
    horizon = book.horizon
    offer = horizon.spec.offers[number]
    if offer.max_chips:
        taken = max(book.units(number, month) for month in horizon.term(offer, start))
        wanted = min(wanted, int(offer.max_chips / offer.unit_chips + 1e-9) - int(taken))
    if wanted > 0:
        book.values[book.model.signed[number, start]] += wanted


def _sign_losses(book: _Book) -> None:
    """Month by month, until the promised part of the peak is there without any one provider: the cheapest work that can
    begin by then, as late as it can."""
    horizon = book.horizon
    offers = [(n, o) for n, o in enumerate(horizon.spec.offers) if o.kind in COMMITTED]
    offers.sort(key=lambda item: _per_work(horizon, item[1]))
    for month in range(horizon.months):
        for lost in horizon.providers:
            for number, offer in offers:
                starts = [start for start in horizon.starts(offer) if month in horizon.term(offer, start)]
                lacking = _lacking(book, month, lost, offer)
                if offer.provider != lost and starts and lacking > 0:
                    _sign(book, number, max(starts), -int(-lacking // offer.unit_chips))


def _lacking(book: _Book, month: int, lost: str, offer: CapacityOffer) -> float:
    """Chips of an offer that the promise for the worst scenario lacks."""
    horizon = book.horizon
    worst = 0.0
    for service in horizon.spec.services:
        peaks = [horizon.load(service, told, month, horizon.peak) for told in horizon.spec.scenarios]
        factor = speed(service, offer.chip)
        if factor:
            lacking = max(peaks) * service.survives - book.work(service, month, lost)
            worst = max(worst, lacking / factor)
    return worst


def _per_work(horizon: Horizon, offer: CapacityOffer) -> float:
    """Dollars for an hour of speed 1; infinite where nobody can use it."""
    factor = _speed(horizon, offer)
    return float(offer.price_usd_per_chip_hour) / factor if factor else float("inf")


def _speed(horizon: Horizon, offer: CapacityOffer) -> float:
    speeds = [speed(service, offer.chip) for service in horizon.spec.services]
    speeds += [speed(run, offer.chip) for run in horizon.spec.runs]
    return max(speeds, default=0.0)


def _by_the_hour(horizon: Horizon) -> float:
    offers = horizon.by_kind("on_demand")
    return min((_per_work(horizon, o) for o in offers), default=0.0)


def _fill(book: _Book, place: tuple[int, int, int]) -> None:
    """Services first, on what is held, then by the hour; runs take what is left of what is held."""
    horizon, model = book.horizon, book.model
    scenario, month, block = place
    solution = Solution(model, book.values)
    left = {pool: solution.held(pool, month) for pool in horizon.pools}
    for which, service in enumerate(horizon.spec.services):
        load = horizon.load(service, horizon.spec.scenarios[scenario], month, block)
        load = _take(book, which, place, left, load)
        load = _buy(book, which, place, load)
        if (which, place) in model.short:
            book.values[model.short[which, place]] = load
    for which, run in enumerate(horizon.spec.runs, len(horizon.spec.services)):
        wanted = _left_of(book, which, scenario)
        hours = horizon.hours[month] * horizon.spec.load[block].share
        fastest = max((c.speed for c in run.chips), default=1.0)
        most = min(wanted / hours, run.max_chips * fastest if run.max_chips else wanted / hours)
        _take(book, which, place, left, most)


def _take(
    book: _Book,
    which: int,
    place: tuple[int, int, int],
    left: dict[tuple[str, str], float],
    load: float,
) -> float:
    demand, model = book.model.demands[which], book.model
    for index, pool in enumerate(book.horizon.pools):
        factor = speed(demand, pool[1])
        if factor and load > 0 and (index, which, place) in model.used:
            taken = min(left[pool], load / factor)
            if isinstance(demand, RunDemand) and demand.max_chips:
                taken = max(0.0, min(taken, demand.max_chips - _width(book, which, place)))
            left[pool] -= taken
            load -= taken * factor
            book.values[model.used[index, which, place]] += taken
    return max(0.0, load)


def _width(book: _Book, which: int, place: tuple[int, int, int]) -> float:
    keys = [(index, which, place) for index in range(len(book.horizon.pools))]
    return sum(book.values[book.model.used[key]] for key in keys if key in book.model.used)


def _buy(book: _Book, which: int, place: tuple[int, int, int], load: float) -> float:
    """Chips by the hour, the cheapest work first; returns what is not met."""
    horizon, model = book.horizon, book.model
    demand = model.demands[which]
    offers = [(n, o) for n, o in enumerate(horizon.spec.offers) if o.kind == "on_demand"]
    for number, offer in sorted(offers, key=lambda item: _per_work(horizon, item[1])):
        factor = speed(demand, offer.chip)
        index = horizon.pools.index((offer.provider, offer.chip))
        if not factor or load <= 0 or (index, which, place) not in model.used:
            continue
        variable = model.hourly[number, place]
        room = offer.max_chips - book.values[variable] if offer.max_chips else float("inf")
        taken = min(room, load / factor)
        if isinstance(demand, RunDemand) and demand.max_chips:
            taken = max(0.0, min(taken, demand.max_chips - _width(book, which, place)))
        book.values[variable] += taken
        book.values[model.used[index, which, place]] += taken
        load -= taken * factor
    return max(0.0, load)


def _left_of(book: _Book, which: int, scenario: int) -> float:
    """Work of a run that is not done yet."""
    horizon, model = book.horizon, book.model
    run = model.demands[which]
    assert isinstance(run, RunDemand)
    done = 0.0
    for (index, demand, place), variable in model.used.items():
        if demand == which and place[0] == scenario:
            hours = horizon.hours[place[1]] * horizon.spec.load[place[2]].share
            done += book.values[variable] * speed(run, horizon.pools[index][1]) * hours
    return max(0.0, horizon.work(run, horizon.spec.scenarios[scenario]) - done)


def _deadlines(book: _Book) -> None:
    """What of the runs is left is bought by the hour, evenly over the months that they have."""
    horizon, model = book.horizon, book.model
    spec = horizon.spec
    for which, run in enumerate(spec.runs, len(spec.services)):
        months = horizon.within(run.first, run.last)
        for scenario in range(len(spec.scenarios)):
            wanted = _left_of(book, which, scenario)
            for position, month in enumerate(months):
                hours = sum(horizon.hours[m] for m in months[position:])
                for block, part in enumerate(spec.load):
                    rate = wanted / hours if hours else 0.0
                    unmet = _buy(book, which, (scenario, month, block), rate)
                    wanted -= (rate - unmet) * horizon.hours[month] * part.share
                    hours -= horizon.hours[month] * part.share
            book.values[model.undone[which, scenario]] = max(0.0, wanted)


def _exposed(book: _Book) -> None:
    """What promises lack in the end."""
    horizon, model = book.horizon, book.model
    for (which, lost, scenario, month), variable in model.exposed.items():
        service = horizon.spec.services[which]
        load = horizon.load(service, horizon.spec.scenarios[scenario], month, horizon.peak)
        book.values[variable] = max(0.0, load * service.survives - book.work(service, month, lost))
