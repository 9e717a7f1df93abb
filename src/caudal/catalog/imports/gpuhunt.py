"""gpuhunt's catalogue (one CSV a provider) → rows: by the hour, and spot.

Columns by its `RawCatalogItem`, read 2026-11: instance_name, location, price, cpu, memory (GB), gpu_count, gpu_name,
gpu_memory (GB of one), spot; newer ones add gpu_vendor, disk_size and flags, which are not needed. The provider is the
file's name. The file says no date.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from caudal.catalog.chip_names import chip_name
from caudal.catalog.imports.base import Imported, csv_rows, number, whole
from caudal.catalog.rows import CatalogRow, price
from caudal.domain.fleet import Market

SOURCE = "gpuhunt's catalogue"
_NEEDED = (
    "instance_name",
    "location",
    "price",
    "cpu",
    "memory",
    "gpu_count",
    "gpu_name",
    "gpu_memory",
    "spot",
)


def read_gpuhunt(
    chunks: Iterable[bytes], provider: str, as_of: str = "", *, everything: bool = False
) -> Imported:
    """The rows of one file of a provider's. Raises UsageError where its columns are not gpuhunt's."""
    found = Imported()
    for line, told in csv_rows(chunks, _NEEDED, found, "gpuhunt's catalogue"):
        try:
            row = _row(told, provider, as_of)
        except ValueError as error:
            found.wrong(line, str(error))
            continue
        if not row.price_usd_per_hour:
            found.skipped["at no price"] += 1
        elif not row.chips and not everything:
            found.skipped["without chips (see --all)"] += 1
        else:
            found.add(row)
    found.cheapest()
    return found


def _row(told: Mapping[str, str], provider: str, as_of: str) -> CatalogRow:
    if not told["instance_name"] or not told["location"]:
        raise ValueError("no instance_name" if not told["instance_name"] else "no location")
    spot = told["spot"].lower()
    if spot not in ("true", "false"):
        raise ValueError(f"spot: {told['spot'][:40]!r} is neither True nor False")
    chips = whole(told["gpu_count"], "gpu_count") if told["gpu_count"] else 0
    memory_gb = number(told["gpu_memory"], "gpu_memory") if told["gpu_memory"] else None
    return CatalogRow(
        provider=provider,
        machine_type=told["instance_name"],
        region=told["location"],
        market=Market.SPOT if spot == "true" else Market.ON_DEMAND,
        chips=chips,
        chip=chip_name(told["gpu_name"], memory_gb) if chips else "",
        vcpus=number(told["cpu"], "cpu") if told["cpu"] else None,
        memory_bytes=int(number(told["memory"], "memory") * 2**30) if told["memory"] else None,
        network_gbit_s=None,
        price_usd_per_hour=price(told["price"]),
        source=SOURCE,
        as_of=as_of,
    )
