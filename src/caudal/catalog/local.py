"""This machine as something that can be rented for nothing: its machine types, and its offers.

Told how many cores and how much memory there are; measures nothing itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from caudal.domain.fleet import MachineType, Market, Offer, Resources

SOURCE = "this machine"
PRICE_USD_PER_HOUR = Decimal(0)


def machine_type(cpus: float, memory_bytes: int) -> MachineType:
    """`local-Ncpu`: a part of this machine with so many cores (maybe fewer than one) and so much memory."""
    return MachineType(name=f"local-{cpus:.3g}cpu", resources=Resources(cpus, memory_bytes))


def share(cpus: int, memory_bytes: int, sites: Sequence[str]) -> dict[str, MachineType]:
    """One machine type per site, which together are this machine.

    Each site gets whole cores, the first sites one more where they do not come out even. With fewer cores
    than sites every site counts one core, and they take turns on those that there are: slower, where half a
    core each would hold no worker beside the rest, so that a run would wait for ever. Memory goes
    with the cores, what is left of it to the first site.
    """
    assert cpus >= 1 and memory_bytes >= 0, "a machine has a core"
    assert len(set(sites)) == len(sites), "site names are distinct"
    if not sites:
        return {}
    each, extra = divmod(cpus, len(sites))
    if each == 0:
        each, extra = 1, 0
    cores = [float(each + (1 if number < extra else 0)) for number in range(len(sites))]
    memory = [memory_bytes * int(count) // max(cpus, len(sites)) for count in cores]
    memory[0] += memory_bytes - sum(memory)
    return {site: machine_type(c, m) for site, c, m in zip(sites, cores, memory, strict=True)}


def offer(site: str, kind: MachineType, as_of: str, available: int | None = 1) -> Offer:
    """The site's part of this machine, for nothing. `as_of` is today's date (2026-11-22), by the caller;
    `available` is how many more of it are free."""
    return Offer(
        id=f"local/{site}/{kind.name}",
        site=site,
        machine_type=kind,
        market=Market.OWN,
        price_usd_per_hour=PRICE_USD_PER_HOUR,
        source=SOURCE,
        as_of=as_of,
        available=available,
    )
