"""The rules for a fleet's contracts and budgets: terms that can be, and money that adds up. Knows no prices."""

from __future__ import annotations

from collections.abc import Iterable

from caudal.domain.bill import DEFAULT_TEAM
from caudal.domain.fleet import Contract, FleetSpec
from caudal.domain.term import moment
from caudal.spec.clouds import LOCAL, did_you_mean, distinct
from caudal.spec.located import Located, Problems

Path = list[str | int]

MACHINES = ("reserved", "block", "own")


def check_contracts(spec: FleetSpec, tree: Located, problems: Problems) -> None:
    """Each contract by itself, then against the others."""
    distinct("contract", [c.name for c in spec.contracts], tree, "contracts", problems)
    sound: list[tuple[int, Contract]] = []
    for number, contract in enumerate(spec.contracts):
        here: Path = ["contracts", number]
        _check_where(spec, contract, tree, here, problems)
        _check_money(contract, tree, here, problems)
        if _check_term(contract, tree, here, problems):
            sound.append((number, contract))
            _check_count(contract, tree, here, problems)
    for place, (number, contract) in enumerate(sound):
        for first, other in sound[:place]:
            if _overlap(spec, contract, other):
                what = f"reference {contract.reference}" if contract.reference else "machines or use"
                text = (
                    f"contract {contract.name} overlaps {other.name} ({tree.at(['contracts', first])}): the same "
                    f"{what} at the same time; join them, or give each its own `reference`"
                )
                problems.add(tree.at(["contracts", number]), text)


def check_budgets(spec: FleetSpec, tree: Located, problems: Problems) -> None:
    """One for each team."""
    teams = [b.team or DEFAULT_TEAM for b in spec.budgets]
    distinct("team", teams, tree, "budgets", problems)


def check_teams(spec: FleetSpec, tree: Located, teams: Iterable[str], problems: Problems) -> None:
    """A budget whose team no workload of these files has is not wrong (its workloads may come later), unless it looks
    like one that was misspelt."""
    known = {team or DEFAULT_TEAM for team in teams}
    for number, budget in enumerate(spec.budgets):
        near = did_you_mean(budget.team, known)
        if budget.team and budget.team not in known | {DEFAULT_TEAM} and near.startswith("did"):
            text = f"team: no workload of these files has team {budget.team!r}; {near}"
            problems.add(tree.at(["budgets", number, "team"]), text)


def _check_where(spec: FleetSpec, contract: Contract, tree: Located, here: Path, problems: Problems) -> None:
    providers = {p.name for p in spec.providers} | {LOCAL}
    if contract.provider not in providers:
        text = f"provider: the fleet has no provider {contract.provider!r}; {did_you_mean(contract.provider, providers)}"
        problems.add(tree.at([*here, "provider"]), text)
    sites = {s.name: s for s in spec.sites}
    for place, name in enumerate(contract.sites):
        where = tree.at([*here, "sites", place])
        if name not in sites:
            problems.add(where, f"sites: the fleet has no site {name!r}; {did_you_mean(name, sites)}")
        elif sites[name].provider != contract.provider:
            text = f"sites: {name} is of provider {sites[name].provider}, and the contract is with {contract.provider}"
            problems.add(where, text)


def _check_term(contract: Contract, tree: Located, here: Path, problems: Problems) -> bool:
    """Whether its days are days, in order."""
    days: dict[str, float] = {}
    for key, day in (("start", contract.start), ("end", contract.end)):
        try:
            days[key] = moment(day)
        except ValueError as error:
            problems.add(tree.at([*here, key]), f"{key}: {error}")
    if len(days) < 2:
        return False
    if days["end"] <= days["start"]:
        text = f"end: {contract.end} is not after the start, {contract.start} (`end` is the first day without it)"
        problems.add(tree.at([*here, "end"]), text)
        return False
    return _check_ramp(contract, days, tree, here, problems)


def _check_ramp(
    contract: Contract, days: dict[str, float], tree: Located, here: Path, problems: Problems
) -> bool:
    before = None
    good = True
    for place, step in enumerate(contract.ramp):
        where = tree.at([*here, "ramp", place, "start"])
        try:
            at = moment(step.start)
        except ValueError as error:
            problems.add(where, f"ramp: {error}")
            good = False
            continue
        if not days["start"] <= at < days["end"]:
            text = f"ramp: {step.start} is outside the term, {contract.start} until {contract.end}"
            problems.add(where, text)
            good = False
        if before is not None and at <= before:
            problems.add(where, f"ramp: {step.start} does not come after the step before it")
            good = False
        before = at
    return good


def _check_count(contract: Contract, tree: Located, here: Path, problems: Problems) -> None:
    where = tree.at(here)
    if contract.kind not in MACHINES:
        if contract.count or contract.ramp:
            key = "count" if contract.count else "ramp"
            problems.add(
                tree.at([*here, key]), f"{key}: `{contract.kind}` is money, not machines; leave it out"
            )
        return
    if bool(contract.count) == bool(contract.ramp):
        found = "both" if contract.count else "neither"
        text = f"contract {contract.name}: exactly one of `count` and `ramp` is needed, found {found}"
        problems.add(where, text)
    if not contract.machine_type and contract.kind != "own":
        problems.add(where, f"contract {contract.name}: `machine_type` is needed for `{contract.kind}`")


def _check_money(contract: Contract, tree: Located, here: Path, problems: Problems) -> None:
    where, kind = tree.at(here), contract.kind
    if kind == "savings":
        if not contract.discount:
            problems.add(
                where, f"contract {contract.name}: `savings` needs its `discount` off the list price"
            )
        if not contract.price_usd_per_hour:
            text = f"contract {contract.name}: `savings` needs `price_usd_per_hour`: the dollars an hour that are owed"
            problems.add(where, text)
    elif contract.discount:
        problems.add(tree.at([*here, "discount"]), f"discount: is for `savings`; this is `{kind}`")
    if kind == "spend" and not contract.commitment_usd:
        problems.add(where, f"contract {contract.name}: `spend` needs `commitment_usd`, over the whole term")
    elif kind != "spend" and contract.commitment_usd:
        problems.add(tree.at([*here, "commitment_usd"]), f"commitment_usd: is for `spend`; this is `{kind}`")
    if kind == "spend" and contract.price_usd_per_hour:
        text = "price_usd_per_hour: `spend` has none: what is used is paid at its own price"
        problems.add(tree.at([*here, "price_usd_per_hour"]), text)


def _overlap(spec: FleetSpec, one: Contract, other: Contract) -> bool:
    """Whether the same thing would be promised twice at some moment. Several `savings` add up and may overlap."""
    apart = moment(one.end) <= moment(other.start) or moment(other.end) <= moment(one.start)
    if apart or one.provider != other.provider:
        return False
    if one.reference or other.reference:
        return one.reference == other.reference
    if one.kind == "savings" or other.kind == "savings" or (one.kind == "spend") != (other.kind == "spend"):
        return False
    everywhere = tuple(s.name for s in spec.sites if s.provider == one.provider)
    same_place = set(one.sites or everywhere) & set(other.sites or everywhere)
    return bool(same_place) and (one.kind == "spend" or one.machine_type == other.machine_type)
