"""One row of the catalogue: a machine type at a provider, in a region, as it is sold, at a price of a date.

One record for what is shipped and for what is imported, and the CSV in which both are kept. What no source says is
None, or empty: unknown is never a number. Reads no files, and knows no other format.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import Any

from caudal.domain.fleet import Market

OLD_DAYS = 90
"""A price that is older is shown as old."""

MOST_USD_PER_HOUR = Decimal(1_000_000)
"""No machine costs that much: a larger price is a mistake of units."""


Key = tuple[str, str, str, str, int, float | None]


@dataclass(frozen=True, slots=True)
class CatalogRow:
    """`region` is empty where the source names none. `chips` of type `chip` are in one machine (0: none); both have
    the names of the catalogue of chips. `vcpus`, `memory_bytes` and `network_gbit_s` (all interfaces together) are None
    where unknown, and so is the price, which is of one machine for one hour with what is prepaid spread over the term.

    `term_months`: how long is signed for (0: by the hour, or as long as is agreed). `prepaid`: the share that is paid
    at the start (None: unknown). `as_of` is the price's date (2026-09-19; empty: unknown), and `source` says who named it.
    """

    provider: str
    machine_type: str
    region: str
    market: Market
    chips: int
    chip: str
    vcpus: float | None
    memory_bytes: int | None
    network_gbit_s: float | None
    price_usd_per_hour: Decimal | None
    source: str
    as_of: str
    term_months: int = 0
    prepaid: float | None = 0.0

    @property
    def price_usd_per_chip_hour(self) -> Decimal | None:
        """Of one chip for one hour; None where there is none, or no price."""
        if self.price_usd_per_hour is None or not self.chips:
            return None
        return self.price_usd_per_hour / self.chips

    @property
    def key(self) -> Key:
        """What two rows have in common when they say the same thing at two dates."""
        return self.provider, self.machine_type, self.region, self.market, self.term_months, self.prepaid

    def old(self, today: date) -> bool:
        """Whether the price is older than OLD_DAYS, or nobody knows how old it is."""
        try:
            return (today - date.fromisoformat(self.as_of)).days > OLD_DAYS
        except ValueError:
            return True


COLUMNS = tuple(field.name for field in fields(CatalogRow))


def to_csv(rows: Iterable[CatalogRow]) -> str:
    """The rows as CSV, with a line of names first."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([_text(getattr(row, name)) for name in COLUMNS])
    return out.getvalue()


def from_csv(text: str) -> Iterator[CatalogRow]:
    """The rows of such a CSV. Raises ValueError where it is none, with the line."""
    reader = csv.DictReader(io.StringIO(text))
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise ValueError("line 1: these are not the catalogue's columns")
    for told in reader:
        try:
            yield _row(told)
        except (ValueError, InvalidOperation, TypeError, KeyError) as error:
            raise ValueError(f"line {reader.line_num}: {error}") from error


def newest(rows: Iterable[CatalogRow]) -> list[CatalogRow]:
    """Of rows that say the same thing the one of the latest date, and of these the last; in their first order. A row
    without a price never hides one with a price."""
    found: dict[Key, CatalogRow] = {}
    for row in rows:
        held = found.get(row.key)
        if held is None or _rank(row) >= _rank(held):
            found[row.key] = row
    return list(found.values())


def price(text: object) -> Decimal:
    """Dollars an hour. Raises ValueError where it is no number, or none that a price can be."""
    try:
        value = Decimal(str(text).strip())
    except InvalidOperation:
        raise ValueError(f"{str(text)[:40]!r} is no price") from None
    if not value.is_finite() or value < 0:
        raise ValueError(f"{str(text)[:40]!r} is no price")
    if value > MOST_USD_PER_HOUR:
        raise ValueError(f"${value:,.0f} an hour is more than any machine costs")
    return value


def _rank(row: CatalogRow) -> tuple[bool, str]:
    return row.price_usd_per_hour is not None, row.as_of


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Decimal):
        return f"{value:f}"
    return f"{value:g}" if isinstance(value, float) and value < 1e6 else str(value)


def _row(told: Mapping[str, str]) -> CatalogRow:
    return CatalogRow(
        provider=told["provider"],
        machine_type=told["machine_type"],
        region=told["region"],
        market=Market(told["market"]),
        chips=int(told["chips"]),
        chip=told["chip"],
        vcpus=float(told["vcpus"]) if told["vcpus"] else None,
        memory_bytes=int(told["memory_bytes"]) if told["memory_bytes"] else None,
        network_gbit_s=float(told["network_gbit_s"]) if told["network_gbit_s"] else None,
        price_usd_per_hour=price(told["price_usd_per_hour"]) if told["price_usd_per_hour"] else None,
        source=told["source"],
        as_of=told["as_of"],
        term_months=int(told["term_months"] or 0),
        prepaid=float(told["prepaid"]) if told["prepaid"] else None,
    )
