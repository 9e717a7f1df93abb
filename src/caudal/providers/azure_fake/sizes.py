"""ARM's lists of sizes, regions, quotas, capacity reservations and operations."""

from __future__ import annotations

import re
from typing import Any

from caudal.catalog.azure_types import AZURE_TYPES, GIB, AzureType
from caudal.providers.azure_fake.arm import Answer, Refused, Request, Row, not_found, page
from caudal.providers.azure_fake.world import DEFAULT_QUOTA, LOCATIONS, World, families, quota_name

RESERVATION_KIND = "Microsoft.Compute/capacityReservationGroups/capacityReservations"


def skus(world: World, request: Request, now: float) -> Answer:
    """`.../Microsoft.Compute/skus`, by the region in its filter."""
    asked = re.search(r"location eq '([^']*)'", request.query.get("$filter", ""))
    places = [asked.group(1).lower()] if asked else list(LOCATIONS)
    rows = [_sku(world, kind, place) for place in places if place in LOCATIONS for kind in AZURE_TYPES]
    return page(rows, request, max(world.page, 500))


def _sku(world: World, kind: AzureType, place: str) -> Row:
    has = kind.machine_type.resources
    said = {
        "vCPUs": f"{has.cpus:.0f}",
        "MemoryGB": f"{has.memory_bytes / GIB:.0f}",
        "GPUs": str(has.accelerators),
        "AcceleratedNetworkingEnabled": "True",
    }
    return {
        "resourceType": "virtualMachines",
        "name": kind.name,
        "family": quota_name(kind.family),
        "locations": [place],
        "locationInfo": [{"location": place, "zones": list(LOCATIONS[place])}],
        "capabilities": [{"name": name, "value": value} for name, value in said.items()],
        "restrictions": _restrictions(world, kind.name, place),
    }


def _restrictions(world: World, size: str, place: str) -> list[Row]:
    rows = []
    for one in world.restrictions:
        if one["size"].lower() == size.lower() and one["location"].lower() == place:
            info: Row = {"locations": [place], **({"zones": one["zones"]} if one.get("zones") else {})}
            kind = "Zone" if one.get("zones") else "Location"
            reason = "NotAvailableForSubscription"
            rows.append({"type": kind, "values": [place], "restrictionInfo": info, "reasonCode": reason})
    return rows


def restriction_of(world: World, size: str, place: str, zone: str) -> bool:
    """Whether the subscription may not have the size there."""
    for one in _restrictions(world, size, place):
        if one["type"] == "Location" or (zone and zone in one["restrictionInfo"]["zones"]):
            return True
    return False


def locations(world: World, request: Request, now: float) -> Answer:
    """`/subscriptions/ID/locations`"""
    scope = f"/subscriptions/{request.after('subscriptions')}/locations"
    rows = [{"id": f"{scope}/{place}", "name": place, "displayName": place} for place in LOCATIONS]
    return Answer(200, {"value": rows})


def usages(world: World, request: Request, now: float) -> Answer:
    """`.../locations/PLACE/usages`"""
    place = request.after("locations").lower()
    names = [quota_name(family) for family in families()]
    rows = [_usage(world, place, name, world.cores(place, name)) for name in names]
    rows.append(_usage(world, place, "cores", world.cores(place, "")))
    rows.append(_usage(world, place, "lowPriorityCores", world.cores(place, "", spot=True)))
    return page(rows, request, max(world.page, 500))


def _usage(world: World, place: str, name: str, used: int) -> Row:
    limit = world.quotas.get((place, name), DEFAULT_QUOTA)
    label = {"value": name, "localizedValue": f"{name} vCPUs"}
    return {"name": label, "currentValue": used, "limit": limit, "unit": "Count"}


def reservations(world: World, request: Request, now: float) -> Answer:
    """`.../capacityReservationGroups/GROUP/capacityReservations[/NAME]`, as admin.py made them."""
    lower = [part.lower() for part in request.parts]
    end = lower.index("capacityreservationgroups") + 2
    group_id = "/" + "/".join(lower[:end])
    name = request.after("capacityReservations")
    group = world.reservations.get(group_id)
    if group is None:
        kind = "Microsoft.Compute/capacityReservationGroups"
        raise not_found(kind, request.after("capacityReservationGroups"), request.after("resourceGroups"))
    view = request.query.get("$expand", "").lower() == "instanceview"
    rows = [_reservation(world, group_id, group, one, view) for one in group["reservations"]]
    if not name:
        return page(rows, request, world.page)
    found = next((row for row in rows if row["name"].lower() == name.lower()), None)
    if found is None:
        raise not_found(RESERVATION_KIND, name, request.after("resourceGroups"))
    return Answer(200, found)


def _reservation(world: World, group_id: str, group: Row, one: Row, view: bool) -> Row:
    zone = one.get("zone", "")
    inside: list[Row] = [
        {"id": f"{group_id.split('/providers/')[0]}/providers/Microsoft.Compute/virtualMachines/{vm.name}"}
        for vm in world.vms.values()
        if vm.reservation == group_id
        and vm.failure is None
        and vm.size.lower() == one["size"].lower()
        and (not zone or vm.zone == zone)
    ]
    capacity = int(one["capacity"])
    inner: Row = {"provisioningState": "Succeeded", "virtualMachinesAssociated": inside}
    if view:
        used: Any = {"currentCapacity": capacity, "virtualMachinesAllocated": inside[:capacity]}
        inner["instanceView"] = {"utilizationInfo": used, "statuses": []}
    row: Row = {
        "id": f"{group_id}/capacityReservations/{one['name']}",
        "name": one["name"],
        "type": RESERVATION_KIND,
        "location": group["location"],
        "sku": {"name": one["size"], "capacity": capacity},
        "properties": inner,
    }
    return {**row, "zones": [zone]} if zone else row


def operations(world: World, request: Request, now: float) -> Answer:
    """`.../locations/PLACE/operations/ID`"""
    name = request.after("operations")
    operation = world.operations.get(name)
    if name == "done":
        return Answer(200, {"name": name, "status": "Succeeded"})
    if operation is None:
        raise Refused(404, "ResourceNotFound", f"The operation {name} is not known.")
    if now < operation.ends_at:
        return Answer(200, {"name": name, "status": "InProgress"})
    if operation.error is None:
        return Answer(200, {"name": name, "status": "Succeeded"})
    code, message = operation.error
    return Answer(200, {"name": name, "status": "Failed", "error": {"code": code, "message": message}})
