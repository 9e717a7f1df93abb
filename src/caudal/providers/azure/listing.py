"""From Azure's lists to ours: which machines there are, what state they are in, and what is left of those that went.

Pure. A machine whose making came to nothing, or that was stopped, is `stopping`: it will never work for us, and the
provider ends it. One that Azure calls failed while it runs is left alone: an extension that did not install fails a
machine that works; and where Azure does not say whether it runs, it has the benefit of the doubt for a while.
A machine of which only the interface or the disk is left is still listed, since a disk bills. Knows nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from caudal.catalog.azure_types import azure_type
from caudal.domain.fleet import Machine, MachineState
from caudal.providers.azure.bodies import FLEET, LEASE, OFFER, SITE, nic_name, owner_of
from caudal.providers.azure.errors import NO_CAPACITY, NOT_OFFERED, QUOTA

Row = Mapping[str, Any]
GOING = frozenset({"stopping", "deallocating"})
DEAD = frozenset({"stopped", "deallocated"})
NEVER_STARTED = NO_CAPACITY | QUOTA | NOT_OFFERED | {"OperationNotAllowed"}
"""The codes of a making that came to nothing. With any other the machine may run all the same."""


@dataclass(frozen=True, slots=True)
class Found:
    """A machine of ours as Azure has it. `broken`: it will never work, and is to be ended by us; `doubtful`: its making
    failed, and Azure does not say whether it runs. `failure`: why its making failed (code and sentence). `nics`,
    `disks`: what is left of a machine that is gone."""

    machine: Machine
    offer_id: str
    broken: bool = False
    doubtful: bool = False
    failure: tuple[str, str] | None = None
    nics: tuple[str, ...] = field(default=())
    disks: tuple[str, ...] = field(default=())

    @property
    def leftover(self) -> bool:
        """Whether the machine itself is gone."""
        return bool(self.nics or self.disks)


def found(
    fleet: str, vms: Iterable[Row], statuses: Iterable[Row], nics: Iterable[Row], disks: Iterable[Row]
) -> list[Found]:
    """All that carries this fleet's tag, by name. Nothing of others."""
    views = {_id(row): _inner(row).get("instanceView") or {} for row in statuses}
    nics = [row for row in nics if _tags(row).get(FLEET) == fleet]
    addresses = {str(row["name"]).lower(): _address(row) for row in nics}
    rows = [row for row in vms if _tags(row).get(FLEET) == fleet]
    listed = {str(row["name"]).lower() for row in rows}
    machines = [_found(row, views.get(_id(row), {}), addresses) for row in rows]
    disks = [row for row in disks if _tags(row).get(FLEET) == fleet]
    return sorted([*machines, *_leftovers(listed, nics, disks)], key=lambda one: one.machine.id)


def _found(row: Row, view: Row, addresses: Mapping[str, str]) -> Found:
    inner, marks, name = _inner(row), _tags(row), str(row["name"])
    power, failure = power_of(view), failure_of(view)
    making = str(inner.get("provisioningState", ""))
    failed = making == "Failed"
    stillborn = failed and not power and failure is not None and failure[0] in NEVER_STARTED
    broken = making != "Deleting" and (power in DEAD or stillborn)
    doubtful = failed and not power and not broken
    if making == "Deleting" or broken or power in GOING:
        state = MachineState.STOPPING
    elif power == "running" and making != "Creating":
        state = MachineState.RUNNING
    else:
        state = MachineState.PENDING
    size = str((inner.get("hardwareProfile") or {}).get("vmSize", ""))
    kind = azure_type(size)
    machine = Machine(
        id=name,
        site=marks.get(SITE, ""),
        machine_type=kind.name if kind else size,
        state=state,
        lease_id=marks.get(LEASE, ""),
        address=addresses.get(nic_name(name).lower(), "") if state is MachineState.RUNNING else "",
    )
    return Found(machine, marks.get(OFFER, ""), broken, doubtful, (failure or ("", "")) if failed else None)


def _leftovers(listed: set[str], nics: Iterable[Row], disks: Iterable[Row]) -> list[Found]:
    """What of machines that are gone is still there, a row for each machine."""
    left: dict[str, tuple[Row, list[str], list[str]]] = {}
    for kind, rows in enumerate((nics, disks)):
        for row in rows:
            owner = owner_of(str(row["name"]))
            attached = _inner(row).get("virtualMachine") or row.get("managedBy")
            if owner and owner.lower() not in listed and not attached:
                left.setdefault(owner, (row, [], []))[kind + 1].append(str(row["name"]))  # type: ignore[union-attr]
    return [
        _leftover(name, row, nics_left, disks_left) for name, (row, nics_left, disks_left) in left.items()
    ]


def _leftover(name: str, row: Row, nics: list[str], disks: list[str]) -> Found:
    marks = _tags(row)
    machine = Machine(name, marks.get(SITE, ""), "", MachineState.STOPPING, marks.get(LEASE, ""))
    return Found(machine, marks.get(OFFER, ""), nics=tuple(nics), disks=tuple(disks))


def power_of(view: Row) -> str:
    """`running`, `stopped`, ...; empty where Azure does not say, which it sometimes does not."""
    codes = (str(status.get("code", "")) for status in view.get("statuses") or ())
    return next((code.split("/", 1)[1] for code in codes if code.startswith("PowerState/")), "")


def failure_of(view: Row) -> tuple[str, str] | None:
    """The code and the sentence of a making that failed: `ProvisioningState/failed/AllocationFailed`."""
    for status in view.get("statuses") or ():
        parts = str(status.get("code", "")).split("/")
        if parts[0] == "ProvisioningState" and len(parts) > 1 and parts[1].lower() == "failed":
            return (parts[2] if len(parts) > 2 else ""), str(status.get("message", ""))
    return None


def _inner(row: Row) -> Row:
    return row.get("properties") or {}


def _tags(row: Row) -> dict[str, str]:
    return row.get("tags") or {}


def _id(row: Row) -> str:
    return str(row.get("id", "")).lower()


def _address(row: Row) -> str:
    configurations = _inner(row).get("ipConfigurations") or [{}]
    return str(_inner(configurations[0]).get("privateIPAddress", ""))
