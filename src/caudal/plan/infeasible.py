"""Why a demand cannot be met: the rules that cannot hold together, none of which could be left out of the set; and the
smallest changes that make it feasible."""

from __future__ import annotations

from collections.abc import Collection
from copy import deepcopy
from dataclasses import replace

from caudal.domain.demand import COMMITTED, DemandSpec, RunDemand
from caudal.plan import months as calendar
from caudal.plan import solver
from caudal.plan.horizon import Horizon
from caudal.plan.model import Model, build
from caudal.plan.program import INFINITY, Program

FIXED_RULES = ("there are as many", "promise")
"""What no signature changes: rules that begin so are never named."""

MOST_MONTHS_LATER = 12
TIME_LIMIT_S = 20.0


def conflict(model: Model) -> tuple[str, ...]:
    """An irreducible set of rules, in words: take any one away and the rest can hold. Empty where all can."""
    program = _strict(model)
    groups = [i for i, name in enumerate(program.groups) if not name.startswith(FIXED_RULES)]
    dropped: set[int] = set()
    if _feasible(program, dropped):
        return ()
    for group in groups:
        if not _feasible(program, dropped | {group}):
            dropped.add(group)  # they cannot hold without it either
    return tuple(program.groups[group] for group in groups if group not in dropped)


def remedies(spec: DemandSpec, model: Model, late: Collection[str]) -> tuple[str, ...]:
    """The fewest chips more that make it feasible, offer by offer and run by run; and, for a run, how many months later
    its deadline would have to be with nothing else changed. `late` are the rules that are broken."""
    said = _more_chips(model)
    for run in spec.runs:
        if f"run {run.name} is done by {run.last}" in late:
            later = _months_later(spec, run)
            if later is not None:
                said.append(f"or move the deadline of run {run.name} from {run.last} to {later}")
    return tuple(said)


def _undone(model: Model, run: RunDemand) -> list[int]:
    return [v for (which, _), v in model.undone.items() if model.demands[which] is run]


def _strict(model: Model) -> Program:
    """The program in which nothing may be short."""
    program = deepcopy(model.program)
    for found in (model.short, model.undone, model.exposed, model.crowded):
        for variable in found.values():
            program.highs[variable] = 0.0
    return program


def _feasible(program: Program, dropped: set[int]) -> bool:
    trial = Program(
        costs=[0.0] * len(program.costs),
        lows=program.lows,
        highs=program.highs,
        row_lows=[
            -INFINITY if g in dropped else low
            for low, g in zip(program.row_lows, program.row_groups, strict=True)
        ],
        row_highs=[
            INFINITY if g in dropped else high
            for high, g in zip(program.row_highs, program.row_groups, strict=True)
        ],
        starts=program.starts,
        indices=program.indices,
        values=program.values,
    )
    return solver.solve(trial, relaxed=True, time_limit_s=TIME_LIMIT_S).status != "infeasible"


def _more_chips(model: Model) -> list[str]:
    """Each offer's largest and each run's widest may grow: the least sum of that."""
    horizon = model.horizon
    program = _strict(model)
    program.costs = [0.0] * len(program.costs)
    program.offset = 0.0
    grown: list[tuple[int, str, float]] = []
    for number, offer in enumerate(horizon.spec.offers):
        if offer.max_chips and (offer.kind in COMMITTED or offer.kind in ("on_demand", "spot")):
            more = program.add(1.0)
            grown.append((more, f"chips of offer {offer.name}", offer.max_chips))
            _grow_offer(model, program, number, more)
    for run in horizon.spec.runs:
        if run.max_chips:
            more = program.add(1.0)
            grown.append((more, f"chips that run {run.name} may be on", run.max_chips))
            _free(program, f"run {run.name} is on at most", more)
    solved = solver.solve(program, relaxed=True, time_limit_s=TIME_LIMIT_S)
    if not solved.values:
        return []
    return [
        f"{solved.values[more]:,.0f} more {what} (from {most:,.0f} to {most + solved.values[more]:,.0f})"
        for more, what, most in grown
        if solved.values[more] > 0.5
    ]


def _grow_offer(model: Model, program: Program, number: int, more: int) -> None:
    horizon = model.horizon
    offer = horizon.spec.offers[number]
    if offer.kind == "spot":
        _free(program, f"offer {offer.name} has at most", more)
        return
    if offer.kind == "on_demand":
        for (which, _), variable in model.hourly.items():
            if which == number:
                program.highs[variable] = INFINITY
                program.row("", -INFINITY, offer.max_chips, [variable, more], [1.0, -1.0])
        return
    _free(program, f"offer {offer.name} has at most", None)
    for month in range(horizon.months):
        found = []
        for (which, start), variable in model.signed.items():
            if which == number:
                program.highs[variable] = INFINITY
                if month in horizon.term(offer, start):
                    found.append(variable)
        if found:
            factors = [offer.unit_chips] * len(found) + [-1.0]
            program.row("", -INFINITY, offer.max_chips, [*found, more], factors)


def _free(program: Program, rule: str, more: int | None) -> None:
    """Rows of a rule may be over their bound by `more`; by anything, where that is None."""
    numbers = {i for i, name in enumerate(program.groups) if name.startswith(rule)}
    for row in [r for r, group in enumerate(program.row_groups) if group in numbers]:
        if more is not None:
            start, stop = program.starts[row], program.starts[row + 1]
            variables, factors = program.indices[start:stop], program.values[start:stop]
            program.row("", -INFINITY, program.row_highs[row], [*variables, more], [*factors, -1.0])
        program.row_highs[row] = INFINITY


def _months_later(spec: DemandSpec, run: RunDemand) -> str | None:
    """The first deadline by which the run can be done; None where there is none within a year and the plan."""
    last = calendar.number(run.last)
    end = calendar.number(spec.first) + spec.months - 1
    for month in range(last + 1, min(last + MOST_MONTHS_LATER, end) + 1):
        moved = replace(run, last=calendar.name(month))
        others = tuple(moved if one is run else one for one in spec.runs)
        model = build(Horizon(replace(spec, runs=others)))
        for variable in _undone(model, moved):
            model.program.highs[variable] = 0.0
        if solver.solve(model.program, relaxed=True, time_limit_s=TIME_LIMIT_S).status != "infeasible":
            return calendar.name(month)
    return None
