"""Azure's Retail Prices (JSON pages of `Items`, each naming the next page) → rows: by the hour, spot, reserved.

learn.microsoft.com, "Azure Retail Prices REST API", read 2026-11: a reservation's `retailPrice` is for the whole term,
although its unit says one hour. Taken are virtual machines on Linux in US dollars. The list says nothing of what a machine
has: types that the catalogue does not know are left out and counted. A file may hold one page, a list of pages, or pages
one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from decimal import Decimal
from functools import cache
from typing import Any

from caudal.catalog.bundled import bundled_rows
from caudal.catalog.imports.base import Imported, text_of
from caudal.catalog.imports.scan import Broken, JsonScan
from caudal.catalog.rows import CatalogRow, price
from caudal.domain.errors import UsageError
from caudal.domain.fleet import Market

SOURCE = "Azure Retail Prices"
_TERM_MONTHS = {"1 Year": 12, "3 Years": 36, "5 Years": 60}
_HOURS_A_MONTH = 730  # 8,760 hours a year, as Azure reckons
_REMEDY = "get it from https://prices.azure.com/api/retail/prices with serviceName eq 'Virtual Machines'"


def read_azure(chunks: Iterable[bytes], as_of: str = "", *, everything: bool = False) -> Imported:
    """The rows of one file, as of a date that the list itself does not say.

    Raises UsageError where it holds no pages. One that breaks off gives what came before, and a problem.
    """
    found, scan = Imported(), JsonScan(text_of(chunks))
    try:
        pages = _read(scan, found, as_of, everything)
    except Broken as error:
        if not found.rows:
            raise UsageError("this is no page of Azure's prices", why=str(error), remedy=_REMEDY) from error
        found.wrong(error.line, f"the file breaks off here: {error.text}")
        found.notes.append("the file is cut off or damaged: prices are missing; get it again")
        pages = 1
    if not pages:
        raise UsageError("no `Items`: this is no page of Azure's prices", remedy=_REMEDY)
    found.cheapest()
    return found


def _read(scan: JsonScan, found: Imported, as_of: str, everything: bool) -> int:
    """The number of pages."""
    pages, last = 0, ""
    while first := scan.peek():
        if first == "[":
            for _ in scan.items():
                page = scan.value()
                if isinstance(page, dict) and isinstance(page.get("Items"), list):
                    pages += 1
                    last = str(page.get("NextPageLink") or "")
                    for item in page["Items"]:
                        _item(item, scan, found, as_of, everything)
                else:
                    found.wrong(scan.line, "no page with `Items`")
            continue
        for key in scan.members():
            if key == "Items" and scan.peek() == "[":
                pages += 1
                for _ in scan.items():
                    _item(scan.value(), scan, found, as_of, everything)
            elif key == "NextPageLink":
                last = str(scan.value() or "")
            else:
                scan.skip()
    if last:
        found.notes.append(f"another page follows the last one here: {last[:200]}")
    return pages


def _item(item: Any, scan: JsonScan, found: Imported, as_of: str, everything: bool) -> None:
    try:
        row = _row(item, as_of, everything)
    except KeyError as error:
        found.wrong(scan.line, f"no {error.args[0]}")
    except (ValueError, TypeError, AttributeError) as error:
        found.wrong(scan.line, str(error))
    else:
        if isinstance(row, str):
            found.skipped[row] += 1
        else:
            found.add(row)


def _row(item: Mapping[str, Any], as_of: str, everything: bool) -> CatalogRow | str:
    """A row, or why the item is none of ours."""
    meter = f"{item['meterName']} {item['skuName']}"
    product = str(item["productName"])
    if item["serviceName"] != "Virtual Machines" or not item.get("armSkuName"):
        return "not a machine"
    if "Windows" in product or "CloudServices" in product.replace(" ", ""):
        return "another system"
    if "Low Priority" in meter or "Dedicated" in product:
        return "another market"
    if item["type"] not in ("Consumption", "Reservation"):
        return "another market"
    if item["currencyCode"] != "USD":
        raise ValueError(f"{item['armSkuName']}: it is in {item['currencyCode']}, not in US dollars")
    if item["unitOfMeasure"] != "1 Hour":
        raise ValueError(f"{item['armSkuName']}: a price by {str(item['unitOfMeasure'])[:40]!r}")
    if Decimal(str(item.get("tierMinimumUnits") or 0)) > 0:
        return "a price for larger amounts only"
    machine = _known().get(str(item["armSkuName"]).lower())
    if machine is None:
        if not everything or str(item["armSkuName"]).startswith("Standard_N"):
            return "a type that the catalogue does not know"
        machine = _plain(str(item["armSkuName"]))
    elif not machine.chips and not everything:
        return "without chips (see --all)"
    months = _TERM_MONTHS[item["reservationTerm"]] if item["type"] == "Reservation" else 0
    amount = _amount(item["retailPrice"], months)
    if not amount:
        return "at no price"
    market = Market.RESERVED if months else Market.SPOT if "Spot" in meter else Market.ON_DEMAND
    if not item["armRegionName"]:
        raise KeyError("armRegionName")
    return replace(
        machine, region=str(item["armRegionName"]), market=market, price_usd_per_hour=amount, source=SOURCE,
        as_of=as_of, term_months=months, prepaid=None if months else 0.0,
    )  # fmt: skip


def _amount(said: object, months: int) -> Decimal:
    """Dollars an hour. A reservation may be paid at once or by the month, at the same price."""
    if isinstance(said, bool) or not isinstance(said, int | Decimal | float | str):
        raise ValueError(f"{str(said)[:40]!r} is no price")
    if not months:
        return price(said)
    whole = Decimal(str(said))
    if not whole.is_finite() or whole < 0:
        raise ValueError(f"{str(said)[:40]!r} is no price")
    return price(round(whole / (months * _HOURS_A_MONTH), 6).normalize())


@cache
def _known() -> Mapping[str, CatalogRow]:
    return {row.machine_type.lower(): row for row in reversed(bundled_rows()) if row.provider == "azure"}


def _plain(name: str) -> CatalogRow:
    return CatalogRow("azure", name, "", Market.ON_DEMAND, 0, "", None, None, None, None, "", "")
