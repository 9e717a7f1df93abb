"""What could be rented now, at the fleet's own sites: the offers that the loop saw at its last look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends

from caudal.api.context import Context, context
from caudal.control.in_sight import InSight, in_sight

router = APIRouter(tags=["fleet"])
Ctx = Annotated[Context, Depends(context)]


@dataclass(frozen=True, slots=True)
class OfferView:
    """One offer at a site. `price_usd_per_hour` is a decimal number of one machine, as its `contract` makes it (empty: paid
    by the hour), with its `source` and date. `available` is how many more can be had now (null: the provider does not
    say). `against` is the code of what stands against it now, `why` in words (both empty: it can be had), and `again_at`
    the time until which it is left alone after it failed (null: not for a time)."""

    id: str
    provider: str
    site: str
    region: str
    machine_type: str
    cpus: float
    memory_bytes: int
    accelerator: str
    accelerators: int
    market: str
    price_usd_per_hour: str
    source: str
    as_of: str
    available: int | None
    contract: str
    against: str
    why: str
    again_at: float | None


@dataclass(frozen=True, slots=True)
class OffersView:
    """All offers, in the order in which they would be taken. `at` is when they were seen (null: not yet); `silent` are
    sites whose provider did not answer then: nothing is known of their offers."""

    at: float | None
    items: list[OfferView]
    silent: list[str]
    shape: str = "offers/1"


@router.get("/offers")
def offers(ctx: Ctx) -> OffersView:
    """What could be rented now at the fleet's sites, and what stands against the rest. `caudal offers` lists the whole
    market instead."""
    snapshot = ctx.seen()
    if snapshot is None:
        return OffersView(None, [], [])
    found = [_view(one) for one in in_sight(snapshot, ctx.rules)]
    return OffersView(snapshot.at, found, sorted(snapshot.silent_providers))


def _view(found: InSight) -> OfferView:
    offer, kind = found.offer, found.offer.machine_type
    return OfferView(
        id=offer.id,
        provider=found.provider,
        site=offer.site,
        region=found.region,
        machine_type=kind.name,
        cpus=kind.resources.cpus,
        memory_bytes=kind.resources.memory_bytes,
        accelerator=kind.accelerator,
        accelerators=kind.resources.accelerators,
        market=offer.market.value,
        price_usd_per_hour=f"{offer.price_usd_per_hour:f}",
        source=offer.source,
        as_of=offer.as_of,
        available=offer.available,
        contract=offer.contract,
        against=found.against.code if found.against else "",
        why=found.against.text if found.against else "",
        again_at=found.again_at,
    )
