"""SkyPilot's catalogue (`catalogs/VERSION/CLOUD/vms.csv`, one file a cloud) → rows: by the hour, and spot.

Columns by the README of skypilot-org/skypilot-catalog, read 2026-11: InstanceType, vCPUs, MemoryGiB, AcceleratorName,
AcceleratorCount, GpuInfo, Price, SpotPrice, Region, AvailabilityZone. The cloud is the file's name or its folder's. Zones
of one region are one row here, at the price of the cheapest. The file says no date.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal

from caudal.catalog.chip_names import chip_name
from caudal.catalog.imports.base import Imported, csv_rows, number, whole
from caudal.catalog.rows import CatalogRow, price
from caudal.domain.fleet import Market

SOURCE = "SkyPilot's catalogue"
_NEEDED = ("InstanceType", "AcceleratorName", "AcceleratorCount", "Region", "Price", "SpotPrice")


def read_skypilot(
    chunks: Iterable[bytes], provider: str, as_of: str = "", *, everything: bool = False
) -> Imported:
    """The rows of one file of a provider's. Raises UsageError where its columns are not SkyPilot's."""
    found = Imported()
    for line, told in csv_rows(chunks, _NEEDED, found, "SkyPilot's vms.csv"):
        try:
            _add(told, provider, as_of, everything, found)
        except ValueError as error:
            found.wrong(line, str(error))
    found.cheapest()
    return found


def _add(told: Mapping[str, str], provider: str, as_of: str, everything: bool, found: Imported) -> None:
    name, region = told["InstanceType"], told["Region"]
    if not name:
        found.skipped["no machine, only a chip's price"] += 1
        return
    if not region:
        raise ValueError(f"{name}: no Region")
    chips, chip = 0, ""
    if told["AcceleratorName"]:
        count = number(told["AcceleratorCount"], "AcceleratorCount")
        if 0 < count < 1:
            found.skipped["a share of a chip"] += 1
            return
        chips = whole(told["AcceleratorCount"], "AcceleratorCount")
        chip = chip_name(_whose(told["AcceleratorName"]))
    if not chips and not everything:
        found.skipped["without chips (see --all)"] += 1
        return
    memory = told.get("MemoryGiB", "")
    cpus = told.get("vCPUs", "")
    taken = 0
    for market, said in ((Market.ON_DEMAND, told["Price"]), (Market.SPOT, told["SpotPrice"])):
        amount = price(said) if said and said.lower() != "nan" else Decimal(0)
        if not amount:
            continue
        taken += 1
        found.add(
            CatalogRow(
                provider=provider,
                machine_type=name,
                region=region,
                market=market,
                chips=chips,
                chip=chip if chips else "",
                vcpus=number(cpus, "vCPUs") if cpus else None,
                memory_bytes=int(number(memory, "MemoryGiB") * 2**30) if memory else None,
                network_gbit_s=None,
                price_usd_per_hour=amount,
                source=SOURCE,
                as_of=as_of,
            )
        )
    if not taken:
        found.skipped["at no price"] += 1


def _whose(name: str) -> str:
    """SkyPilot's plain A100 is the one of 40 GB, and its V100 the one of 16 GB."""
    return {"A100": "A100-40GB", "V100": "V100-16GB"}.get(name, name)
