"""Which rows of the catalogue somebody asks for, and in which order. Pure: the day is given."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from caudal.catalog.chip_names import asked_for, meant
from caudal.catalog.rows import CatalogRow
from caudal.domain.errors import NotFound
from caudal.domain.fleet import Market

Order = Literal["price", "price-per-chip"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for; empty or 0 asks for nothing. `max_price` is of one machine and hour, or of one chip and hour
    where the order is by chip."""

    chips: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    markets: tuple[Market, ...] = ()
    min_chips: int = 0
    max_price: Decimal | None = None
    sort: Order = "price-per-chip"


def choose(rows: Sequence[CatalogRow], wanted: Wanted) -> list[CatalogRow]:
    """The rows that are asked for, the cheapest first and those without a price last.

    Raises NotFound for a chip, provider or region that no row has, with what may have been meant.
    """
    names = {row.chip for row in rows}
    chips: set[str] = set()
    for name in wanted.chips:
        found = asked_for(name, names)
        if not found:
            raise _unknown("chip", name, meant(name, names), names)
        chips |= found
    providers = {_known("provider", name, {row.provider for row in rows}) for name in wanted.providers}
    regions = {_known("region", name, {row.region for row in rows}) for name in wanted.regions}
    kept = [
        row
        for row in rows
        if (not chips or row.chip in chips)
        and (not providers or row.provider in providers)
        and (not regions or row.region in regions)
        and (not wanted.markets or row.market in wanted.markets)
        and row.chips >= wanted.min_chips
        and _affordable(row, wanted)
    ]
    return sorted(kept, key=lambda row: _order(row, wanted.sort))


def cost(row: CatalogRow, sort: Order) -> Decimal | None:
    """What the order looks at: dollars an hour of the machine, or of one of its chips."""
    return row.price_usd_per_hour if sort == "price" else row.price_usd_per_chip_hour


def _affordable(row: CatalogRow, wanted: Wanted) -> bool:
    if wanted.max_price is None:
        return True
    asked = cost(row, wanted.sort)
    return asked is not None and asked <= wanted.max_price


def _order(row: CatalogRow, sort: Order) -> tuple[bool, Decimal, str, str, str, str, int]:
    asked = cost(row, sort)
    return (
        asked is None, asked or Decimal(0), row.provider, row.machine_type, row.region, row.market, row.term_months,
    )  # fmt: skip


def _known(what: str, name: str, names: set[str]) -> str:
    found = next((known for known in names if known.lower() == name.strip().lower()), None)
    if not found:
        known = sorted(known for known in names if known)
        raise _unknown(what, name, difflib.get_close_matches(name.lower(), known, 3, 0.5), known)
    return found


def _unknown(what: str, name: str, close: list[str], names: Iterable[str]) -> NotFound:
    listed = sorted(known for known in names if known)
    remedy = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(listed[:40])}"
    return NotFound(f"no offer with {what} {name!r}", remedy=remedy)
