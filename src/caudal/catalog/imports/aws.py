"""AWS's price list for EC2 (bulk JSON, of one region or of all) → rows: by the hour, and reserved for 1 or 3 years.

The file has `products` (SKU → attributes), then `terms` (OnDemand and Reserved: SKU → term → price dimensions):
docs.aws.amazon.com, "Reading the service price list file", read 2026-11. Taken are Linux machines in shared tenancy with
nothing installed, and of reserved ones the standard class. What is paid up front is spread over the term. Read as a
stream: EC2's whole list is 8 GB. AWS says how many GPUs a machine has and not which: that is the catalogue's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any

from caudal.catalog.aws_types import BY_NAME
from caudal.catalog.chip_names import FAMILIES, chips_of
from caudal.catalog.imports.base import Imported, number, text_of
from caudal.catalog.imports.scan import Broken, JsonScan
from caudal.catalog.rows import CatalogRow, price
from caudal.domain.errors import UsageError
from caudal.domain.fleet import Market

SOURCE = "AWS Price List (AmazonEC2)"
_TAKEN = {"operatingSystem": "Linux", "tenancy": "Shared", "preInstalledSw": "NA", "capacitystatus": "Used"}
_TERM_MONTHS = {"1yr": 12, "3yr": 36}
_HOURS_A_MONTH = 730  # 8,760 hours a year, as AWS reckons


def read_aws(chunks: Iterable[bytes], *, everything: bool = False) -> Imported:
    """The rows of one file; of machines with chips, or of all with `everything`.

    Raises UsageError where it is no such file. One that breaks off gives what came before, and a problem.
    """
    found, scan = Imported(), JsonScan(text_of(chunks))
    try:
        _read(scan, found, everything)
    except Broken as error:
        if not found.rows:
            raise UsageError("this is no price list of AWS", why=str(error), remedy=_REMEDY) from error
        found.wrong(error.line, f"the file breaks off here: {error.text}")
        found.notes.append("the file is cut off or damaged: prices are missing; get it again")
    return found


_REMEDY = "get it from AWS's Price List bulk API: .../offers/v1.0/aws/AmazonEC2/current/us-east-1/index.json"


def _read(scan: JsonScan, found: Imported, everything: bool) -> None:
    machines: dict[str, CatalogRow] = {}
    said: dict[str, str] = {}
    seen = set()
    for key in scan.members():
        seen.add(key)
        if key in ("offerCode", "publicationDate"):
            said[key] = str(scan.value())
            if key == "offerCode" and said[key] != "AmazonEC2":
                raise UsageError(f"a price list of {said[key][:40]}, not of AmazonEC2", remedy=_REMEDY)
        elif key == "products":
            machines = dict(_products(scan, found, everything, said.get("publicationDate", "")[:10]))
        elif key == "terms":
            if "products" not in seen:
                raise UsageError(
                    "the prices come before the products",
                    why="whose price it is must be known first: the file is read once, and kept nowhere",
                    remedy=_REMEDY,
                )
            _terms(scan, machines, found)
        else:
            scan.skip()
    if not {"products", "terms"} <= seen:
        raise UsageError("no `products` and `terms`: this is no price list of AWS", remedy=_REMEDY)


def _products(
    scan: JsonScan, found: Imported, everything: bool, as_of: str
) -> Iterator[tuple[str, CatalogRow]]:
    """SKU → a row that has no price yet."""
    for sku in scan.members():
        product = scan.value()
        if not isinstance(product, dict) or not isinstance(product.get("attributes"), dict):
            found.wrong(scan.line, f"product {sku[:40]} has no attributes")
            continue
        told = product["attributes"]
        if not str(product.get("productFamily", "")).startswith("Compute Instance"):
            found.skipped["not a machine"] += 1
        elif any(str(told.get(name, value)) != value for name, value in _TAKEN.items()) or (
            told.get("marketoption", "OnDemand") != "OnDemand"
        ):
            found.skipped["another system, tenancy or market"] += 1
        else:
            try:
                row = _machine(told, as_of)
            except (KeyError, ValueError, TypeError) as error:
                found.wrong(scan.line, f"product {sku[:40]}: {_why(error)}")
                continue
            if row.chips or everything:
                yield sku, row
            else:
                found.skipped["without chips (see --all)"] += 1


def _machine(told: Mapping[str, Any], as_of: str) -> CatalogRow:
    name, region = str(told["instanceType"]), str(told.get("regionCode") or "")
    if not region and told.get("locationType", "AWS Region") == "AWS Region":
        raise KeyError("regionCode")
    chips, chip = _chips(name, told)
    memory = re.fullmatch(r"([0-9,.]+) GiB", str(told.get("memory", "")))
    network = re.fullmatch(r"(?:Up to )?([0-9.]+) Gigabit", str(told.get("networkPerformance", "")))
    return CatalogRow(
        provider="aws",
        machine_type=name,
        region=region,
        market=Market.ON_DEMAND,
        chips=chips,
        chip=chip,
        vcpus=number(str(told["vcpu"]), "vcpu") if told.get("vcpu") else None,
        memory_bytes=int(number(memory[1].replace(",", ""), "memory") * 2**30) if memory else None,
        network_gbit_s=number(network[1], "networkPerformance") if network else None,
        price_usd_per_hour=None,
        source=SOURCE,
        as_of=as_of,
    )


def _chips(name: str, told: Mapping[str, Any]) -> tuple[int, str]:
    if name in BY_NAME:
        return chips_of(BY_NAME[name].machine_type)
    count = number(str(told.get("gpu") or 0), "gpu")
    if count != int(count):
        return 0, ""  # a share of a GPU is no chip
    return int(count), FAMILIES.get(name.partition(".")[0], "") if count else ""


def _terms(scan: JsonScan, machines: Mapping[str, CatalogRow], found: Imported) -> None:
    for kind in scan.members():
        if kind not in ("OnDemand", "Reserved"):
            scan.skip()
            continue
        for sku in scan.members():
            terms = scan.value()
            row = machines.get(sku)
            if row is None:
                continue
            for term in terms.values() if isinstance(terms, dict) else [None]:
                try:
                    priced = _priced(row, term, kind)
                except (KeyError, ValueError, TypeError, AttributeError) as error:
                    found.wrong(scan.line, f"a price of {row.machine_type} in {row.region}: {_why(error)}")
                    continue
                if isinstance(priced, str):
                    found.skipped[priced] += 1
                else:
                    found.add(priced)


def _priced(row: CatalogRow, term: Any, kind: str) -> CatalogRow | str:
    """The row at the price of a term; why not, where there is nothing wrong with it but it is not taken."""
    said = term.get("termAttributes") or {}
    if kind == "Reserved" and said.get("OfferingClass", "standard") != "standard":
        return "reserved, and convertible"
    hourly, up_front = Decimal(0), Decimal(0)
    for dimension in term["priceDimensions"].values():
        amount = price_in_dollars(dimension["pricePerUnit"], dimension["unit"])
        if dimension["unit"] == "Hrs":
            hourly += price(amount)
        elif dimension["unit"] == "Quantity":
            up_front += amount
        else:
            raise ValueError(f"a price by {str(dimension['unit'])[:40]!r}")
    months = _TERM_MONTHS[said["LeaseContractLength"]] if kind == "Reserved" else 0
    if up_front and not months:
        raise ValueError("it is paid up front, and for no term")
    spread = up_front / (months * _HOURS_A_MONTH) if months else Decimal(0)
    total = hourly + spread
    if not total:
        return "at no price"
    return CatalogRow(
        row.provider, row.machine_type, row.region, Market.RESERVED if months else Market.ON_DEMAND, row.chips, row.chip,
        row.vcpus, row.memory_bytes, row.network_gbit_s, price(round(total, 6).normalize()), row.source, row.as_of, months,
        round(float(spread / total), 4),
    )  # fmt: skip


def price_in_dollars(prices: Mapping[str, Any], unit: object) -> Decimal:
    """The amount of a dimension. Raises ValueError where it is in no dollars."""
    if "USD" not in prices:
        raise ValueError(f"it is in {', '.join(map(str, prices))[:40] or 'nothing'}, not in US dollars")
    amount = Decimal(str(prices["USD"])) if re.fullmatch(r"[0-9]+(\.[0-9]+)?", str(prices["USD"])) else None
    if amount is None or amount > 10**9:
        raise ValueError(f"{str(prices['USD'])[:40]!r} is no price by {str(unit)[:20]}")
    return amount


def _why(error: Exception) -> str:
    return f"no {error.args[0]}" if isinstance(error, KeyError) else str(error)
