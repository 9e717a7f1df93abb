"""What should exist once: a slot, its name, and what it asks of a node. Knows nothing of where."""

from __future__ import annotations

import re
from dataclasses import dataclass

from caudal.domain.fleet import Resources
from caudal.domain.gang import Gang, Role

_SUFFIX = re.compile(r"@(?:g\d+)?(?:v\d+)?$")


@dataclass(frozen=True, slots=True)
class Slot:
    """One thing that should run. `sites` are those it may run at, in the order of preference; `apart` says
    that no other slot of the same workload and role may share its site; `why`, that there are as many replicas as this
    one makes."""

    name: str
    role: Role
    workload: str
    generation: int
    resources: Resources
    sites: tuple[str, ...]
    apart: bool = False
    model: str = ""
    model_version: int = 0
    why: str = ""

    @property
    def base(self) -> str:
        """The name without generation and version."""
        return base_of(self.name)


def replica_slot(service: str, model: str, index: int, generation: int, version: int) -> str:
    """The slot of a replica.

    A replica of a newer version, or of a changed spec, has a slot of its own, so that it can get ready
    beside the one that it replaces while each slot is still held by one gang at most.
    """
    suffix = (f"g{generation}" if generation > 1 else "") + (f"v{version}" if version > 1 else "")
    return f"{service}.replica.{model}.{index}" + (f"@{suffix}" if suffix else "")


def gateway_slot(number: int) -> str:
    """The slot of the gateway with that number: of the site with that place in the fleet, where each has one."""
    return f"gateway.{number}"


def gateway_number(slot: str) -> int:
    """The other way round."""
    return int(slot.rpartition(".")[2])


def base_of(slot: str) -> str:
    """What a slot is a version of: `assistant.replica.starter.0@v2` → `assistant.replica.starter.0`."""
    return _SUFFIX.sub("", slot)


def end_code(gang: Gang) -> str:
    """The stable code of why a gang is over; control/record writes it before the first colon."""
    return gang.end_reason.split(":", 1)[0]
