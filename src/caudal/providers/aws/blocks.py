"""Capacity blocks: what is on sale, and the one function that buys.

A block is paid in full when it is bought, and cannot be given back. So nothing in the control loop calls this: a person
does, and says the price that was seen. It is bought only where EC2 still asks exactly that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from caudal.catalog.aws_types import lookup
from caudal.domain.errors import NotFound, NotOffered, Stale, UsageError
from caudal.providers.aws.clients import Clients
from caudal.providers.aws.launch import FLEET_TAG

LINUX = "Linux/UNIX"


@dataclass(frozen=True, slots=True)
class BlockOffering:
    """One block on sale: `count` machines from `start` to `end` (seconds since 1970), for `price_usd` in all."""

    id: str
    region: str
    zone: str
    machine_type: str
    count: int
    start: float
    end: float
    hours: int
    price_usd: Decimal

    @property
    def price_usd_per_machine_hour(self) -> Decimal:
        """What a machine costs for an hour, to the cent."""
        return (self.price_usd / (self.count * max(self.hours, 1))).quantize(Decimal("0.01"))


@dataclass(frozen=True, slots=True)
class Block:
    """A block that was bought. `reservation_id` is what a contract's `reference` names."""

    reservation_id: str
    offering: BlockOffering
    state: str


@dataclass(frozen=True, slots=True)
class BlockWish:
    """What is looked for: `count` machines for `hours` (a multiple of 24, as EC2 sells them)."""

    region: str
    machine_type: str
    count: int
    hours: int
    start: float | None = None
    end: float | None = None


def offerings(clients: Clients, wish: BlockWish) -> list[BlockOffering]:
    """What is on sale, the cheapest first. Raises NotOffered where the type is not sold in blocks, UsageError."""
    if not lookup(wish.machine_type).blocks:
        raise NotOffered(f"{wish.machine_type} is not sold in capacity blocks")
    if wish.count < 1 or wish.hours < 1:
        raise UsageError("a block has at least one machine and one hour")
    asked: dict[str, Any] = {
        "InstanceType": wish.machine_type,
        "InstanceCount": wish.count,
        "CapacityDurationHours": wish.hours,
    }
    if wish.start is not None:
        asked["StartDateRange"] = datetime.fromtimestamp(wish.start, UTC)
    if wish.end is not None:
        asked["EndDateRange"] = datetime.fromtimestamp(wish.end, UTC)
    pages = clients.pages(wish.region, "describe_capacity_block_offerings", **asked)
    found = [_offering(row, wish.region) for page in pages for row in page.get("CapacityBlockOfferings", ())]
    return sorted(found, key=lambda offering: (offering.price_usd, offering.start, offering.id))


def buy(
    clients: Clients, fleet: str, seen: Sequence[BlockOffering], offering_id: str, confirmed_usd: str
) -> Block:
    """Buy the offering out of those that EC2 lists now. `confirmed_usd` is the price that a person saw and agrees
    to. Raises NotFound where it is not on sale (any more), Stale where the price is another one, UsageError.

    Not repeated by itself where the answer is lost: EC2 takes no token here, and a second call would buy twice.
    """
    offering = next((one for one in seen if one.id == offering_id), None)
    if offering is None:
        raise NotFound(
            f"no block {offering_id!r} is on sale (any more)", remedy="`caudal blocks` lists what is"
        )
    if _usd(confirmed_usd) != offering.price_usd:
        raise Stale(
            f"block {offering_id} costs {offering.price_usd} USD, not {confirmed_usd}",
            why="a block is paid in full at once and cannot be given back",
            remedy=f"if that is fine: --price {offering.price_usd}",
        )
    row = clients.unrepeated().call(
        offering.region,
        "purchase_capacity_block",
        CapacityBlockOfferingId=offering.id,
        InstancePlatform=LINUX,
        TagSpecifications=[
            {"ResourceType": "capacity-reservation", "Tags": [{"Key": FLEET_TAG, "Value": fleet}]}
        ],
    )["CapacityReservation"]
    return Block(str(row["CapacityReservationId"]), offering, str(row.get("State", "")))


def _offering(row: dict[str, object], region: str) -> BlockOffering:
    start, end = row["StartDate"], row["EndDate"]
    assert isinstance(start, datetime) and isinstance(end, datetime)
    return BlockOffering(
        id=str(row["CapacityBlockOfferingId"]),
        region=region,
        zone=str(row.get("AvailabilityZone", "")),
        machine_type=str(row["InstanceType"]),
        count=int(str(row["InstanceCount"])),
        start=start.timestamp(),
        end=end.timestamp(),
        hours=int(str(row.get("CapacityBlockDurationHours", 0))),
        price_usd=Decimal(str(row["UpfrontFee"])),
    )


def _usd(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation as error:
        raise UsageError(f"{text!r} is not a price", remedy="write it as 123.45") from error
