"""EC2's rows as our machines. Pure.

A machine that is ours bears the fleet's tag; every other is somebody else's and does not appear here at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from caudal.domain.fleet import Machine, MachineState, SiteSpec
from caudal.providers.aws.launch import CONTRACT_TAG, FLEET_TAG, LEASE_TAG, SITE_TAG

Row = Mapping[str, Any]

SPOT_NOTICE_S = (
    120.0  # between the notice and the end (EC2 user guide, "Spot Instance interruption notices", 2026-11)
)
BLOCK_EARLY_S = 1800.0  # EC2 begins to end a block's machines 30 minutes before its end (user guide, 2026-11)
MARKED = ("marked-for-termination", "marked-for-stop")
GONE = "terminated"
BLOCK = "capacity-block"
NOT_GONE = ["pending", "running", "shutting-down", "stopping", "stopped"]

STATES = {
    "pending": MachineState.PENDING,
    "running": MachineState.RUNNING,
    "shutting-down": MachineState.STOPPING,
    "stopping": MachineState.STOPPING,
    "stopped": MachineState.STOPPING,  # we never stop one; its disks bill until it is released
}


def instances(pages: Iterable[Row]) -> list[Row]:
    """The instances of DescribeInstances' pages."""
    return [
        row for page in pages for group in page.get("Reservations", ()) for row in group.get("Instances", ())
    ]


def tags(row: Row) -> dict[str, str]:
    """A row's tags."""
    return {str(tag["Key"]): str(tag["Value"]) for tag in row.get("Tags", ())}


def state(row: Row) -> str:
    """EC2's word for its state."""
    return str(row.get("State", {}).get("Name", ""))


def contract(row: Row) -> str:
    """The contract that it draws on; empty: none."""
    return tags(row).get(CONTRACT_TAG, "")


def machine(row: Row, sites: Sequence[SiteSpec], leaves_at: float | None) -> Machine:
    """One of our machines. Its site is what its tag says, also where the fleet no longer has that site."""
    found = tags(row)
    return Machine(
        id=str(row["InstanceId"]),
        site=found.get(SITE_TAG) or _site_by_place(row, sites),
        machine_type=str(row.get("InstanceType", "")),
        state=STATES.get(state(row), MachineState.STOPPING),
        lease_id=found.get(LEASE_TAG, ""),
        address=str(row.get("PrivateIpAddress") or ""),
        leaves_at=leaves_at,
    )


def ours(rows: Iterable[Row], fleet: str) -> list[Row]:
    """Those that bear the fleet's tag and are not gone, by id."""
    kept = [row for row in rows if tags(row).get(FLEET_TAG) == fleet and state(row) != GONE]
    return sorted(kept, key=lambda row: str(row["InstanceId"]))


def spot_ends(requests: Iterable[Row]) -> dict[str, float]:
    """By spot request's id: when the machine is taken back, for those that were told."""
    found = {}
    for row in requests:
        status = row.get("Status", {})
        told_at = status.get("UpdateTime")
        if status.get("Code") in MARKED and isinstance(told_at, datetime):
            found[str(row["SpotInstanceRequestId"])] = told_at.timestamp() + SPOT_NOTICE_S
    return found


def block_ends(reservations: Iterable[Row]) -> dict[str, float]:
    """By reservation's id: when a capacity block's machines are taken back."""
    return {
        str(row["CapacityReservationId"]): row["EndDate"].timestamp() - BLOCK_EARLY_S
        for row in reservations
        if row.get("ReservationType") == BLOCK and isinstance(row.get("EndDate"), datetime)
    }


def _site_by_place(row: Row, sites: Sequence[SiteSpec]) -> str:
    zone = str(row.get("Placement", {}).get("AvailabilityZone", ""))
    exact = next((site.name for site in sites if site.zone == zone), "")
    return exact or next((site.name for site in sites if zone and zone.startswith(site.region)), "")
