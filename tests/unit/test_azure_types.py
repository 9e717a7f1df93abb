"""catalog/azure_types.py: sizes as facts, prices with a date, nothing guessed."""

from __future__ import annotations

from decimal import Decimal

from caudal.catalog.accelerators import accelerator
from caudal.catalog.azure_types import AZURE_TYPES, azure_type


def test_names_are_azures_and_distinct() -> None:
    names = [kind.name for kind in AZURE_TYPES]
    assert len({n.lower() for n in names}) == len(names)
    assert all(n.startswith("Standard_") for n in names)


def test_a_size_is_found_however_it_is_written() -> None:
    kind = azure_type("standard_nd96isr_h100_V5")
    assert kind is not None and kind.name == "Standard_ND96isr_H100_v5"
    assert kind.machine_type.resources.accelerators == 8
    assert kind.list_price_usd_per_hour == Decimal("98.32") and kind.infiniband
    assert azure_type("Standard_ND96isr_H100_v6") is None


def test_what_has_accelerators_says_which_and_what_has_none_says_none() -> None:
    for kind in AZURE_TYPES:
        assert bool(kind.machine_type.accelerator) == bool(kind.machine_type.resources.accelerators)
    # The NVL card of the NC series is not in the table of peaks: unknown there, not another card's.
    unknown = {k.machine_type.accelerator for k in AZURE_TYPES if k.machine_type.accelerator} - {"H100-NVL"}
    assert all(accelerator(name) is not None for name in unknown)


def test_a_price_that_no_source_has_is_left_out() -> None:
    priced = {kind.family for kind in AZURE_TYPES if kind.list_price_usd_per_hour is not None}
    assert priced == {"NDASv4_A100", "NDAMSv4_A100", "NDSH100v5", "NDSH200v5", "NDSGB200v6", "NDISv5MI300X"}
    assert all(kind.list_price_usd_per_hour != 0 for kind in AZURE_TYPES)
