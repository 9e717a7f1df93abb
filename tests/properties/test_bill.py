"""Safety: whatever ran where, all groupings of a bill and all its parts add up to the same cents."""

from __future__ import annotations

import itertools
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from caudal.domain.bill import Books, bill, exact
from caudal.domain.fleet import Contract, Lease, LeaseState, MachineType, Market, RampStep, Resources
from caudal.domain.gang import Gang
from caudal.domain.standing import standing
from caudal.domain.term import DAY_S, day_of, machine_price
from tests.support import rows

START = 1_800_000_000.0 - 1_800_000_000.0 % DAY_S
TIMES = st.integers(0, int(6 * DAY_S * 10)).map(lambda n: START + n / 10)
DAYS = st.integers(0, 6).map(lambda n: day_of(START + n * DAY_S))
PRICES = st.decimals("0", "120", places=4)


@st.composite
def contracts(draw: st.DrawFn, name: str) -> Contract:
    first, length = draw(st.integers(-3, 4)), draw(st.integers(1, 6))
    start, end = day_of(START + first * DAY_S), day_of(START + (first + length) * DAY_S)
    kind = draw(st.sampled_from(["reserved", "block", "savings", "spend", "own"]))
    middle = day_of(START + (first + length // 2) * DAY_S)
    ramp = () if middle == start or draw(st.booleans()) else (RampStep(start, 1), RampStep(middle, 3))
    return Contract(
        name,
        kind,
        draw(st.sampled_from(["a", "b"])),
        start,
        end,
        count=0 if ramp else draw(st.integers(0, 4)),
        ramp=ramp,
        price_usd_per_hour=draw(PRICES),
        commitment_usd=draw(PRICES) * 100 if kind == "spend" else Decimal(0),
        prepayment_usd=draw(PRICES) * 10,
    )


@st.composite
def leases(draw: st.DrawFn, number: int, known: list[Contract]) -> Lease:
    begin, end = sorted((draw(TIMES), draw(TIMES)))
    contract = draw(st.sampled_from([None, *known]))
    return rows.lease(
        f"lease-{number}",
        market=Market.ON_DEMAND,
        provider=draw(st.sampled_from(["a", "b"])),
        machine_type=MachineType("m", Resources(draw(st.floats(0.5, 8)), 8 << 30, draw(st.integers(0, 8)))),
        price_usd_per_hour=machine_price(contract) if contract else draw(PRICES),
        contract=contract.name if contract and contract.kind != "spend" else "",
        requested_at=begin,
        active_at=draw(st.sampled_from([None, begin, begin])),
        ended_at=None if draw(st.booleans()) else end,
        state=LeaseState.ACTIVE,
    )


@st.composite
def gangs(draw: st.DrawFn, number: int, held: list[Lease]) -> Gang:
    begin, end = sorted((draw(TIMES), draw(TIMES)))
    workload = draw(st.sampled_from(["", "run", "chat"]))
    return rows.gang(
        f"{workload or 'gateway'}.worker.{number}",
        workload=workload,
        team=draw(st.sampled_from(["", "red", "blue"])),
        lease_id=draw(st.sampled_from([x.id for x in held] or ["none"])),
        resources=Resources(draw(st.floats(0.01, 6)), draw(st.integers(0, 6 << 30)), draw(st.integers(0, 4))),
        created_at=begin,
        ended_at=None if draw(st.booleans()) else end,
    )


@st.composite
def books(draw: st.DrawFn) -> Books:
    signed = [draw(contracts(f"c{n}")) for n in range(draw(st.integers(0, 3)))]
    held = [draw(leases(n, signed)) for n in range(draw(st.integers(0, 4)))]
    return Books(held, [draw(gangs(n, held)) for n in range(draw(st.integers(0, 5)))], signed)


@settings(max_examples=200, deadline=None)
@given(books(), TIMES, TIMES, TIMES)
def test_every_grouping_and_every_cut_add_up_to_the_cent(
    given_books: Books, a: float, b: float, c: float
) -> None:
    since, cut, until = sorted((a, b, c))
    whole = bill(given_books, since, until)
    for key in ("contract", "workload", "team", "day", "provider"):
        assert sum(whole.by(key).values()) == whole.total_cents  # type: ignore[arg-type]
    assert all(line.cents > 0 for line in whole.lines)
    parts = bill(given_books, since, cut).total_cents + bill(given_books, cut, until).total_cents
    assert parts == whole.total_cents
    # and the cents are those of the exact sum, to half a cent for each day that is rounded
    days = [since]
    while days[-1] < until:
        days.append(min(until, days[-1] - days[-1] % DAY_S + DAY_S))
    sums = [sum(exact(given_books, x, y).values(), Fraction(0)) for x, y in itertools.pairwise(days)]
    assert abs(whole.total_cents - sum(sums, Fraction(0)) * 100) <= len(days)


@settings(max_examples=100, deadline=None)
@given(books())
def test_what_nobody_used_of_a_contract_is_what_is_left_of_it(given_books: Books) -> None:
    """Over its whole term, a contract costs what it commits to, or what was drawn where that is more."""
    for contract in given_books.contracts:
        if contract.kind == "spend":
            continue
        alone = Books([x for x in given_books.leases if x.contract == contract.name], (), [contract])
        after = START + 40 * DAY_S
        stands = standing(alone, contract, after)
        cost = bill(alone, START - 5 * DAY_S, START + 20 * DAY_S).by("contract").get(contract.name, 0)
        beyond = [replace(x, contract=contract.name) for x in alone.leases]
        if not beyond:
            assert abs(Decimal(cost) / 100 - stands.term_usd) <= Decimal("0.2")
        assert Decimal(cost) / 100 >= stands.term_usd - Decimal("0.2")


@settings(max_examples=50, deadline=None)
@given(books(), st.integers(2, 5))
def test_rows_that_come_twice_as_dear_today_change_nothing(given_books: Books, factor: int) -> None:
    """A bill is made of frozen prices: a contract that is dearer from today on leaves what was leased as it was."""
    dearer = [replace(c, price_usd_per_hour=c.price_usd_per_hour * factor) for c in given_books.contracts]
    before = bill(given_books, START, START + 3 * DAY_S)
    after = bill(replace(given_books, contracts=dearer), START, START + 3 * DAY_S)

    def used(lines: tuple[object, ...]) -> dict[object, int]:
        return {x.cell: x.cents for x in lines if x.cell.workload != "(unused)"}  # type: ignore[attr-defined]

    assert {
        k: abs(used(before.lines).get(k, 0) - n) <= 1 for k, n in used(after.lines).items()
    } == dict.fromkeys(used(after.lines), True)
