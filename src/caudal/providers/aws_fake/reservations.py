"""Capacity reservations, capacity blocks and placement groups, which moto has not.

A block's price, where nobody set one, is made up from the type's list price: for trying things out, never for planning.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from caudal.catalog.aws_types import BY_NAME
from caudal.providers.aws_fake.wire import Answer, Ask, Refused, moment, when, xml
from caudal.providers.aws_fake.world import Offering, Reservation, World

LINUX = "Linux/UNIX"
DAY_S = 86400.0
BLOCK_STARTS_H = 11.5  # blocks begin and end at 11:30 UTC, as EC2's do
NO_PRICE = Decimal("50")  # dollars an hour, of a type without a list price
BLOCK_SHARE = Decimal("0.8")  # of the list price


class ReservationActions:
    """The actions, on one world."""

    def __init__(self, world: World) -> None:
        self._world = world

    def create(self, ask: Ask) -> Answer:
        """CreateCapacityReservation."""
        kind, zone = ask.get("InstanceType"), ask.get("AvailabilityZone")
        if not kind or not zone.startswith(ask.region):
            raise Refused("InvalidParameterValue", "an instance type and a zone of the region are needed")
        if self._world.full(ask.region, zone, kind):
            raise Refused("InsufficientInstanceCapacity", f"We do not have sufficient {kind} capacity.", 500)
        one = Reservation(
            id=self._world.new_id("cr"),
            region=ask.region,
            zone=zone,
            machine_type=kind,
            total=int(ask.get("InstanceCount", "1")),
            match=ask.get("InstanceMatchCriteria", "open"),
            starts_at=self._world.now(),
            ends_at=moment(ask.get("EndDate")) if ask.get("EndDate") else None,
            group_arn=ask.get("PlacementGroupArn"),
        )
        self._world.reservations[one.id] = one
        return xml(ask.action, {"capacityReservation": self._row(one)})

    def describe(self, ask: Ask) -> Answer:
        """DescribeCapacityReservations."""
        ids, filters = ask.many("CapacityReservationId"), ask.filters()
        for wanted in ids:
            if wanted not in self._world.reservations:
                raise Refused("InvalidCapacityReservationId.NotFound", f"{wanted} does not exist")
        found = [
            self._row(one)
            for one in self._world.reservations.values()
            if one.region == ask.region
            and (not ids or one.id in ids)
            and one.state in filters.get("state", [one.state])
            and one.machine_type in filters.get("instance-type", [one.machine_type])
        ]
        page, token = ask.page(found)
        return xml(ask.action, {"capacityReservationSet": page, "nextToken": token})

    def cancel(self, ask: Ask) -> Answer:
        """CancelCapacityReservation: its machines run on, on demand."""
        one = self._world.reservations.get(ask.get("CapacityReservationId"))
        if one is None or one.region != ask.region:
            raise Refused("InvalidCapacityReservationId.NotFound", "no such reservation")
        if one.kind == "capacity-block":
            raise Refused("OperationNotPermitted", "A capacity block cannot be cancelled.")
        one.state = "cancelled"
        for machine in self._world.instances.values():
            if machine.reservation_id == one.id:
                machine.reservation_id = ""
        return xml(ask.action, {"return": True})

    def offerings(self, ask: Ask) -> Answer:
        """DescribeCapacityBlockOfferings: those that were set, else three made up for what is asked."""
        kind = ask.get("InstanceType")
        count, hours = int(ask.get("InstanceCount", "1")), int(ask.get("CapacityDurationHours", "24"))
        known = BY_NAME.get(kind)
        if known is None or not known.blocks:
            raise Refused("InvalidParameterValue", f"{kind} is not supported for Capacity Blocks")
        found = [
            o for o in self._world.offerings.values() if o.region == ask.region and o.machine_type == kind
        ]
        if not found:
            found = [self._made(ask.region, kind, count, hours, number) for number in range(3)]
            self._world.offerings |= {offering.id: offering for offering in found}
        rows = [self._offering(offering) for offering in found if offering.count == count]
        page, token = ask.page(rows)
        return xml(ask.action, {"capacityBlockOfferingSet": page, "nextToken": token})

    def purchase(self, ask: Ask) -> Answer:
        """PurchaseCapacityBlock."""
        offering = self._world.offerings.get(ask.get("CapacityBlockOfferingId"))
        if offering is None or offering.region != ask.region:
            raise Refused("InvalidCapacityBlockOfferingId.NotFound", "the offering has expired")
        del self._world.offerings[offering.id]
        one = Reservation(
            id=self._world.new_id("cr"),
            region=offering.region,
            zone=offering.zone,
            machine_type=offering.machine_type,
            total=offering.count,
            kind="capacity-block",
            state="active" if offering.starts_at <= self._world.now() else "scheduled",
            starts_at=offering.starts_at,
            ends_at=offering.ends_at,
        )
        self._world.reservations[one.id] = one
        return xml(ask.action, {"capacityReservation": self._row(one)})

    def groups(self, ask: Ask) -> Answer:
        """DescribePlacementGroups."""
        wanted = ask.filters().get("group-name")
        named = ask.many("GroupName")
        rows = [
            {"groupName": name, "state": "available", "strategy": strategy}
            for (region, name), strategy in self._world.groups.items()
            if region == ask.region and (not wanted or name in wanted) and (not named or name in named)
        ]
        return xml(ask.action, {"placementGroupSet": rows})

    def create_group(self, ask: Ask) -> Answer:
        """CreatePlacementGroup."""
        key = (ask.region, ask.get("GroupName"))
        if key in self._world.groups:
            raise Refused(
                "InvalidPlacementGroup.Duplicate", f"The placement group '{key[1]}' already exists."
            )
        self._world.groups[key] = ask.get("Strategy", "cluster")
        return xml(ask.action, {"placementGroup": {"groupName": key[1], "state": "available"}})

    def delete_group(self, ask: Ask) -> Answer:
        """DeletePlacementGroup."""
        if self._world.groups.pop((ask.region, ask.get("GroupName")), None) is None:
            raise Refused("InvalidPlacementGroup.Unknown", "The placement group is unknown.")
        return xml(ask.action, {"return": True})

    def move_on(self) -> None:
        """Blocks begin, and reservations end, when their time has come."""
        now = self._world.now()
        for one in self._world.reservations.values():
            if one.state == "scheduled" and now >= one.starts_at:
                one.state = "active"
            if one.state == "active" and one.ends_at is not None and now >= one.ends_at:
                one.state = "expired"

    def _row(self, one: Reservation) -> dict[str, Any]:
        return {
            "capacityReservationId": one.id,
            "instanceType": one.machine_type,
            "instancePlatform": LINUX,
            "availabilityZone": one.zone,
            "tenancy": "default",
            "totalInstanceCount": one.total,
            "availableInstanceCount": self._world.free_in(one),
            "state": one.state,
            "startDate": when(one.starts_at),
            "endDate": when(one.ends_at) if one.ends_at is not None else None,
            "endDateType": "limited" if one.ends_at is not None else "unlimited",
            "instanceMatchCriteria": one.match,
            "placementGroupArn": one.group_arn,
            "reservationType": one.kind,
            "tagSet": one.tags,
        }

    def _made(self, region: str, kind: str, count: int, hours: int, number: int) -> Offering:
        first_day = (self._world.now() // DAY_S + 1 + number) * DAY_S + BLOCK_STARTS_H * 3600.0
        hourly = (BY_NAME[kind].price_usd_per_hour or NO_PRICE) * BLOCK_SHARE * (100 - 5 * number) / 100
        fee = (hourly * hours * count).quantize(Decimal("0.01"))
        offering_id = self._world.new_id("cbr")
        zone = f"{region}{'abc'[number]}"
        return Offering(offering_id, region, zone, kind, count, first_day, first_day + hours * 3600.0, fee)

    def _offering(self, offering: Offering) -> dict[str, Any]:
        hours = round((offering.ends_at - offering.starts_at) / 3600.0)
        return {
            "capacityBlockOfferingId": offering.id,
            "instanceType": offering.machine_type,
            "availabilityZone": offering.zone,
            "instanceCount": offering.count,
            "startDate": when(offering.starts_at),
            "endDate": when(offering.ends_at),
            "capacityBlockDurationHours": hours,
            "capacityBlockDurationMinutes": hours * 60,
            "upfrontFee": str(offering.fee_usd),
            "currencyCode": "USD",
            "tenancy": "default",
        }
