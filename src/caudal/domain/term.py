"""What a contract gives and costs at a time: days as moments, ramps as steps, prices with the prepayment in them.

Days are in UTC. Amounts of money are exact (fractions) until somebody rounds them. Knows nothing of what is used.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from decimal import ROUND_FLOOR, Decimal
from fractions import Fraction

from caudal.domain.fleet import Contract, RampStep

DAY_S = 86_400.0
HOUR_S = 3_600

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")

PLACES = Decimal("0.0000000001")
"""Of a dollar: what a price is cut to. Down, so that what is used is never more than what was committed."""


def moment(day: str) -> float:
    """`2027-01-01` → the beginning of that day in UTC, in seconds since 1970. Raises ValueError."""
    if not _DAY.fullmatch(day):
        raise ValueError(f"{day[:40]!r} is not a day such as 2027-01-31")
    found = date.fromisoformat(day)
    return datetime(found.year, found.month, found.day, tzinfo=UTC).timestamp()


def day_of(at: float) -> str:
    """The day in UTC that a moment is in."""
    return datetime.fromtimestamp(at, UTC).date().isoformat()


def month_start(at: float) -> float:
    """When the calendar month (UTC) of a moment began."""
    found = datetime.fromtimestamp(at, UTC)
    return datetime(found.year, found.month, 1, tzinfo=UTC).timestamp()


def in_force(contract: Contract, at: float) -> bool:
    """Whether it may be used then."""
    return moment(contract.start) <= at < moment(contract.end)


def steps(contract: Contract) -> list[tuple[float, float, int]]:
    """From when to when it has how many machines. Before a ramp's first step it has none."""
    end = moment(contract.end)
    ramp = contract.ramp or (RampStep(contract.start, contract.count),)
    starts = [moment(step.start) for step in ramp]
    return [
        (begin, until, step.count)
        for begin, until, step in zip(starts, [*starts[1:], end], ramp, strict=True)
        if begin < until
    ]


def count_at(contract: Contract, at: float) -> int:
    """How many machines it has then; 0 outside its term."""
    return next((count for begin, until, count in steps(contract) if begin <= at < until), 0)


def machine_price(contract: Contract) -> Decimal:
    """Dollars for one machine and hour, the prepayment spread over all machine-hours of the term: what the lease
    of such a machine is opened at. For `savings` and `spend`, which are no machines, it is the contract's own."""
    exact = Fraction(contract.price_usd_per_hour) + _prepaid_per_unit(contract)
    return _cut(exact)


def committed_per_hour(contract: Contract, at: float) -> Fraction:
    """Dollars an hour that are owed then whether it is used or not. A `spend` is owed at its end, not by the
    hour."""
    if not in_force(contract, at) or contract.kind == "spend":
        return Fraction(0)
    units = 1 if contract.kind == "savings" else count_at(contract, at)
    return units * (Fraction(contract.price_usd_per_hour) + _prepaid_per_unit(contract))


def changes(contract: Contract) -> list[float]:
    """The moments at which what it gives or costs changes."""
    return sorted({moment(contract.start), moment(contract.end), *(begin for begin, _, _ in steps(contract))})


def _prepaid_per_unit(contract: Contract) -> Fraction:
    """The prepayment's share of one machine-hour, or of one hour where it is not for machines."""
    if not contract.prepayment_usd:
        return Fraction(0)
    if contract.kind in ("savings", "spend"):
        hours = Fraction(int(moment(contract.end) - moment(contract.start)), HOUR_S)
    else:
        hours = sum((Fraction(int(u - b) * n, HOUR_S) for b, u, n in steps(contract)), Fraction(0))
    return Fraction(contract.prepayment_usd) / hours if hours else Fraction(0)


def _cut(amount: Fraction) -> Decimal:
    units = (amount / Fraction(PLACES)).__floor__()
    price = (units * PLACES).quantize(PLACES, rounding=ROUND_FLOOR)
    whole = price.quantize(Decimal("0.01"))
    return whole if whole == price else price.normalize()
