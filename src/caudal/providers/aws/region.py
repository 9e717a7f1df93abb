"""What is asked of one region of EC2: its list of machines, what it offers, and its placement groups.

What changes slowly is kept for a while: which zones have a type for hours, spot prices for minutes. The list of machines
and what is left in reservations are asked for every time. Knows nothing about leases.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from caudal.catalog.aws_types import known_types
from caudal.domain.errors import Failed
from caudal.domain.fleet import Machine, SiteSpec
from caudal.ports import Clock
from caudal.providers.aws import rows
from caudal.providers.aws.clients import Clients
from caudal.providers.aws.launch import FLEET_TAG
from caudal.providers.aws.offers import Region, SpotPrice, newest_spot

TYPES_KEPT_S = 6 * 3600.0
SPOT_KEPT_S = 300.0
PAGE = 500
LINUX = "Linux/UNIX (Amazon VPC)"
DUPLICATE = "InvalidPlacementGroup.Duplicate"

Row = rows.Row


@dataclass(frozen=True, slots=True)
class Listing:
    """One look at a region: our machines there, and how many of them draw on each contract."""

    machines: tuple[Machine, ...]
    by_contract: dict[str, int]


class AwsRegion:
    """One region, for the sites of one provider in it."""

    def __init__(
        self, name: str, sites: Sequence[SiteSpec], fleet: str, clients: Clients, clock: Clock
    ) -> None:
        self.name = name
        self._sites = tuple(sites)
        self._fleet = fleet
        self._clients = clients
        self._clock = clock
        self._lock = threading.Lock()
        self._zones: tuple[float, dict[str, frozenset[str]]] | None = None
        self._spot: tuple[float, dict[tuple[str, str], SpotPrice]] | None = None
        self._groups: set[str] = set()

    def listing(self) -> Listing:
        """Our machines that are not gone. Raises Unreachable, NotAllowed."""
        ours = rows.ours(self._instances(rows.NOT_GONE), self._fleet)
        spot_ids = [str(row["SpotInstanceRequestId"]) for row in ours if row.get("SpotInstanceRequestId")]
        ends = rows.spot_ends(self._spot_requests(spot_ids)) if spot_ids else {}
        if any(row.get("InstanceLifecycle") == rows.BLOCK for row in ours):
            ends |= rows.block_ends(self.reservations())
        by_contract: dict[str, int] = {}
        for row in ours:
            if rows.contract(row):
                by_contract[rows.contract(row)] = by_contract.get(rows.contract(row), 0) + 1
        machines = tuple(rows.machine(row, self._sites, _leaves_at(row, ends)) for row in ours)
        return Listing(machines, by_contract)

    def of_lease(self, tag: str, lease_id: str) -> list[Row]:
        """Every instance of ours that bears the lease's tag, gone or not."""
        filters = [{"Name": f"tag:{tag}", "Values": [lease_id]}, self._tagged()]
        pages = self._clients.pages(self.name, "describe_instances", Filters=filters)
        return [row for row in rows.instances(pages) if rows.tags(row).get(FLEET_TAG) == self._fleet]

    def instance(self, machine_id: str) -> Row | None:
        """The instance of that id, whoever's it is; None where the region shows none."""
        # By a filter, not by id: an id that EC2 does not know, or that is none, is then an empty list.
        filters = [{"Name": "instance-id", "Values": [machine_id]}]
        found = rows.instances(self._clients.pages(self.name, "describe_instances", Filters=filters))
        return found[0] if found else None

    def run(self, request: dict[str, Any]) -> str:
        """RunInstances; the new instance's id."""
        answer = self._clients.call(self.name, "run_instances", **request)
        return str(answer["Instances"][0]["InstanceId"])

    def terminate(self, machine_id: str) -> None:
        """TerminateInstances of one; one that is gone is fine."""
        try:
            self._clients.call(self.name, "terminate_instances", InstanceIds=[machine_id])
        except Failed as error:
            if "InvalidInstanceID" not in error.why:
                raise

    def facts(self, spot: bool, reservations: bool) -> Region:
        """What its offers are made of. Raises Unreachable, NotAllowed."""
        return Region(
            zones=self._offered_zones(),
            spot=self._spot_prices() if spot else {},
            reservations=self.reservations() if reservations else (),
        )

    def reservations(self) -> list[Row]:
        """The account's active capacity reservations, blocks included."""
        filters = [{"Name": "state", "Values": ["active"]}]
        pages = self._clients.pages(
            self.name, "describe_capacity_reservations", Filters=filters, MaxResults=PAGE
        )
        return [row for page in pages for row in page.get("CapacityReservations", ())]

    def ensure_group(self, group: str) -> None:
        """Make the cluster placement group, where it is not there."""
        if group in self._groups:
            return
        filters = [{"Name": "group-name", "Values": [group]}]
        found = self._clients.call(self.name, "describe_placement_groups", Filters=filters)["PlacementGroups"]
        if not found:
            tags = [{"ResourceType": "placement-group", "Tags": [{"Key": FLEET_TAG, "Value": self._fleet}]}]
            try:
                self._clients.call(
                    self.name,
                    "create_placement_group",
                    GroupName=group,
                    Strategy="cluster",
                    TagSpecifications=tags,
                )
            except Exception as error:
                if DUPLICATE not in getattr(error, "why", ""):
                    raise
        self._groups.add(group)

    def _tagged(self) -> dict[str, Any]:
        return {"Name": f"tag:{FLEET_TAG}", "Values": [self._fleet]}

    def _instances(self, states: list[str]) -> list[Row]:
        filters = [self._tagged(), {"Name": "instance-state-name", "Values": states}]
        pages = self._clients.pages(self.name, "describe_instances", Filters=filters, MaxResults=PAGE)
        return rows.instances(pages)

    def _spot_requests(self, ids: Sequence[str]) -> Iterable[Row]:
        for start in range(0, len(ids), 200):  # the most values that one filter takes
            filters = [{"Name": "spot-instance-request-id", "Values": list(ids[start : start + 200])}]
            for page in self._clients.pages(self.name, "describe_spot_instance_requests", Filters=filters):
                yield from page.get("SpotInstanceRequests", ())

    def _names(self) -> list[str]:
        """The types that its sites may take."""
        return sorted({kind.name for site in self._sites for kind in known_types(site.machine_types)})

    def _offered_zones(self) -> dict[str, frozenset[str]]:
        with self._lock:
            now = self._clock.now()
            if self._zones is None or now - self._zones[0] >= TYPES_KEPT_S:
                filters = [{"Name": "instance-type", "Values": self._names()}]
                pages = self._clients.pages(
                    self.name,
                    "describe_instance_type_offerings",
                    LocationType="availability-zone",
                    Filters=filters,
                )
                found: dict[str, set[str]] = {}
                for row in (row for page in pages for row in page.get("InstanceTypeOfferings", ())):
                    found.setdefault(str(row["InstanceType"]), set()).add(str(row["Location"]))
                self._zones = (now, {name: frozenset(zones) for name, zones in found.items()})
            return self._zones[1]

    def _spot_prices(self) -> dict[tuple[str, str], SpotPrice]:
        with self._lock:
            now = self._clock.now()
            if self._spot is None or now - self._spot[0] >= SPOT_KEPT_S:
                # From now on: then EC2 answers with the one price that holds in each zone.
                pages = self._clients.pages(
                    self.name,
                    "describe_spot_price_history",
                    InstanceTypes=self._names(),
                    ProductDescriptions=[LINUX],
                    StartTime=datetime.fromtimestamp(now, UTC),
                )
                history = [row for page in pages for row in page.get("SpotPriceHistory", ())]
                self._spot = (now, newest_spot(history))
            return self._spot[1]


def _leaves_at(row: Row, ends: dict[str, float]) -> float | None:
    """By the notice to its spot request, or by the end of its block."""
    for key in ("SpotInstanceRequestId", "CapacityReservationId"):
        if str(row.get(key, "")) in ends:
            return ends[str(row[key])]
    return None
