"""Where each contract stands: used against committed so far, and what it comes to at the end of its term.

The forecast is a run rate: what was used a day in the last `RUN_RATE_DAYS` days (or since the term began, if that
is shorter), for every day that is left. Nothing about the future is known beyond that.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from caudal.domain.bill import Books, drawn
from caudal.domain.fleet import Contract
from caudal.domain.term import DAY_S, HOUR_S, changes, committed_per_hour, moment

RUN_RATE_DAYS = 7


@dataclass(frozen=True, slots=True)
class Standing:
    """One contract. Money in dollars to the cent; `*_share` are of what is committed, None where that is nothing.

    `committed_usd` is what is owed so far (of a `spend` all of it), with the prepayment spread over the term;
    `prepayment_usd` of it was paid in cash at the start. `forecast_used_usd` and `term_usd` are at the end.
    """

    name: str
    kind: str
    provider: str
    start: str
    end: str
    state: str  # before, in force, ended
    committed_usd: Decimal
    prepayment_usd: Decimal
    used_usd: Decimal
    used_share: float | None
    run_rate_usd_per_day: Decimal
    term_usd: Decimal
    forecast_used_usd: Decimal
    forecast_share: float | None
    forecast_unused_usd: Decimal


def standing(books: Books, contract: Contract, now: float) -> Standing:
    """Where a contract stands now. The books have to reach back to the start of its term."""
    start, end = moment(contract.start), moment(contract.end)
    at = min(max(now, start), end)
    owed, term = committed(contract, at), committed(contract, end)
    if contract.kind == "spend":
        owed = term
    used = drawn(books, contract, at)
    since = max(start, at - RUN_RATE_DAYS * DAY_S)
    days = Fraction(round((at - since) * 1000), round(DAY_S * 1000))
    rate = drawn(books, contract, at, since) / days if days else Fraction(0)
    forecast = used + rate * Fraction(round((end - at) * 1000), round(DAY_S * 1000))
    return Standing(
        name=contract.name,
        kind=contract.kind,
        provider=contract.provider,
        start=contract.start,
        end=contract.end,
        state="before" if now < start else "ended" if now >= end else "in force",
        committed_usd=cents(owed),
        prepayment_usd=contract.prepayment_usd,
        used_usd=cents(used),
        used_share=_share(used, owed),
        run_rate_usd_per_day=cents(rate),
        term_usd=cents(term),
        forecast_used_usd=cents(forecast),
        forecast_share=_share(forecast, term),
        forecast_unused_usd=cents(max(Fraction(0), term - forecast)),
    )


def committed(contract: Contract, until: float) -> Fraction:
    """Dollars that a contract commits to from the start of its term until then."""
    if contract.kind == "spend":
        return Fraction(contract.commitment_usd)
    cuts = [t for t in changes(contract) if t < until] + [min(until, moment(contract.end))]
    total = Fraction(0)
    for left, right in itertools.pairwise(cuts):
        total += committed_per_hour(contract, left) * (round(right * 1000) - round(left * 1000))
    return total / (HOUR_S * 1000)


def cents(usd: Fraction) -> Decimal:
    """Dollars to the cent."""
    return (Decimal(round(usd * 100)) / 100).quantize(Decimal("0.01"))


def _share(part: Fraction, whole: Fraction) -> float | None:
    return float(part / whole) if whole else None
