"""ARM's virtual machines, interfaces and disks: what is checked when one is put, and how each is shown."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from caudal.catalog.azure_types import AZURE_TYPES, azure_type
from caudal.providers.azure_fake.arm import NAME, Answer, Refused, Request, Row, not_found, page
from caudal.providers.azure_fake.sizes import restriction_of
from caudal.providers.azure_fake.world import ADDRESS, LOCATIONS, Key, Vm, World

VM_KIND = "Microsoft.Compute/virtualMachines"
MAX_CUSTOM_DATA_BYTES = 65_535


def vms(world: World, request: Request, now: float) -> Answer:
    """`.../virtualMachines[/NAME[/instanceView]]`"""
    name, group = request.after("virtualMachines"), request.after("resourceGroups")
    if not name:
        rows = [v for k, v in sorted(world.vms.items()) if not group or k[0] == group.lower()]
        status_only = request.query.get("statusonly") == "true"
        return page(
            [shown(world, v, request, now, view=status_only, model=not status_only) for v in rows],
            request,
            world.page,
        )
    key = (group.lower(), name.lower())
    vm = world.vms.get(key)
    if request.method == "PUT":
        return _put_vm(world, key, name, vm, request, now)
    if request.method == "DELETE":
        if vm is None:
            return Answer(204)
        return Answer(202, None, _operation(request, vm.location, world.delete(vm, now)))
    if vm is None:
        raise not_found(VM_KIND, name, group)
    if request.parts[-1].lower() == "instanceview":
        return Answer(200, view_of(world, vm, now))
    expand = request.query.get("$expand", "").lower() == "instanceview"
    return Answer(200, shown(world, vm, request, now, view=expand))


def _put_vm(world: World, key: Key, name: str, there: Vm | None, request: Request, now: float) -> Answer:
    if there is not None:
        if request.headers.get("if-none-match") == "*":
            raise Refused(
                412,
                "PreconditionFailed",
                "The condition specified using HTTP conditional header(s) is not met.",
            )
        if _keys(request.body) != _keys(there.body):
            text = "Changing property 'linuxConfiguration.ssh.publicKeys' is not allowed."
            raise Refused(409, "PropertyChangeNotAllowed", text, "linuxConfiguration.ssh.publicKeys")
        return Answer(200, shown(world, there, request, now))
    _check_vm(world, key, name, request.body)
    failure = world.refuse_create(request.body)
    vm = world.create(key, name, request.body, failure, now)
    return Answer(201, shown(world, vm, request, now), _operation(request, vm.location, vm.operation))


def _check_vm(world: World, key: Key, name: str, body: Row) -> None:
    inner: Any = body.get("properties") or {}
    place = str(body.get("location", "")).lower()
    check_location(place, VM_KIND)
    if not NAME.fullmatch(name):
        raise _invalid("vmName", f"The entity name '{name}' is invalid according to its validation rule.")
    size = str((inner.get("hardwareProfile") or {}).get("vmSize", ""))
    kind = azure_type(size)
    if kind is None:
        valid = ",".join(sorted(k.name for k in AZURE_TYPES))
        text = f"The value {size} provided for the VM size is not valid. The valid sizes in the current region are: {valid}."
        raise _invalid("vmSize", f"{text} (vmSize)")
    zone = next(iter(body.get("zones") or ()), "")
    if restriction_of(world, kind.name, place, zone):
        text = (
            f"The requested VM size for resource 'Following SKUs have failed for Capacity Restrictions: {kind.name}' is "
            f"currently not available in location '{place}'. Please try another size or deploy to a different location "
            "or different zone."
        )
        raise Refused(409, "SkuNotAvailable", text)
    if zone and zone not in LOCATIONS[place]:
        raise Refused(
            400, "InvalidAvailabilityZone", f"The zone(s) '{zone}' for resource '{name}' is not supported."
        )
    _check_image(world, inner)
    _check_os(inner)
    for one in (inner.get("networkProfile") or {}).get("networkInterfaces") or ():
        _check_nic(world, key, str(one.get("id", "")))
    group = ((inner.get("capacityReservation") or {}).get("capacityReservationGroup") or {}).get("id", "")
    if group and str(group).lower() not in world.reservations:
        raise Refused(404, "ResourceNotFound", f"The Resource '{group}' was not found.")


def _check_image(world: World, inner: Row) -> None:
    image: Any = (inner.get("storageProfile") or {}).get("imageReference") or {}
    urn = ":".join(str(image.get(k, "")) for k in ("publisher", "offer", "sku", "version"))
    if urn in world.missing:
        text = f"The platform image '{urn}' is not available. Verify that all fields in the storage profile are correct."
        raise Refused(404, "PlatformImageNotFound", text, "imageReference")
    if image.get("id") in world.missing:
        raise Refused(404, "ImageNotFound", f"The Image '{image['id']}' cannot be found.", "imageReference")
    if not image:
        raise _invalid("imageReference", "Required parameter 'imageReference' is missing (null).")


def _check_os(inner: Row) -> None:
    profile: Any = inner.get("osProfile") or {}
    linux = profile.get("linuxConfiguration") or {}
    if not profile.get("adminUsername") or not profile.get("computerName"):
        raise _invalid(
            "adminUsername", "Required parameter 'adminUsername' or 'computerName' is missing (null)."
        )
    if not linux.get("disablePasswordAuthentication") and not profile.get("adminPassword"):
        raise _invalid("adminPassword", "Required parameter 'adminPassword' is missing (null).")
    if linux.get("disablePasswordAuthentication") and not _keys({"properties": inner}):
        raise _invalid("linuxConfiguration.ssh", "Authentication using SSH keys is required.")
    try:
        data = base64.b64decode(str(profile.get("customData", "")), validate=True)
    except binascii.Error as error:
        raise _invalid("customData", "Custom data must be base64 encoded.") from error
    if len(data) > MAX_CUSTOM_DATA_BYTES:
        raise _invalid("customData", f"Custom data exceeds {MAX_CUSTOM_DATA_BYTES} bytes.")


def _check_nic(world: World, key: Key, nic_id: str) -> None:
    nic = (key[0], nic_id.rsplit("/", 1)[-1].lower())
    if nic not in world.nics:
        text = f"Resource {nic_id} referenced by resource {key[1]} was not found."
        raise Refused(400, "InvalidResourceReference", text)
    if any(nic_id.lower() in _nic_ids(vm) for vm in world.vms.values()):
        raise Refused(400, "NicInUse", f"Network Interface {nic_id} is used by another resource.")


def nics(world: World, request: Request, now: float) -> Answer:
    """`.../networkInterfaces[/NAME]`"""
    name, group = request.after("networkInterfaces"), request.after("resourceGroups")
    if not name:
        rows = [
            shown_nic(world, k, r, request) for k, r in sorted(world.nics.items()) if k[0] == group.lower()
        ]
        return page(rows, request, world.page)
    key = (group.lower(), name.lower())
    there = world.nics.get(key)
    if request.method == "PUT":
        check_location(str(request.body.get("location", "")).lower(), "Microsoft.Network/networkInterfaces")
        _check_subnet(world, request.body)
        world.nics[key] = {**request.body, "name": name}
        status = 201 if there is None else 200
        return Answer(status, shown_nic(world, key, world.nics[key], request))
    if request.method == "DELETE":
        if there is None:
            return Answer(204)
        if _user_of(world, key) is not None:
            raise Refused(400, "NicInUse", f"Network Interface {name} is used by existing resource.")
        del world.nics[key]
        return Answer(202, None, _operation(request, str(there["location"]), "done"))
    if there is None:
        raise not_found("Microsoft.Network/networkInterfaces", name, group)
    return Answer(200, shown_nic(world, key, there, request))


def _check_subnet(world: World, body: Row) -> None:
    for one in (body.get("properties") or {}).get("ipConfigurations") or ():
        subnet = ((one.get("properties") or {}).get("subnet") or {}).get("id", "")
        if not subnet or subnet in world.missing:
            raise Refused(
                400,
                "InvalidResourceReference",
                f"Resource {subnet} referenced by the interface was not found.",
            )


def disks(world: World, request: Request, now: float) -> Answer:
    """`.../disks[/NAME]`"""
    name, group = request.after("disks"), request.after("resourceGroups")
    if not name:
        rows = [shown_disk(k, r, request) for k, r in sorted(world.disks.items()) if k[0] == group.lower()]
        return page(rows, request, world.page)
    key = (group.lower(), name.lower())
    there = world.disks.get(key)
    if request.method == "DELETE":
        if there is None:
            return Answer(204)
        if there.get("managedBy"):
            raise Refused(
                409, "OperationNotAllowed", f"Disk {name} is attached to VM {there['managedBy'][1]}."
            )
        del world.disks[key]
        return Answer(202, None, _operation(request, str(there["location"]), "done"))
    if there is None:
        raise not_found("Microsoft.Compute/disks", name, group)
    return Answer(200, shown_disk(key, there, request))


def shown(
    world: World, vm: Vm, request: Request, now: float, *, view: bool = False, model: bool = True
) -> Row:
    """A machine as ARM shows it: its model, its view, or both. The list of states has no models."""
    body = vm.body if model else {"location": vm.body["location"]}
    inner = {k: v for k, v in vm.inner.items() if k != "osProfile"} if model else {}
    inner = {**inner, "provisioningState": world.making(vm, now), "vmId": vm.operation}
    if model and "osProfile" in vm.inner:  # custom data is never shown again
        inner["osProfile"] = {k: v for k, v in vm.inner["osProfile"].items() if k != "customData"}
    if view:
        inner["instanceView"] = view_of(world, vm, now)
    return {
        **body,
        "id": _id(request, vm.group, VM_KIND, vm.name),
        "name": vm.name,
        "type": VM_KIND,
        "properties": inner,
    }


def view_of(world: World, vm: Vm, now: float) -> Row:
    """A machine's instance view."""
    making = world.making(vm, now)
    failed = making == "Failed"
    code = f"/{vm.failure[0]}" if failed and vm.failure else ""
    first: Row = {"code": f"ProvisioningState/{making.lower()}{code}", "level": "Error" if failed else "Info"}
    if failed and vm.failure:
        first |= {"displayStatus": "Provisioning failed", "message": vm.failure[1]}
    power = vm.attributes.get("power", vm.power)
    rest = [{"code": f"PowerState/{power}", "level": "Info", "displayStatus": f"VM {power}"}] if power else []
    return {"statuses": [first, *rest]}


def shown_nic(world: World, key: Key, row: Row, request: Request) -> Row:
    """An interface; its address is this machine's."""
    inner = dict(row.get("properties") or {})
    inner["ipConfigurations"] = [
        {**one, "properties": {**(one.get("properties") or {}), "privateIPAddress": ADDRESS}}
        for one in inner.get("ipConfigurations") or ()
    ]
    inner["provisioningState"] = "Succeeded"
    user = _user_of(world, key)
    if user is not None:
        inner["virtualMachine"] = {"id": _id(request, user.group, VM_KIND, user.name)}
    kind = "Microsoft.Network/networkInterfaces"
    return {**row, "id": _id(request, key[0], kind, row["name"]), "type": kind, "properties": inner}


def shown_disk(key: Key, row: Row, request: Request) -> Row:
    """A disk."""
    kind, by = "Microsoft.Compute/disks", row.get("managedBy")
    body = {**row, "id": _id(request, key[0], kind, row["name"]), "type": kind, "managedBy": None}
    if by:
        body["managedBy"] = _id(request, by[0], VM_KIND, by[1])
    return {
        **body,
        "properties": {"provisioningState": "Succeeded", "diskState": "Attached" if by else "Unattached"},
    }


def check_location(place: str, kind: str) -> None:
    """Raises Refused where there is no such region."""
    if place not in LOCATIONS:
        text = (
            f"The provided location '{place}' is not available for resource type '{kind}'. List of available regions "
            f"for the resource type is '{','.join(LOCATIONS)}'."
        )
        raise Refused(400, "LocationNotAvailableForResourceType", text)


def _invalid(target: str, text: str) -> Refused:
    return Refused(400, "InvalidParameter", text, target)


def _keys(body: Row) -> Any:
    profile: Any = (body.get("properties") or {}).get("osProfile") or {}
    return ((profile.get("linuxConfiguration") or {}).get("ssh") or {}).get("publicKeys")


def _nic_ids(vm: Vm) -> set[str]:
    profile: Any = vm.inner.get("networkProfile") or {}
    return {str(one.get("id", "")).lower() for one in profile.get("networkInterfaces") or ()}


def _user_of(world: World, nic: Key) -> Vm | None:
    tail = f"/networkinterfaces/{nic[1]}"
    users = (vm for k, vm in world.vms.items() if k[0] == nic[0])
    return next((vm for vm in users if any(one.endswith(tail) for one in _nic_ids(vm))), None)


def _id(request: Request, group: str, kind: str, name: str) -> str:
    return f"/subscriptions/{request.after('subscriptions')}/resourceGroups/{group}/providers/{kind}/{name}"


def _operation(request: Request, place: str, operation: str) -> dict[str, str]:
    scope = f"{request.base}/subscriptions/{request.after('subscriptions')}/providers/Microsoft.Compute"
    url = f"{scope}/locations/{place}/operations/{operation}?api-version=2024-07-01"
    return {"Azure-AsyncOperation": url, "Location": f"{url}&monitor=true", "Retry-After": "10"}
