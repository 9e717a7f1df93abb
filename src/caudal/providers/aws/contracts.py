"""What the fleet's contracts with AWS give today: which reservation, and how many machines are left in it. Pure.

The smaller of two numbers counts: what EC2 says is free in the reservation, and what the contract itself still allows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from caudal.domain.fleet import Contract, Market, SiteSpec
from caudal.providers.aws.launch import OPEN
from caudal.providers.aws.rows import BLOCK

Row = Mapping[str, Any]

MARKETS = {"reserved": Market.RESERVED, "block": Market.BLOCK}
LINUX = "Linux/UNIX"


@dataclass(frozen=True, slots=True)
class Left:
    """What a contract gives at a site: `available` machines, and the zone and the placement group of the reservation
    that has most of them."""

    available: int
    zone: str = ""
    group: str = ""


def day(now: float) -> str:
    """The day in UTC, 2026-11-29."""
    return datetime.fromtimestamp(now, UTC).date().isoformat()


def holds(contract: Contract, today: str) -> bool:
    """Whether its term has begun and is not over."""
    return contract.start <= today < contract.end


def count_on(contract: Contract, today: str) -> int:
    """How many machines it has on that day, by its ramp where it has one."""
    if not contract.ramp:
        return contract.count
    begun = [step for step in contract.ramp if step.start <= today]
    return max(begun, key=lambda step: step.start).count if begun else 0


def left(contract: Contract, site: SiteSpec, reservations: Iterable[Row], held: int, today: str) -> Left:
    """What is left of it at a site, `held` of our machines drawing on it already, wherever they are."""
    usable = [row for row in reservations if _fits(row, contract, site)]
    free = sum(int(row.get("AvailableInstanceCount", 0)) for row in usable)
    allowed = count_on(contract, today) - held
    best = max(usable, key=lambda row: int(row.get("AvailableInstanceCount", 0)), default={})
    return Left(max(0, min(free, allowed)), str(best.get("AvailabilityZone") or ""), group_of(best))


def group_of(row: Row) -> str:
    """The placement group of a reservation; empty: in none."""
    return str(row.get("PlacementGroupArn") or "").rpartition("/")[2]


def at(contract: Contract, sites: Sequence[SiteSpec]) -> list[SiteSpec]:
    """Those of the sites where it holds."""
    return [site for site in sites if not contract.sites or site.name in contract.sites]


def _fits(row: Row, contract: Contract, site: SiteSpec) -> bool:
    if row.get("State") != "active" or row.get("InstanceType") != contract.machine_type:
        return False
    if site.zone and row.get("AvailabilityZone") != site.zone:
        return False
    if (row.get("ReservationType") == BLOCK) is not (contract.kind == "block"):
        return False
    if contract.reference == OPEN:
        return row.get("InstanceMatchCriteria") == OPEN and row.get("InstancePlatform", LINUX) == LINUX
    return row.get("CapacityReservationId") == contract.reference
