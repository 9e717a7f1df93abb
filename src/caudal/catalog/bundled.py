"""The rows that Caudal comes with: AWS's and Azure's types of the catalogue, and a list of dated public prices.

What the catalogue of a cloud says of its types goes before the list, which adds the nodes' network and what is sold
otherwise: capacity blocks, terms of three years, other clouds. Knows nothing of what was imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files

from caudal.catalog import azure_types
from caudal.catalog.aws_types import AWS_TYPES, PRICE_REGION
from caudal.catalog.azure_types import AZURE_TYPES
from caudal.catalog.chip_names import chips_of
from caudal.catalog.rows import CatalogRow, from_csv
from caudal.domain.fleet import MachineType, Market

TYPES_SOURCE = "AWS's machine types; no price is known"


def bundled_rows() -> list[CatalogRow]:
    """Every row that is shipped, each with source and date."""
    listed = list(from_csv((files("caudal.catalog") / "data" / "prices.csv").read_text(encoding="utf-8")))
    network = {(row.provider, row.machine_type): row.network_gbit_s for row in listed}
    known = {}
    for row in _clouds():
        known[row.provider, row.machine_type] = replace(
            row, network_gbit_s=network.get((row.provider, row.machine_type))
        )
    rows = list(known.values())
    for row in listed:
        own = known.get((row.provider, row.machine_type))
        if own is None:
            rows.append(row)
        elif row.market is not Market.ON_DEMAND:
            rows.append(replace(row, vcpus=own.vcpus, memory_bytes=own.memory_bytes))
    return rows


def _clouds() -> Iterator[CatalogRow]:
    for aws in AWS_TYPES:
        row = _row("aws", aws.machine_type, PRICE_REGION)
        if aws.price_usd_per_hour is None:
            yield replace(row, source=TYPES_SOURCE)
        else:
            yield replace(row, price_usd_per_hour=aws.price_usd_per_hour, source=aws.source, as_of=aws.as_of)
    for azure in AZURE_TYPES:
        row = _row("azure", azure.machine_type, "")
        if azure.list_price_usd_per_hour is None:
            yield replace(row, source=azure_types.SIZES_SOURCE, as_of=azure_types.SIZES_AS_OF)
        else:
            yield replace(
                row,
                price_usd_per_hour=azure.list_price_usd_per_hour,
                source=azure_types.PRICES_SOURCE,
                as_of=azure_types.PRICES_AS_OF,
            )


def _row(provider: str, kind: MachineType, region: str) -> CatalogRow:
    chips, chip = chips_of(kind)
    has = kind.resources
    return CatalogRow(
        provider, kind.name, region, Market.ON_DEMAND, chips, chip, has.cpus, has.memory_bytes, None, None, "", ""
    )  # fmt: skip
