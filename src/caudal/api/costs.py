"""The bill: what was paid for what, and where each contract stands. Made from the store alone, so the command line
can show it while no control process runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from fastapi import APIRouter, Depends, Query

from caudal.api.context import Context, context
from caudal.domain.bill import Bill, Books, By, bill
from caudal.domain.errors import UsageError
from caudal.domain.fleet import FleetSpec
from caudal.domain.standing import RUN_RATE_DAYS, Standing, standing
from caudal.domain.term import DAY_S, moment, month_start
from caudal.ports import Store

router = APIRouter(tags=["cost"])
Ctx = Annotated[Context, Depends(context)]

MAX_DAYS = 3_660

FORECAST = (
    f"run rate: what was used a day in the last {RUN_RATE_DAYS} days (or since the start), for the days left"
)


@dataclass(frozen=True, slots=True)
class CostRow:
    """One group. Dollars are text with two decimals, so that no reader rounds them."""

    name: str
    usd: str


@dataclass(frozen=True, slots=True)
class CostLine:
    """One cell of the bill: what all groups are sums of."""

    day: str
    provider: str
    contract: str
    workload: str
    team: str
    usd: str


@dataclass(frozen=True, slots=True)
class ContractView:
    """Where a contract stands. Shares are of what is committed; None where nothing is, or it has not begun."""

    name: str
    kind: str
    provider: str
    start: str
    end: str
    state: str
    committed_usd: str
    prepayment_usd: str
    used_usd: str
    used_share: float | None
    run_rate_usd_per_day: str
    term_usd: str
    forecast_used_usd: str
    forecast_share: float | None
    forecast_unused_usd: str


@dataclass(frozen=True, slots=True)
class CostView:
    """The bill of since <= t < until, in seconds since 1970. `rows` add up to `total_usd`, by whatever they are;
    `contracts` are as of now, from the start of their terms, whatever the window is."""

    since: float
    until: float
    by: str
    total_usd: str
    rows: list[CostRow]
    contracts: list[ContractView]
    forecast: str = FORECAST
    lines: list[CostLine] = field(default_factory=list)
    shape: str = "cost/1"


@router.get("/cost")
def cost(
    ctx: Ctx,
    by: By = "contract",
    since: Annotated[float | None, Query(ge=0)] = None,
    until: Annotated[float | None, Query(ge=0)] = None,
    cells: bool = False,
) -> CostView:
    """The bill of a window (by default the calendar month, UTC, until now), grouped; with `cells` also each cell."""
    return cost_view(ctx.store, ctx.clock.now(), by, since, until, cells)


def cost_view(
    store: Store, now: float, by: By, since: float | None, until: float | None, cells: bool = False
) -> CostView:
    """As `cost`. Raises UsageError where the window is none, or too long."""
    end = min(now, until if until is not None else now)
    begin = since if since is not None else min(month_start(now), end)
    if begin > end:
        raise UsageError("the bill's end comes before its start", why="what is to come is on no bill")
    if end - begin > MAX_DAYS * DAY_S:
        raise UsageError(f"a bill is of {MAX_DAYS} days at most", remedy="give --since")
    fleet = store.read().fleet
    books = read_books(store, fleet, begin, now)
    made = bill(books, begin, end)
    signed = sorted(books.contracts, key=lambda c: (moment(c.start), c.name))
    return CostView(
        since=begin,
        until=end,
        by=by,
        total_usd=usd(made.total_cents),
        rows=[CostRow(name, usd(cents)) for name, cents in made.by(by).items()],
        contracts=[contract_view(standing(books, c, now)) for c in signed],
        lines=_lines(made) if cells else [],
    )


def read_books(store: Store, fleet: FleetSpec | None, since: float, until: float) -> Books:
    """All rows that a bill of that window, and the standing of the contracts, are made from."""
    contracts = fleet.contracts if fleet else ()
    first = min([since - since % DAY_S, *(moment(c.start) for c in contracts)])
    providers = {site.name: site.provider for site in (fleet.sites if fleet else ())}
    return Books(store.lease_history(first, until), store.gang_history(first, until), contracts, providers)


def usd(cents: int) -> str:
    """Cents as dollars."""
    return f"{cents // 100}.{cents % 100:02d}"


def contract_view(found: Standing) -> ContractView:
    """A standing with its money as text."""
    return ContractView(
        name=found.name,
        kind=found.kind,
        provider=found.provider,
        start=found.start,
        end=found.end,
        state=found.state,
        committed_usd=f"{found.committed_usd:.2f}",
        prepayment_usd=f"{found.prepayment_usd:.2f}",
        used_usd=f"{found.used_usd:.2f}",
        used_share=found.used_share,
        run_rate_usd_per_day=f"{found.run_rate_usd_per_day:.2f}",
        term_usd=f"{found.term_usd:.2f}",
        forecast_used_usd=f"{found.forecast_used_usd:.2f}",
        forecast_share=found.forecast_share,
        forecast_unused_usd=f"{found.forecast_unused_usd:.2f}",
    )


def _lines(made: Bill) -> list[CostLine]:
    rows = sorted(made.lines, key=lambda x: (x.cell.day, x.cell.provider, x.cell.contract, x.cell.workload))
    return [
        CostLine(c.day, c.provider, c.contract, c.workload, c.team, usd(x.cents))
        for x in rows
        for c in (x.cell,)
    ]
