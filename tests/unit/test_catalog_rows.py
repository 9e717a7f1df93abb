"""The catalogue's own rows: what is shipped, names of chips, what is chosen, and what a plan gets."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from decimal import Decimal
from importlib.resources import files
from pathlib import Path

import pytest

from caudal.catalog.as_demand import as_demand
from caudal.catalog.aws_types import AWS_TYPES
from caudal.catalog.azure_types import AZURE_TYPES
from caudal.catalog.bundled import bundled_rows
from caudal.catalog.chip_names import asked_for, chip_name, meant
from caudal.catalog.choose import Wanted, choose
from caudal.catalog.rows import CatalogRow, from_csv, newest, price
from caudal.domain.errors import NotFound
from caudal.domain.fleet import Market
from caudal.spec.demand import load_demand

ROW = CatalogRow(
    "aws", "p5.48xlarge", "us-east-1", Market.ON_DEMAND, 8, "H100-80GB", 192.0, 2 << 40, 3200.0, Decimal("55.04"),
    "test", "2026-09-19",
)  # fmt: skip


def test_every_shipped_price_has_a_source_and_what_is_unknown_is_empty() -> None:
    rows = bundled_rows()
    assert len({row.key for row in rows}) == len(rows)
    for row in rows:
        assert row.source, row
        assert row.price_usd_per_hour is None or row.price_usd_per_hour > 0, row
        assert bool(row.chips) == bool(row.chip), row
        assert row.memory_bytes != 0 and row.vcpus != 0 and row.network_gbit_s != 0, row
    assert {row.provider for row in rows} == {"aws", "azure", "gcp", "oci", "coreweave"}


def test_the_list_and_the_clouds_own_types_agree() -> None:
    """A price stands in both where the list has it, too: they may differ by rounding only."""
    own = {t.name: t.price_usd_per_hour for t in AWS_TYPES} | {
        t.name: t.list_price_usd_per_hour for t in AZURE_TYPES
    }
    listed = list(from_csv((files("caudal.catalog") / "data" / "prices.csv").read_text()))
    both = [row for row in listed if row.market is Market.ON_DEMAND and own.get(row.machine_type)]
    assert len(both) >= 10
    for row in both:
        assert row.price_usd_per_hour is not None
        known = own[row.machine_type]
        assert known is not None and abs(row.price_usd_per_hour / known - 1) < Decimal("0.001"), row
    chips = {(row.machine_type, row.chips, row.chip) for row in bundled_rows()}
    assert {(row.machine_type, row.chips, row.chip) for row in listed} <= chips


def test_neuron_machines_count_chips_and_not_cores() -> None:
    told = {row.machine_type: (row.chips, row.chip) for row in bundled_rows() if row.provider == "aws"}
    assert told["trn1.32xlarge"] == (16, "Trainium1")
    assert told["trn2.48xlarge"] == (16, "Trainium2")
    assert told["inf2.48xlarge"] == (12, "Inferentia2")
    assert told["trn1.2xlarge"] == (1, "Trainium1")


@pytest.mark.parametrize(
    ("text", "memory_gb", "name"),
    [
        ("H100", None, "H100-80GB"),
        ("H100-SXM", None, "H100-80GB"),
        ("NVIDIA H100", 80, "H100-80GB"),
        ("H100", 94, "H100-NVL"),
        ("H100NVL", None, "H100-NVL"),
        ("H100-MEGA-80GB", None, "H100-80GB"),
        ("A100", 40, "A100-40GB"),
        ("A100", 80, "A100-80GB"),
        ("A100-80GB-SXM", None, "A100-80GB"),
        ("V100", 32, "V100-32GB"),
        ("h200", None, "H200-141GB"),
        ("gb200", None, "GB200"),
        ("MI300X", 192, "MI300X"),
        ("Trainium", None, "Trainium1"),
        ("Trainium2", None, "Trainium2"),
        ("A100", None, "A100"),
        ("RTX4090", 24, "RTX4090"),
        (" Gaudi HL-205 ", None, "Gaudi HL-205"),
    ],
)
def test_names_of_chips(text: str, memory_gb: float | None, name: str) -> None:
    assert chip_name(text, memory_gb) == name


def test_a_name_may_mean_several_chips() -> None:
    chips = ["H100-80GB", "H100-NVL", "H200-141GB", "L4", "L40S", "GB200", "B200", ""]
    assert asked_for("h100", chips) == {"H100-80GB", "H100-NVL"}
    assert asked_for("H100-80gb", chips) == {"H100-80GB"}
    assert asked_for("L4", chips) == {"L4"}
    assert asked_for("B200", chips) == {"B200"}
    assert asked_for("H2OO", chips) == set()
    assert meant("H2OO", chips)[0] in ("H200", "H200-141GB")


def test_filters_and_orders() -> None:
    rows = bundled_rows()
    found = choose(rows, Wanted(chips=("H100",), max_price=Decimal(7)))
    assert [row.price_usd_per_chip_hour for row in found] == [
        Decimal("5.191"),
        Decimal("6.155"),
        Decimal("6.88"),
    ]
    assert {row.provider for row in choose(rows, Wanted(providers=("AWS",)))} == {"aws"}
    assert {row.market for row in choose(rows, Wanted(markets=(Market.BLOCK,)))} == {Market.BLOCK}
    assert min(row.chips for row in choose(rows, Wanted(min_chips=16))) == 16
    by_machine = choose(rows, Wanted(chips=("L4",), sort="price"))
    assert [row.machine_type for row in by_machine] == ["g6.xlarge", "g6.12xlarge", "g6.48xlarge"]
    assert choose(rows, Wanted(chips=("GB300",)))[-1].price_usd_per_hour is None  # unknown comes last
    assert all(row.region == "us-east-1" for row in choose(rows, Wanted(regions=("us-east-1",))))


@pytest.mark.parametrize(
    ("wanted", "remedy"),
    [
        (Wanted(chips=("H1000",)), "did you mean H100"),
        (Wanted(chips=("zzzzzzzz",)), "there are A100-40GB"),
        (Wanted(providers=("azur",)), "did you mean azure"),
        (Wanted(regions=("us-east-11",)), "did you mean us-east-1"),
    ],
)
def test_unknown_names_are_refused_with_what_may_be_meant(wanted: Wanted, remedy: str) -> None:
    with pytest.raises(NotFound) as caught:
        choose(bundled_rows(), wanted)
    assert remedy in caught.value.remedy


def test_old_is_more_than_ninety_days_or_unknown() -> None:
    assert not ROW.old(date(2026, 12, 18))
    assert ROW.old(date(2026, 12, 19))
    assert replace(ROW, as_of="").old(date(2026, 9, 19))


def test_the_newest_of_two_that_say_the_same() -> None:
    later = replace(ROW, as_of="2026-11-01", price_usd_per_hour=Decimal(50))
    same_day = replace(ROW, source="other")
    priceless = replace(ROW, as_of="2026-12-01", price_usd_per_hour=None)
    elsewhere = replace(ROW, region="eu-west-1")
    assert newest([later, ROW]) == newest([ROW, later]) == [later]
    assert newest([ROW, same_day]) == [same_day]
    assert newest([ROW, priceless]) == newest([priceless, ROW]) == [ROW]
    assert newest([ROW, elsewhere]) == [ROW, elsewhere]


@pytest.mark.parametrize("text", ["", "x", "-1", "nan", "inf", "1e12", "1,5", None])
def test_what_is_no_price(text: object) -> None:
    with pytest.raises(ValueError, match=r"price|costs"):
        price(text)


def test_a_plan_reads_what_the_catalogue_offers(tmp_path: Path) -> None:
    odd = replace(
        ROW, machine_type='odd "type" \\ \n: #x', market=Market.RESERVED, term_months=36, prepaid=0.5
    )
    spot = replace(ROW, market=Market.SPOT, price_usd_per_hour=Decimal("20.78"))
    unknown = replace(ROW, chip="", machine_type="who-knows")
    priceless = replace(ROW, price_usd_per_hour=None)
    lines = list(as_demand([*bundled_rows(), ROW, ROW, odd, spot, unknown, priceless]))
    head = """\
type: demand
name: tiny
first: 2027-01
months: 3
scenarios: [{name: only, probability: 1}]
services: [{name: assistant, mean_chips: 8, survives: 0, chips: [{chip: H100-80GB}]}]
"""
    file = tmp_path / "demand.yaml"
    file.write_text(head + "\n".join(lines) + "\n")
    offers = load_demand(file).offers
    priced = [row for row in bundled_rows() if row.price_usd_per_hour and row.chips]
    assert len(offers) == len(priced) + 4
    assert len({offer.name for offer in offers}) == len(offers)
    reserved = offers[-2]
    assert (reserved.kind, reserved.term_months, reserved.prepaid, reserved.unit_chips) == (
        "reserved",
        36,
        0.5,
        8,
    )
    assert reserved.price_usd_per_chip_hour == Decimal("6.88")
    assert all(offer.source and not offer.assumed for offer in offers)


def test_no_offers_are_an_empty_list() -> None:
    assert list(as_demand([])) == ["offers:", "  []"]
