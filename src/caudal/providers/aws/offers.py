"""What can be had now at each site, as offers. Pure: told the spot prices, the reservations and what is held.

Committed capacity comes first, since it is paid for in any case. A type without a known list price is not offered on
demand; one without a spot price in its zone is not offered as spot. How much AWS has free is known to nobody, so
`available` is None unless a contract, a bound or a refusal says more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from caudal.catalog.aws_types import PRICE_REGION, AwsType, known_types, lookup
from caudal.domain.fleet import Contract, Market, Offer, SiteSpec
from caudal.providers.aws import contracts as terms

Row = Mapping[str, Any]

COMMITTED = (Market.RESERVED, Market.BLOCK)


@dataclass(frozen=True, slots=True)
class SpotPrice:
    """The newest price of a type in a zone, in dollars an hour, and the day it is from."""

    price_usd_per_hour: Decimal
    as_of: str


@dataclass(frozen=True, slots=True)
class Region:
    """What EC2 said of one region. `zones` are those of each type that is offered there; `spot` is by type and
    zone."""

    zones: Mapping[str, frozenset[str]]
    spot: Mapping[tuple[str, str], SpotPrice] = field(default_factory=dict)
    reservations: Sequence[Row] = ()


@dataclass(frozen=True, slots=True)
class Fleet:
    """What the offers are made for. `held` is the number of our machines by contract; `room`: how many more the
    provider may have in all, None: no bound; `refused` says whether an offer was refused lately."""

    provider: str
    contracts: Sequence[Contract]
    held: Mapping[str, int]
    today: str
    room: int | None
    refused: Callable[[str], bool]


def offers_of(site: SiteSpec, region: Region, fleet: Fleet) -> list[Offer]:
    """All offers of a site, what is committed first. Raises NotOffered where the site names an unknown type."""
    found = [*_committed(site, region, fleet), *_bought(site, region, fleet)]
    wanted = [o for o in found if not site.markets or o.market.value in site.markets]
    return [replace(o, available=_available(o, fleet)) for o in wanted]


def offer_id(provider: str, site: str, machine_type: str, market: Market, contract: str = "") -> str:
    """The same for as long as the fleet file says the same."""
    return "/".join(part for part in (provider, site, machine_type, market.value, contract) if part)


def newest_spot(history: Sequence[Row]) -> dict[tuple[str, str], SpotPrice]:
    """By type and zone, from DescribeSpotPriceHistory."""
    found: dict[tuple[str, str], SpotPrice] = {}
    for row in sorted(history, key=lambda row: row["Timestamp"]):
        key = (str(row["InstanceType"]), str(row["AvailabilityZone"]))
        found[key] = SpotPrice(Decimal(str(row["SpotPrice"])), row["Timestamp"].date().isoformat())
    return found


def _committed(site: SiteSpec, region: Region, fleet: Fleet) -> Iterator[Offer]:
    for contract in fleet.contracts:
        market = terms.MARKETS.get(contract.kind)
        if market is None or not terms.at(contract, [site]) or not terms.holds(contract, fleet.today):
            continue
        if site.machine_types and contract.machine_type not in site.machine_types:
            continue
        given = terms.left(contract, site, region.reservations, fleet.held.get(contract.name, 0), fleet.today)
        yield Offer(
            id=offer_id(fleet.provider, site.name, contract.machine_type, market, contract.name),
            site=site.name,
            machine_type=lookup(contract.machine_type).machine_type,
            market=market,
            price_usd_per_hour=contract.price_usd_per_hour,
            source=f"contract {contract.name}",
            as_of=contract.start,
            available=given.available,
            contract=contract.name,
        )


def _bought(site: SiteSpec, region: Region, fleet: Fleet) -> Iterator[Offer]:
    """By the hour: spot where it has a price, then on demand."""
    for kind in known_types(site.machine_types):
        zones = region.zones.get(kind.name, frozenset())
        if not zones or (site.zone and site.zone not in zones):
            continue
        spot = _spot(site, kind, region)
        if spot is not None:
            source = f"spot price of {site.zone or site.region}, asked of EC2"
            yield _hourly(site, kind, fleet, Market.SPOT, spot.price_usd_per_hour, source, spot.as_of)
        if kind.price_usd_per_hour is not None:
            source = kind.source
            if site.region != PRICE_REGION:
                source += f"; the price of {site.region} is not known here and may differ"
            yield _hourly(site, kind, fleet, Market.ON_DEMAND, kind.price_usd_per_hour, source, kind.as_of)


def _hourly(
    site: SiteSpec, kind: AwsType, fleet: Fleet, market: Market, price: Decimal, source: str, as_of: str
) -> Offer:
    return Offer(
        id=offer_id(fleet.provider, site.name, kind.name, market),
        site=site.name,
        machine_type=kind.machine_type,
        market=market,
        price_usd_per_hour=price,
        source=source,
        as_of=as_of,
    )


def _spot(site: SiteSpec, kind: AwsType, region: Region) -> SpotPrice | None:
    """Of its zone; of a site without one the dearest, since EC2 chooses where."""
    prices = [
        price
        for (name, zone), price in region.spot.items()
        if name == kind.name and (not site.zone or zone == site.zone)
    ]
    return max(prices, key=lambda price: price.price_usd_per_hour, default=None)


def _available(offer: Offer, fleet: Fleet) -> int | None:
    bounds = [bound for bound in (offer.available, fleet.room) if bound is not None]
    if fleet.refused(offer.id):
        bounds.append(0)
    return min(bounds) if bounds else None
