"""Azure's machine sizes that fleets are made of: cores, memory, accelerators, and list prices where one is known.

Sizes are facts of Microsoft's size pages; prices are those of a public list, each with its date, for Linux and by
the hour. What no source says is left out: a size without a price is offered only under a contract that has one.
Knows nothing of what a subscription may have, nor of what is free.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from caudal.domain.fleet import MachineType, Resources

GIB = 2**30
SIZES_SOURCE = "Azure's page on virtual machine sizes, from memory; ND GB200 checked against its page"
SIZES_AS_OF = "2026-11-29"
PRICES_SOURCE = "public price file (list)"
PRICES_AS_OF = "2026-09-19"


@dataclass(frozen=True, slots=True)
class AzureType:
    """`list_price_usd_per_hour` is on demand, None where it is not known. `family` is a word of ours for the sizes
    that share a quota; Azure's own name comes with its list of sizes. `infiniband`: nodes of one placement group have
    a fabric of their own."""

    machine_type: MachineType
    family: str
    list_price_usd_per_hour: Decimal | None = None
    infiniband: bool = False

    @property
    def name(self) -> str:
        """Azure's name of the size."""
        return self.machine_type.name


def _gpu(
    name: str,
    family: str,
    cpus: int,
    memory_gib: int,
    count: int,
    accelerator: str,
    price: str = "",
    *,
    infiniband: bool = False,
) -> AzureType:
    resources = Resources(float(cpus), memory_gib * GIB, count)
    kind = MachineType(f"Standard_{name}", resources, accelerator)
    return AzureType(kind, family, Decimal(price) if price else None, infiniband)


def _cpu(name: str, family: str, cpus: int, memory_gib: int) -> AzureType:
    return AzureType(MachineType(f"Standard_{name}", Resources(float(cpus), memory_gib * GIB)), family)


AZURE_TYPES = (
    _gpu("ND96asr_v4", "NDASv4_A100", 96, 900, 8, "A100-40GB", "31.613", infiniband=True),
    _gpu("ND96amsr_A100_v4", "NDAMSv4_A100", 96, 1900, 8, "A100-80GB", "32.77", infiniband=True),
    _gpu("ND96isr_H100_v5", "NDSH100v5", 96, 1900, 8, "H100-SXM", "98.32", infiniband=True),
    _gpu("ND96isr_H200_v5", "NDSH200v5", 96, 1850, 8, "H200", "84.8", infiniband=True),
    _gpu("ND128isr_NDR_GB200_v6", "NDSGB200v6", 128, 900, 4, "GB200", "108.16", infiniband=True),
    _gpu("ND96isr_MI300X_v5", "NDISv5MI300X", 96, 1850, 8, "MI300X", "48", infiniband=True),
    _gpu("NC24ads_A100_v4", "NCADSA100v4", 24, 220, 1, "A100-80GB"),
    _gpu("NC48ads_A100_v4", "NCADSA100v4", 48, 440, 2, "A100-80GB"),
    _gpu("NC96ads_A100_v4", "NCADSA100v4", 96, 880, 4, "A100-80GB"),
    _gpu("NC40ads_H100_v5", "NCadsH100v5", 40, 320, 1, "H100-NVL"),
    _gpu("NC80adis_H100_v5", "NCadsH100v5", 80, 640, 2, "H100-NVL"),
    _gpu("NC4as_T4_v3", "NCASv3_T4", 4, 28, 1, "T4"),
    _gpu("NC8as_T4_v3", "NCASv3_T4", 8, 56, 1, "T4"),
    _gpu("NC16as_T4_v3", "NCASv3_T4", 16, 110, 1, "T4"),
    _gpu("NC64as_T4_v3", "NCASv3_T4", 64, 440, 4, "T4"),
    _cpu("D2s_v5", "DSv5", 2, 8),
    _cpu("D4s_v5", "DSv5", 4, 16),
    _cpu("D8s_v5", "DSv5", 8, 32),
    _cpu("D16s_v5", "DSv5", 16, 64),
    _cpu("F2s_v2", "FSv2", 2, 4),
    _cpu("F4s_v2", "FSv2", 4, 8),
    _cpu("F8s_v2", "FSv2", 8, 16),
    _cpu("F16s_v2", "FSv2", 16, 32),
)


def azure_type(name: str) -> AzureType | None:
    """The size of that name, however it is written (Azure does not mind the case); None where it is not known."""
    return next((kind for kind in AZURE_TYPES if kind.name.lower() == name.lower()), None)
