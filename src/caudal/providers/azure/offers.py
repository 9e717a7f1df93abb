"""What can be had: sizes by site and market, bounded by what Azure restricts, reserves and what was refused lately.

Pure: all rows are given. On demand and spot need a list price (catalog/azure_types.py); spot has no
price of its own here, since the SDK has none: it is offered at the list price, which it never exceeds
(`maxPrice: -1`). A contract brings its own price. Knows nothing of HTTP.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from caudal.catalog.azure_types import AZURE_TYPES, PRICES_AS_OF, PRICES_SOURCE, AzureType, azure_type
from caudal.domain.errors import CaudalError, NotOffered
from caudal.domain.fleet import Contract, Market, Offer, SiteSpec

Row = Mapping[str, Any]
SPOT_SOURCE = f"{PRICES_SOURCE}: spot costs at most this"


def offer_id(provider: str, site: str, size: str, market: Market, contract: str = "") -> str:
    """`azure-1/east/Standard_ND96isr_H100_v5/reserved/CONTRACT`."""
    return "/".join((provider, site, size, market.value, *([contract] if contract else [])))


def site_offers(
    provider: str, site: SiteSpec, skus: Sequence[Row], contracts: Iterable[Contract]
) -> list[Offer]:
    """A site's offers, committed ones first; `available` is still open."""
    markets = site.markets or ("reserved", "on_demand", "spot")
    offered = [kind for kind in wanted_types(site) if sellable(kind.name, site, skus)]
    offers: list[Offer] = []
    if "reserved" in markets:
        for contract in contracts:
            kind = azure_type(contract.machine_type)
            if kind is not None and kind in wanted_types(site) and _holds_at(contract, site):
                offers.append(_reserved(provider, site, kind, contract))
    for market, source in ((Market.ON_DEMAND, PRICES_SOURCE), (Market.SPOT, SPOT_SOURCE)):
        if market.value in markets:
            offers += [
                Offer(
                    id=offer_id(provider, site.name, kind.name, market),
                    site=site.name,
                    machine_type=kind.machine_type,
                    market=market,
                    price_usd_per_hour=kind.list_price_usd_per_hour,
                    source=source,
                    as_of=PRICES_AS_OF,
                )
                for kind in offered
                if kind.list_price_usd_per_hour is not None
            ]
    return offers


def wanted_types(site: SiteSpec) -> list[AzureType]:
    """The sizes that the site may take."""
    if not site.machine_types:
        return list(AZURE_TYPES)
    return [kind for name in site.machine_types if (kind := azure_type(name)) is not None]


def sellable(size: str, site: SiteSpec, skus: Sequence[Row]) -> bool:
    """Whether this subscription may have the size at the site's region and zone."""
    row = sku_of(size, skus)
    return row is not None and not _restricted(row, site)


def sku_of(size: str, skus: Sequence[Row]) -> Row | None:
    """The size's row in Azure's list."""
    return next((row for row in skus if str(row.get("name", "")).lower() == size.lower()), None)


def accelerated(row: Row | None) -> bool:
    """Whether the size's interface may use accelerated networking, as Azure's list says."""
    said = (row or {}).get("capabilities") or ()
    return any(c.get("name") == "AcceleratedNetworkingEnabled" and c.get("value") == "True" for c in said)


def _restricted(row: Row, site: SiteSpec) -> bool:
    for restriction in row.get("restrictions") or ():
        if restriction.get("type") == "Location":
            return True
        zones = (restriction.get("restrictionInfo") or {}).get("zones") or ()
        if restriction.get("type") == "Zone" and site.zone and site.zone in zones:
            return True
    places = [
        p for p in row.get("locationInfo") or () if str(p.get("location", "")).lower() == site.region.lower()
    ]
    zones_there = {zone for place in places for zone in place.get("zones") or ()}
    return bool(site.zone) and site.zone not in zones_there


def in_term(contract: Contract, now: float) -> bool:
    """Whether the contract holds today (UTC)."""
    today = datetime.fromtimestamp(now, UTC).date().isoformat()
    return contract.start <= today < contract.end


def count_now(contract: Contract, now: float) -> int:
    """How many machines the contract gives today: its count, or its ramp's last step."""
    today = datetime.fromtimestamp(now, UTC).date().isoformat()
    steps = [step.count for step in sorted(contract.ramp, key=lambda s: s.start) if step.start <= today]
    return steps[-1] if steps else (0 if contract.ramp else contract.count)


def left_in_group(rows: Iterable[Row], size: str, zone: str) -> int:
    """How many machines more a capacity reservation group holds of a size, by its instance views. Azure lets more in
    than are reserved, at the price of the day: that is for us to prevent."""
    left = 0
    for row in rows:
        sku = row.get("sku") or {}
        if str(sku.get("name", "")).lower() != size.lower() or zone not in (row.get("zones") or [zone]):
            continue
        inner = row.get("properties") or {}
        used = (inner.get("instanceView") or {}).get("utilizationInfo") or {}
        held = used.get("virtualMachinesAllocated") or ()
        tied = inner.get("virtualMachinesAssociated") or ()
        names = {str(one.get("id", "")).lower() for one in (*held, *tied)}
        left += max(0, int(used.get("currentCapacity", sku.get("capacity", 0))) - len(names))
    return left


def type_problems(site: SiteSpec, skus: Sequence[Row]) -> list[CaudalError]:
    """Sizes of the fleet file that cannot be had at the site, each with what may have been meant."""
    problems: list[CaudalError] = []
    where = f"site {site.name}"
    names = {str(row.get("name", "")).lower(): str(row["name"]) for row in skus}
    for name in site.machine_types:
        if azure_type(name) is None or name.lower() not in names:
            ours = {kind.name.lower(): kind.name for kind in AZURE_TYPES}
            near = difflib.get_close_matches(name.lower(), [n for n in ours if n in names], n=1, cutoff=0.6)
            hint = (
                f"did you mean {ours[near[0]]!r}?"
                if near
                else "`az vm list-skus` lists the sizes of a region"
            )
            problems.append(NotOffered(f"{site.region} has no size {name!r}", where=where, remedy=hint))
        elif not sellable(name, site, skus):
            text = f"this subscription may not have {name} in {site.region} {site.zone}".rstrip()
            remedy = "another region or zone, or a support request to Azure"
            problems.append(NotOffered(text, where=where, remedy=remedy))
    return problems


def _holds_at(contract: Contract, site: SiteSpec) -> bool:
    return not contract.sites or site.name in contract.sites


def _reserved(provider: str, site: SiteSpec, kind: AzureType, contract: Contract) -> Offer:
    return Offer(
        id=offer_id(provider, site.name, kind.name, Market.RESERVED, contract.name),
        site=site.name,
        machine_type=kind.machine_type,
        market=Market.RESERVED,
        price_usd_per_hour=contract.price_usd_per_hour,
        source=f"contract {contract.name}",
        as_of=contract.start,
        contract=contract.name,
    )
