"""A demand as a mixed-integer program: whole units to sign, the same in all scenarios; and, scenario by scenario, how
the load lies on what is there. Costs are expected present values in millions of dollars.

The rules, each a group of rows (docs/explanation/planning.md has them in words): capacity, services served, runs done
by their deadline, runs' widest, providers that may be lost, providers' largest share, offers' largest, promises.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from caudal.domain.demand import COMMITTED, CapacityOffer, RunDemand, ServiceDemand
from caudal.plan.horizon import Horizon, Pool, speed, unit_cost
from caudal.plan.program import INFINITY, Program

MILLION = 1e6

Place = tuple[int, int, int]
"""(scenario, month, block)."""


@dataclass
class Model:
    """A program with the numbers of its variables, for who reads a solution."""

    horizon: Horizon
    program: Program = field(default_factory=Program)
    signed: dict[tuple[int, int], int] = field(default_factory=dict)  # (offer, start) → units
    hourly: dict[tuple[int, Place], int] = field(default_factory=dict)  # (offer, place) → chips by the hour
    used: dict[tuple[int, int, Place], int] = field(default_factory=dict)  # (pool, demand, place) → chips
    spot: dict[tuple[int, int, Place], int] = field(default_factory=dict)  # (offer, demand, place) → chips
    short: dict[tuple[int, Place], int] = field(default_factory=dict)  # (service, place) → chips not there
    undone: dict[tuple[int, int], int] = field(default_factory=dict)  # (run, scenario) → chip-hours not done
    exposed: dict[tuple[int, str, int, int], int] = field(
        default_factory=dict
    )  # (service, lost, scenario, month)
    crowded: dict[tuple[str, int], int] = field(
        default_factory=dict
    )  # (provider, month) → chips over its share
    covered: dict[tuple[int, Place], int] = field(
        default_factory=dict
    )  # (savings, place) → list dollars an hour
    spent: dict[tuple[int, int, int, int], int] = field(
        default_factory=dict
    )  # (spend, start, scenario, month)
    pool_rows: dict[tuple[int, Place], int] = field(default_factory=dict)
    loss_rows: dict[tuple[int, int, int], list[int]] = field(default_factory=dict)  # (pool, scenario, month)
    given: dict[tuple[Pool, int], tuple[list[int], list[float]]] = field(default_factory=dict)

    @property
    def demands(self) -> tuple[ServiceDemand | RunDemand, ...]:
        """Services, then runs."""
        return (*self.horizon.spec.services, *self.horizon.spec.runs)

    def places(self) -> list[Place]:
        """All scenarios, months and blocks."""
        spec = self.horizon.spec
        blocks = range(len(spec.load))
        return [(s, t, b) for s in range(len(spec.scenarios)) for t in range(spec.months) for b in blocks]

    def weight(self, place: Place) -> float:
        """Expected, discounted hours of a place, in millions: what makes dollars an hour into costs."""
        scenario, month, block = place
        spec, horizon = self.horizon.spec, self.horizon
        hours = horizon.hours[month] * spec.load[block].share
        return spec.scenarios[scenario].probability * hours * horizon.worth[month] / MILLION


def build(horizon: Horizon) -> Model:
    """The program of a demand."""
    model = Model(horizon)
    _sign(model)
    for place in model.places():
        _place(model, place)
    _deadlines(model)
    _losses(model)
    _shares(model)
    _most(model)
    _savings(model)
    _spend(model)
    return model


def _sign(model: Model) -> None:
    horizon, program = model.horizon, model.program
    for held in horizon.spec.held:
        price = float(held.price_usd_per_chip_hour) * held.chips
        for month in horizon.within(held.first, held.last):
            program.offset += price * horizon.hours[month] * horizon.worth[month] / MILLION
    for number, offer in enumerate(horizon.spec.offers):
        if offer.kind in COMMITTED:
            for start in horizon.starts(offer):
                cost = 0.0
                for month, due in unit_cost(horizon, offer, start).items():
                    worth = horizon.worth[month] * (1 - offer.prepaid) + horizon.worth[start] * offer.prepaid
                    cost += due * worth / MILLION
                most = offer.max_chips / offer.unit_chips if offer.max_chips else 1e7
                model.signed[number, start] = program.add(cost, float(int(most + 1e-9)), whole=True)


def committed(model: Model, pool: Pool, month: int) -> tuple[list[int], list[float]]:
    """The variables that give chips of a pool in a month, and how many each unit gives."""
    if (pool, month) in model.given:
        return list(model.given[pool, month][0]), list(model.given[pool, month][1])
    horizon = model.horizon
    variables: list[int] = []
    chips: list[float] = []
    for (number, start), variable in model.signed.items():
        offer = horizon.spec.offers[number]
        if (offer.provider, offer.chip) == pool and month in horizon.term(offer, start):
            variables.append(variable)
            chips.append(offer.unit_chips * horizon.share(offer, start, month))
    model.given[pool, month] = variables, chips
    return list(variables), list(chips)


def _place(model: Model, place: Place) -> None:
    """Chips by the hour, what uses what, and that services are served."""
    horizon, program = model.horizon, model.program
    spec = horizon.spec
    scenario, month, _ = place
    weight = model.weight(place)
    for number, offer in enumerate(spec.offers):
        if offer.kind == "on_demand":
            cost = float(offer.price_usd_per_chip_hour + offer.egress_usd_per_chip_hour) * weight
            model.hourly[number, place] = program.add(cost, offer.max_chips or INFINITY)
    for index, pool in enumerate(horizon.pools):
        variables, factors = committed(model, pool, month)
        factors = [-chips for chips in factors]
        for number, offer in enumerate(spec.offers):
            if offer.kind == "on_demand" and (offer.provider, offer.chip) == pool:
                variables.append(model.hourly[number, place])
                factors.append(-1.0)
        for which, demand in enumerate(model.demands):
            if speed(demand, pool[1]) and _wanted(model, demand, place):
                model.used[index, which, place] = program.add(0.0)
                variables.append(model.used[index, which, place])
                factors.append(1.0)
        group = f"there are as many {pool[1]} at {pool[0]} as are held or can be had"
        held = horizon.held(pool, month)
        model.pool_rows[index, place] = program.row(group, -INFINITY, held, variables, factors)
    _runs_at(model, place, weight)
    for which, service in enumerate(spec.services):
        load = horizon.load(service, spec.scenarios[scenario], month, place[2])
        if load > 0:
            short = program.add(float(spec.shortfall_usd_per_chip_hour) * weight)
            model.short[which, place] = short
            variables, factors = _work(model, which, place)
            group = f"service {service.name} is served"
            program.row(group, load, INFINITY, [*variables, short], [*factors, 1.0])


def _wanted(model: Model, demand: ServiceDemand | RunDemand, place: Place) -> bool:
    return place[1] in model.horizon.within(demand.first, demand.last)


def _work(model: Model, which: int, place: Place) -> tuple[list[int], list[float]]:
    """What a demand gets at a place, in its own unit."""
    demand = model.demands[which]
    variables, factors = [], []
    for index, pool in enumerate(model.horizon.pools):
        if (index, which, place) in model.used:
            variables.append(model.used[index, which, place])
            factors.append(speed(demand, pool[1]))
    for number, offer in enumerate(model.horizon.spec.offers):
        if (number, which, place) in model.spot:
            variables.append(model.spot[number, which, place])
            factors.append(speed(demand, offer.chip) * (1.0 - offer.interrupted))
    return variables, factors


def _runs_at(model: Model, place: Place, weight: float) -> None:
    """Spot for runs that bear it, and how wide a run may be."""
    spec, program = model.horizon.spec, model.program
    first = len(spec.services)
    for number, offer in enumerate(spec.offers):
        if offer.kind != "spot":
            continue
        cost = float(offer.price_usd_per_chip_hour + offer.egress_usd_per_chip_hour) * weight
        taken = []
        for which, run in enumerate(spec.runs, first):
            if run.interruptible and speed(run, offer.chip) and _wanted(model, run, place):
                model.spot[number, which, place] = program.add(cost)
                taken.append(model.spot[number, which, place])
        if offer.max_chips and taken:
            group = f"offer {offer.name} has at most {offer.max_chips:,.0f} chips"
            program.row(group, -INFINITY, offer.max_chips, taken, [1.0] * len(taken))
    for which, run in enumerate(spec.runs, first):
        variables, _ = _work(model, which, place)
        if run.max_chips and variables:
            group = f"run {run.name} is on at most {run.max_chips:,.0f} chips"
            program.row(group, -INFINITY, run.max_chips, variables, [1.0] * len(variables))


def _deadlines(model: Model) -> None:
    horizon, program = model.horizon, model.program
    spec = horizon.spec
    for which, run in enumerate(spec.runs, len(spec.services)):
        for scenario, told in enumerate(spec.scenarios):
            undone = program.add(float(spec.shortfall_usd_per_chip_hour) * told.probability / MILLION)
            model.undone[which, scenario] = undone
            variables, factors = [undone], [1.0]
            for month in horizon.within(run.first, run.last):
                for block, part in enumerate(spec.load):
                    found, speeds = _work(model, which, (scenario, month, block))
                    hours = horizon.hours[month] * part.share
                    variables += found
                    factors += [hours * one for one in speeds]
            group = f"run {run.name} is done by {run.last}"
            program.row(group, horizon.work(run, told), INFINITY, variables, factors)


def _losses(model: Model) -> None:
    """At the peak of whichever scenario has the most load, what is held at the other providers serves what is promised,
    and so it does in all scenarios. What could be had by the hour does not count: when a provider goes, everybody wants
    that elsewhere."""
    horizon = model.horizon
    promised = [
        (which, service) for which, service in enumerate(horizon.spec.services) if service.survives > 0
    ]
    for month in range(horizon.months):
        scenario = horizon.busiest(month)
        for lost in horizon.providers if promised else ():
            _loss(model, promised, lost, (scenario, month, horizon.peak))


def _loss(model: Model, promised: list[tuple[int, ServiceDemand]], lost: str, place: Place) -> None:
    horizon, program = model.horizon, model.program
    scenario, month, peak = place
    spared: dict[int, list[int]] = {}
    for which, service in promised:
        told = horizon.spec.scenarios[scenario]
        load = horizon.load(service, told, month, peak) * service.survives
        if load <= 0:
            continue
        short = program.add(broken_promise(model, month))
        model.exposed[which, lost, scenario, month] = short
        variables, factors = [short], [1.0]
        for index, (provider, chip) in enumerate(horizon.pools):
            if provider != lost and speed(service, chip):
                variables.append(program.add(0.0))
                factors.append(speed(service, chip))
                spared.setdefault(index, []).append(variables[-1])
        group = f"service {service.name} survives the loss of any one provider"
        program.row(group, load, INFINITY, variables, factors)
    for index, taken in spared.items():
        _spare(model, index, place, taken)


def broken_promise(model: Model, month: int) -> float:
    """The price of one chip that a promise lacks in a month, in any scenario, however unlikely: less than that of work
    which is not done, and more than that of any chip."""
    horizon = model.horizon
    price = float(horizon.spec.shortfall_usd_per_chip_hour) / 5.0
    return price * horizon.hours[month] * horizon.worth[month] / MILLION


def _spare(model: Model, index: int, place: Place, taken: list[int]) -> None:
    horizon = model.horizon
    scenario, month, _ = place
    pool = horizon.pools[index]
    variables, factors = committed(model, pool, month)
    factors = [-chips for chips in factors] + [1.0] * len(taken)
    variables = [*variables, *taken]
    group = f"there are as many {pool[1]} at {pool[0]} as are held or can be had"
    row = model.program.row(group, -INFINITY, horizon.held(pool, month), variables, factors)
    model.loss_rows.setdefault((index, scenario, month), []).append(row)


def _shares(model: Model) -> None:
    """No provider has more than its share of what is held."""
    horizon, most = model.horizon, model.horizon.spec.max_provider_share
    if most >= 1.0:
        return
    for month in range(horizon.months):
        for provider in sorted({p for p, _ in horizon.pools}):
            variables, factors, held = [], [], 0.0
            for pool in horizon.pools:
                part = (1.0 if pool[0] == provider else 0.0) - most
                found, chips = committed(model, pool, month)
                variables += found
                factors += [part * one for one in chips]
                held += part * horizon.held(pool, month)
            over = model.program.add(broken_promise(model, month))
            model.crowded[provider, month] = over
            group = f"no provider has over {most:.0%} of what is held"
            model.program.row(group, -INFINITY, -held, [*variables, over], [*factors, -1.0])


def _most(model: Model) -> None:
    """Of an offer no more is held at one time than it has."""
    horizon = model.horizon
    for number, offer in enumerate(horizon.spec.offers):
        if offer.kind not in COMMITTED or not offer.max_chips:
            continue
        for month in range(horizon.months):
            found = [
                variable
                for (which, start), variable in model.signed.items()
                if which == number and month in horizon.term(offer, start)
            ]
            if len(found) > 1:
                group = f"offer {offer.name} has at most {offer.max_chips:,.0f} chips"
                most = offer.max_chips / offer.unit_chips
                model.program.row(group, -INFINITY, most, found, [1.0] * len(found))


def _list_price(model: Model, provider: str, place: Place) -> tuple[list[int], list[float]]:
    """What is used by the hour at a provider, at list, in dollars an hour."""
    variables, prices = [], []
    for number, offer in enumerate(model.horizon.spec.offers):
        if offer.kind == "on_demand" and offer.provider == provider:
            variables.append(model.hourly[number, place])
            prices.append(float(offer.price_usd_per_chip_hour))
    return variables, prices


def _units(offer: CapacityOffer) -> float:
    return float(offer.max_units)


def _savings(model: Model) -> None:
    """Dollars an hour, owed whether used or not, which pay for more than that at list."""
    horizon, program = model.horizon, model.program
    offers = [(n, o) for n, o in enumerate(horizon.spec.offers) if o.kind == "savings"]
    for number, offer in offers:
        for start in horizon.starts(offer):
            due = [horizon.hours[t] * horizon.worth[t] for t in horizon.term(offer, start)]
            cost = float(offer.unit_usd) * sum(due) / MILLION
            model.signed[number, start] = program.add(cost, _units(offer), whole=True)
    for place in model.places() if offers else ():
        weight = model.weight(place)
        by_provider: dict[str, list[int]] = {}
        for number, offer in offers:
            covered = model.covered[number, place] = program.add(-weight)
            by_provider.setdefault(offer.provider, []).append(covered)
            variables, factors = [covered], [1.0 - offer.discount]
            for (which, start), variable in model.signed.items():
                if which == number and place[1] in horizon.term(offer, start):
                    variables.append(variable)
                    factors.append(-float(offer.unit_usd))
            program.row(f"promise {offer.name} pays up to its commitment", -INFINITY, 0.0, variables, factors)
        for provider, found in by_provider.items():
            variables, prices = _list_price(model, provider, place)
            factors = [1.0] * len(found) + [-price for price in prices]
            group = f"promises at {provider} pay for what is used"
            program.row(group, -INFINITY, 0.0, [*found, *variables], factors)


def _spend(model: Model) -> None:
    """A sum over a term, owed whether used or not; what is used up to it costs less."""
    horizon, program = model.horizon, model.program
    by_month: dict[tuple[str, int, int], list[int]] = {}
    for number, offer in enumerate(horizon.spec.offers):
        if offer.kind != "spend":
            continue
        for start in horizon.starts(offer):
            term = horizon.term(offer, start)
            inside = float(offer.unit_usd) * len(term) / offer.term_months / MILLION
            units = model.signed[number, start] = program.add(0.0, _units(offer), whole=True)
            for scenario, told in enumerate(horizon.spec.scenarios):
                worth = horizon.worth[term[-1]] * told.probability
                owed = program.add(worth)  # what of the sum is not used up, in millions
                used = []
                for month in term:
                    saved = offer.discount * told.probability * horizon.worth[month]
                    spent = model.spent[number, start, scenario, month] = program.add(-saved)
                    used.append(spent)
                    by_month.setdefault((offer.provider, scenario, month), []).append(spent)
                group = f"promise {offer.name} is spent or owed"
                factors = [1.0 - offer.discount] * len(used)
                program.row(group, 0.0, 0.0, [*used, owed, units], [*factors, 1.0, -inside])
    for (provider, scenario, month), found in by_month.items():
        variables, factors = list(found), [1.0] * len(found)
        for block, part in enumerate(horizon.spec.load):
            place = (scenario, month, block)
            listed, prices = _list_price(model, provider, place)
            hours = horizon.hours[month] * part.share / MILLION
            variables += listed
            factors += [-price * hours for price in prices]
            for number, offer in enumerate(horizon.spec.offers):
                if offer.kind == "savings" and offer.provider == provider:
                    variables.append(model.covered[number, place])
                    factors.append(hours)
        program.row(f"promises at {provider} pay for what is used", -INFINITY, 0.0, variables, factors)
