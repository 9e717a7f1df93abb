"""A demand → a plan: builds the program, has it solved, and reads the solution; falls back to the greedy way where
HiGHS is not installed or finds nothing in its time."""

from __future__ import annotations

from dataclasses import replace

from caudal.domain.demand import DemandSpec
from caudal.plan import greedy, reading, solver
from caudal.plan.horizon import Horizon
from caudal.plan.infeasible import conflict, remedies
from caudal.plan.model import MILLION, Model, build
from caudal.plan.reading import Solution
from caudal.plan.result import MonthOfPlan, Plan

GAP = 0.0045
TIME_LIMIT_S = 55.0


def plan(
    spec: DemandSpec, *, gap: float = GAP, time_limit_s: float = TIME_LIMIT_S, method: str = "milp"
) -> Plan:
    """What to sign. `method` greedy does without a solver: quick, and nobody knows how far from the least cost."""
    horizon = Horizon(spec)
    if method == "greedy" or not solver.available():
        return greedy.plan(horizon)
    model = build(horizon)
    solved = solver.solve(model.program, gap=gap, time_limit_s=time_limit_s)
    if not solved.values:
        return greedy.plan(horizon)
    fixed = {variable: float(round(solved.values[variable])) for variable in model.program.whole}
    priced = solver.solve(model.program, fixed=fixed, time_limit_s=time_limit_s)
    values = priced.values or solved.values
    made = _read(Solution(model, values), solved.status, solved.gap)
    if priced.duals:
        made = replace(made, shadow_prices=reading.shadow_prices(model, priced.duals))
    if made.shortfalls:
        late = {one.rule for one in made.shortfalls}
        made = replace(made, conflict=conflict(model), remedies=remedies(spec, model, late))
    return made


def _read(solution: Solution, status: str, gap: float) -> Plan:
    model = solution.model
    horizon, spec = model.horizon, model.horizon.spec
    months = reading.months(solution)
    return Plan(
        name=spec.name,
        method="milp",
        status=status,
        gap=gap,
        usd_now=present_value(horizon, months),
        usd=sum(month.usd for month in months),
        signatures=reading.signatures(solution),
        months=months,
        pools=reading.pools(solution),
        losses=reading.losses(solution),
        break_even=reading.break_even(horizon),
        shortfalls=reading.shortfalls(solution),
        assumptions=assumptions(spec),
        scenario_usd=_by_scenario(solution),
    )


def present_value(horizon: Horizon, months: tuple[MonthOfPlan, ...]) -> float:
    """What the months' costs are worth today."""
    return sum(month.usd * worth for month, worth in zip(months, horizon.worth, strict=True))


def assumptions(spec: DemandSpec) -> tuple[str, ...]:
    """What the file says that it assumes, and every price without a source."""
    assumed = [f"the price of {o.name} is an assumption" for o in spec.offers if o.assumed]
    assumed += [f"what {h.name} gives and costs is an assumption" for h in spec.held if h.assumed]
    return (*spec.assumptions, *assumed)


def _by_scenario(solution: Solution) -> tuple[tuple[str, float], ...]:
    """The plain sum of dollars in each scenario: what is held costs the same in all."""
    model: Model = solution.model
    horizon, spec = model.horizon, model.horizon.spec
    months = reading.months(solution)
    fixed = sum(month.held_usd + month.promised_usd for month in months)
    hourly = [0.0] * len(spec.scenarios)

    def hours(place: tuple[int, int, int]) -> float:
        return horizon.hours[place[1]] * spec.load[place[2]].share

    def price(number: int) -> float:
        offer = spec.offers[number]
        return float(offer.price_usd_per_chip_hour + offer.egress_usd_per_chip_hour)

    for (number, place), variable in model.hourly.items():
        hourly[place[0]] += solution.values[variable] * price(number) * hours(place)
    for (number, _, place), variable in model.spot.items():
        hourly[place[0]] += solution.values[variable] * price(number) * hours(place)
    for (_, place), variable in model.covered.items():
        hourly[place[0]] -= solution.values[variable] * hours(place)
    for (number, _, scenario, _), variable in model.spent.items():
        hourly[scenario] -= solution.values[variable] * spec.offers[number].discount * MILLION
    return tuple((told.name, fixed + hourly[s]) for s, told in enumerate(spec.scenarios))
