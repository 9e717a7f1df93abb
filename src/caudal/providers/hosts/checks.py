"""What `caudal doctor` says of own machines. Pure: from what the hosts said to lines."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from caudal.domain.errors import CaudalError
from caudal.domain.fleet import HostSpec
from caudal.ports import Check
from caudal.providers.hosts.scripts import Health, Seen

SKEW_S = 60.0
LEAST_DISK_BYTES = 20 << 30
MEMORY_SLACK = 0.9
"""The kernel keeps some: a machine of 64 GiB says 62 or so."""

GIB = 1 << 30


def looked_over(
    hosts: Sequence[HostSpec],
    fleet: str,
    health: Mapping[str, Health | CaudalError],
    seen: Mapping[str, Seen],
    now: float | None = None,
) -> list[Check]:
    """One line for each host where all is well, else one for each fault."""
    at = time.time() if now is None else now
    found: list[Check] = []
    for host in hosts:
        name, said = f"host {host.name}", health[host.name]
        if isinstance(said, CaudalError):
            found.append(
                Check(name, "fail", f"{said.what} ({said.why})" if said.why else said.what, said.remedy)
            )
            continue
        faults = _faults(host, said, at)
        claim = seen[host.name].claim if host.name in seen else None
        if claim is not None and claim.fleet != fleet:
            remedy = "take it out of one of the two fleet files"
            faults.append(Check(name, "warn", f"claimed by fleet {claim.fleet}", remedy))
        free = f"{said.disk_free_bytes / GIB:.0f} GiB of disk free"
        well = f"{said.cpus} cores, load {said.load:.1f}, {said.memory_bytes / GIB:.0f} GiB, {free}"
        found += faults or [Check(name, "ok", well)]
    return found


def _faults(host: HostSpec, said: Health, now: float) -> list[Check]:
    name, has = f"host {host.name}", host.resources
    faults: list[Check] = []
    if said.cpus < has.cpus:
        text = f"{said.cpus} cores, and the fleet file says {has.cpus:g}"
        faults.append(Check(name, "fail", text, "correct `cpus` of the host in the fleet file"))
    if said.memory_bytes < has.memory_bytes * MEMORY_SLACK:
        text = f"{said.memory_bytes / GIB:.1f} GiB, and the fleet file says {has.memory_bytes / GIB:.1f}"
        faults.append(Check(name, "fail", text, "correct `memory` of the host in the fleet file"))
    if has.accelerators and len(said.gpus or ()) < has.accelerators:
        seen = "nvidia-smi is not there" if said.gpus is None else f"nvidia-smi lists {len(said.gpus)}"
        text = f"{seen}, and the fleet file says {has.accelerators}"
        faults.append(
            Check(name, "fail", text, "run nvidia-smi there; mend the driver, or correct the fleet file")
        )
    if has.neuron_cores and (said.neuron_cores or 0) < has.neuron_cores:
        text = f"neuron-ls says {said.neuron_cores}, and the fleet file {has.neuron_cores} Neuron cores"
        faults.append(Check(name, "fail", text, "install aws-neuronx-tools, or correct the fleet file"))
    if abs(now - said.at) > SKEW_S:
        text = f"its clock is {said.at - now:+.0f} s off this machine's"
        faults.append(Check(name, "warn", text, "start a time service there and here (chrony)"))
    if said.disk_free_bytes < LEAST_DISK_BYTES:
        text = f"{said.disk_free_bytes / GIB:.1f} GiB of disk free"
        faults.append(
            Check(name, "warn", text, f"free {LEAST_DISK_BYTES // GIB} GiB below its home directory")
        )
    return faults
