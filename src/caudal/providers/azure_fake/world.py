"""The fake's state: machines, interfaces, disks, reservations, limits and faults; and how it moves with time.

Told the time by its caller (seconds, from anywhere). A machine is `Creating` until its boot time has passed, then it
runs; one for which there is no room fails at once or a moment later, as Azure does it. Knows nothing of HTTP.
"""

from __future__ import annotations

import base64
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from caudal.catalog.azure_types import AZURE_TYPES, azure_type
from caudal.providers.azure_fake.arm import Refused, Row
from caudal.providers.azure_fake.machines import Machines

LOCATIONS = {
    "centralus": ("1", "2", "3"),
    "eastus": ("1", "2", "3"),
    "eastus2": ("1", "2", "3"),
    "northeurope": ("1", "2", "3"),
    "southcentralus": ("1", "2", "3"),
    "swedencentral": ("1", "2", "3"),
    "westeurope": ("1", "2", "3"),
    "westus": (),
    "westus3": ("1", "2", "3"),
}
"""Regions and their zones: some of Azure's."""

DEFAULT_QUOTA = 10_000
MAX_CALLS = 10_000
ADDRESS = "127.0.0.1"
Key = tuple[str, str]


@dataclass
class Times:
    """How long things take, in seconds."""

    boot_s: float = 0.5
    delete_s: float = 0.3
    fail_s: float = 0.2


@dataclass
class Vm:
    """A machine. `body` is as it was put; times are the world's. `failure` shows once `settles_at` has passed."""

    name: str
    group: str
    body: Row
    settles_at: float
    operation: str
    failure: tuple[str, str] | None = None
    gone_at: float | None = None
    power: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def inner(self) -> Row:
        """Its properties."""
        found: Row = self.body["properties"]
        return found

    @property
    def size(self) -> str:
        """Its size's name."""
        return str(self.inner["hardwareProfile"]["vmSize"])

    @property
    def location(self) -> str:
        """Its region."""
        return str(self.body["location"]).lower()

    @property
    def zone(self) -> str:
        """Its zone; empty where it has none."""
        return next(iter(self.body.get("zones") or ()), "")

    @property
    def reservation(self) -> str:
        """The id of its reservation group, in lower case; empty where it has none."""
        group = (self.inner.get("capacityReservation") or {}).get("capacityReservationGroup") or {}
        return str(group.get("id", "")).lower()


@dataclass
class Operation:
    """A long-running one. `error` shows at its end."""

    ends_at: float
    error: tuple[str, str] | None = None


@dataclass
class Limit:
    """How many machines of a size there are. `later`: the call is taken and fails afterwards."""

    count: int
    later: bool = False
    code: str = ""


class World:
    """All of it. Change it through its methods, or through admin.py."""

    def __init__(self, machines: Machines, times: Times | None = None) -> None:
        self.machines = machines
        self.start_times = times or Times()
        self.reset()

    def reset(self) -> None:
        """As at the beginning: nothing there, no limits, no faults."""
        self.machines.stop_all()
        self.times = Times(self.start_times.boot_s, self.start_times.delete_s, self.start_times.fail_s)
        self.page = 50
        self.keep_leftovers = False
        self.vms: dict[Key, Vm] = {}
        self.nics: dict[Key, Row] = {}
        self.disks: dict[Key, Row] = {}
        self.reservations: dict[str, Row] = {}
        self.operations: dict[str, Operation] = {}
        self.limits: dict[tuple[str, str, str], Limit] = {}
        self.quotas: dict[tuple[str, str], int] = {}
        self.restrictions: list[Row] = []
        self.missing: set[str] = set()
        self.faults: list[Row] = []
        self.calls: deque[str] = deque(maxlen=MAX_CALLS)
        self.made = 0

    def advance(self, now: float) -> None:
        """Let happen what is due."""
        for key, vm in list(self.vms.items()):
            if vm.gone_at is not None and now >= vm.gone_at:
                self._vanish(key, vm)
            elif not vm.power and now >= vm.settles_at and vm.failure is None and vm.gone_at is None:
                vm.power = "running"
                self.machines.start(vm.name, self.custom_data(vm))

    def create(self, key: Key, name: str, body: Row, failure: tuple[str, str] | None, now: float) -> Vm:
        """A machine, with its disk; one with a `failure` will have it soon."""
        self.made += 1
        operation = f"op-{self.made}"
        took_s = self.times.boot_s if failure is None else self.times.fail_s
        vm = Vm(name, key[0], body, now + took_s, operation, failure)
        self.vms[key] = vm
        self.operations[operation] = Operation(now + took_s, failure)
        disk = (body["properties"].get("storageProfile") or {}).get("osDisk") or {}
        if disk.get("name") and failure is None:
            row = {
                "name": disk["name"],
                "location": body["location"],
                "tags": body.get("tags", {}),
                "managedBy": key,
            }
            self.disks[key[0], str(disk["name"]).lower()] = row
        return vm

    def delete(self, vm: Vm, now: float) -> str:
        """Begin its end; returns the operation."""
        if vm.gone_at is None:
            vm.gone_at = now + self.times.delete_s
            self.machines.stop(vm.name)
            vm.attributes["deletion"] = f"del-{vm.operation}"
            self.operations[vm.attributes["deletion"]] = Operation(vm.gone_at)
        return str(vm.attributes["deletion"])

    def refuse_create(self, vm_body: Row) -> tuple[str, str] | None:
        """What speaks against another machine: raised where it is said at once, returned where it comes later."""
        size = str(vm_body["properties"]["hardwareProfile"]["vmSize"])
        place = str(vm_body["location"]).lower()
        zone = next(iter(vm_body.get("zones") or ()), "")
        self._check_quota(size, place, vm_body["properties"].get("priority") == "Spot")
        limit = next(
            (
                self.limits[k]
                for k in ((size.lower(), place, zone), (size.lower(), place, ""))
                if k in self.limits
            ),
            None,
        )
        if limit is None or self.used(size, place, zone) < limit.count:
            return None
        code = limit.code or ("ZonalAllocationFailed" if zone else "AllocationFailed")
        text = (
            f"Allocation failed. We do not have sufficient capacity for the requested VM size {size} in this "
            f"{'zone' if zone else 'region'}. Read more about improving likelihood of allocation success."
        )
        if limit.later:
            return code, text
        raise Refused(409, code, text)

    def used(self, size: str, place: str, zone: str) -> int:
        """How many machines of a size take room there."""
        return sum(
            1
            for vm in self.vms.values()
            if vm.failure is None
            and (vm.size.lower(), vm.location) == (size.lower(), place)
            and (not zone or vm.zone == zone)
        )

    def cores(self, place: str, family: str, spot: bool = False) -> int:
        """How many cores of a family (empty: all; spot ones apart) are used in a region."""
        total = 0.0
        for vm in self.vms.values():
            kind = azure_type(vm.size)
            if kind is None or vm.location != place or vm.failure is not None:
                continue
            if (vm.inner.get("priority") == "Spot") == spot and family in ("", quota_name(kind.family)):
                total += kind.machine_type.resources.cpus
        return int(total)

    def custom_data(self, vm: Vm) -> bytes:
        """What the machine was given to start with."""
        return base64.b64decode(str((vm.inner.get("osProfile") or {}).get("customData", "")))

    def making(self, vm: Vm, now: float) -> str:
        """Its provisioningState."""
        if vm.gone_at is not None:
            return "Deleting"
        if "making" in vm.attributes:
            return str(vm.attributes["making"])
        if now < vm.settles_at:
            return "Creating"
        return "Failed" if vm.failure is not None else "Succeeded"

    def _check_quota(self, size: str, place: str, spot: bool) -> None:
        kind = azure_type(size)
        assert kind is not None, "the size was checked"
        name = "lowPriorityCores" if spot else quota_name(kind.family)
        limit = self.quotas.get((place, name), DEFAULT_QUOTA)
        used = self.cores(place, "" if spot else name, spot)
        wanted = int(kind.machine_type.resources.cpus)
        if used + wanted > limit:
            raise Refused(
                409,
                "OperationNotAllowed",
                f"Operation could not be completed as it results in exceeding approved {name} Cores quota. Additional "
                f"details - Deployment Model: Resource Manager, Location: {place}, Current Limit: {limit}, Current "
                f"Usage: {used}, Additional Required: {wanted}, (Minimum) New Limit Required: {used + wanted}.",
            )

    def _vanish(self, key: Key, vm: Vm) -> None:
        del self.vms[key]
        profile = vm.inner.get("networkProfile") or {}
        for one in profile.get("networkInterfaces") or ():
            nic = (key[0], str(one["id"]).rsplit("/", 1)[-1].lower())
            if (one.get("properties") or {}).get("deleteOption") == "Delete" and not self.keep_leftovers:
                self.nics.pop(nic, None)
        disk = (vm.inner.get("storageProfile") or {}).get("osDisk") or {}
        row = self.disks.get((key[0], str(disk.get("name", "")).lower()))
        if row is not None:
            row["managedBy"] = None
            if disk.get("deleteOption") == "Delete" and not self.keep_leftovers:
                self.disks.pop((key[0], str(disk["name"]).lower()))


def quota_name(family: str) -> str:
    """The quota of a family of sizes, in the style of Azure's names."""
    return f"standard{family}Family"


def families() -> list[str]:
    """All of them."""
    return sorted({kind.family for kind in AZURE_TYPES})
