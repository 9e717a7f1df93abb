"""Azure's retail prices: pages in any arrangement, wrong items, what is left out."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from caudal.catalog.imports.azure import read_azure
from caudal.catalog.imports.base import Imported
from caudal.domain.errors import UsageError
from caudal.domain.fleet import Market
from tests.support.price_lists import azure_item, azure_page


def read(text: str, **options: Any) -> Imported:
    return read_azure(iter([text.encode()]), "2026-11-28", **options)


def test_by_the_hour_spot_and_reserved() -> None:
    items = [
        azure_item(),
        azure_item(price=39.3, meterName="ND96isrH100v5 Spot", skuName="ND96isrH100v5 Spot"),
        azure_item(price=525_600.0, type="Reservation", reservationTerm="1 Year"),
    ]
    found = read(azure_page(items))
    assert found.problems == []
    told = {r.market: r for r in found.rows}
    assert told[Market.ON_DEMAND].price_usd_per_hour == Decimal("98.32")
    assert told[Market.SPOT].price_usd_per_hour == Decimal("39.3")
    years = told[Market.RESERVED]
    assert (years.price_usd_per_hour, years.term_months, years.prepaid) == (Decimal(60), 12, None)
    for row in found.rows:
        assert (row.chips, row.chip, row.region, row.as_of) == (8, "H100-80GB", "eastus", "2026-11-28")
        assert row.source == "Azure Retail Prices" and row.memory_bytes and row.network_gbit_s == 3200


@pytest.mark.parametrize(
    "text",
    [
        azure_page([azure_item()]) + "\n" + azure_page([azure_item(armRegionName="westus3")]),
        f"[{azure_page([azure_item()])}, {azure_page([azure_item(armRegionName='westus3')])}]",
        "\ufeff" + azure_page([azure_item(), azure_item(armRegionName="westus3")]),
    ],
)
def test_pages_one_after_the_other_in_a_list_and_with_a_mark(text: str) -> None:
    assert {r.region for r in read(text).rows} == {"eastus", "westus3"}


def test_a_page_that_is_missing_is_said() -> None:
    link = "https://prices.azure.com:443/api/retail/prices?$skip=1000"
    assert link in read(azure_page([azure_item()], link)).notes[0]
    both = azure_page([azure_item()], link) + azure_page([azure_item(armRegionName="uksouth")])
    assert read(both).notes == []


@pytest.mark.parametrize(
    ("item", "why"),
    [
        (azure_item(productName="Virtual Machines NDsrH100v5 Series Windows"), "another system"),
        (azure_item(meterName="ND96 Low Priority"), "another market"),
        (azure_item(type="DevTestConsumption"), "another market"),
        (azure_item(serviceName="Storage"), "not a machine"),
        (azure_item(sku=""), "not a machine"),
        (azure_item(sku="Standard_ND999_v9"), "a type that the catalogue does not know"),
        (azure_item(sku="Standard_D2s_v5"), "without chips (see --all)"),
        (azure_item(tierMinimumUnits=100.0), "a price for larger amounts only"),
        (azure_item(price=0.0), "at no price"),
    ],
)
def test_what_is_left_out_is_counted(item: dict[str, Any], why: str) -> None:
    found = read(azure_page([item, azure_item()]))
    assert len(found.rows) == 1 and found.skipped == {why: 1} and found.problem_count == 0


def test_everything_has_machines_without_chips_and_never_guesses_those_of_an_unknown_gpu_type() -> None:
    items = [
        azure_item(sku=name, price=1.0) for name in ("Standard_D2s_v5", "Standard_X9", "Standard_ND999_v9")
    ]
    rows = read(azure_page(items), everything=True).rows
    assert {(r.machine_type, r.chips, r.vcpus) for r in rows} == {
        ("Standard_D2s_v5", 0, 2.0),
        ("Standard_X9", 0, None),
    }


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in azure_item().items() if key != name}


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (azure_item(price=-1.0), "no price"),
        (azure_item(price="ninety"), "no price"),
        (azure_item(price=None), "no price"),
        (azure_item(price=True), "no price"),
        (azure_item(price=9_832_000.0), "more than any machine costs"),
        (azure_item(currencyCode="EUR"), "EUR"),
        (azure_item(unitOfMeasure="1/Month"), "1/Month"),
        (azure_item(type="Reservation", reservationTerm="9 Years"), "9 Years"),
        (azure_item(armRegionName=""), "armRegionName"),
        (without("meterName"), "meterName"),
        (without("retailPrice"), "retailPrice"),
    ],
)
def test_a_wrong_item_is_named_and_the_rest_goes_on(item: dict[str, Any], said: str) -> None:
    found = read(azure_page([item, azure_item()]))
    assert len(found.rows) == 1
    assert found.problem_count == 1 and said in found.problems[0].text


def test_an_item_that_is_none() -> None:
    found = read('{"Items": [3, "x", null, [], ' + azure_page([])[:-1].join(["", "}"]) + "]}")
    assert found.rows == [] and found.problem_count == 5


@pytest.mark.parametrize("text", ["", "{}", "[]", "<html>", '{"error": {"code": "429"}}', '{"Items": 3}'])
def test_what_is_no_page_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        read(text)


def test_a_page_that_breaks_off_gives_what_came_before() -> None:
    found = read(azure_page([azure_item(), azure_item(armRegionName="uksouth")])[:-300])
    assert [r.region for r in found.rows] == ["eastus"] and found.notes


def test_of_two_prices_for_one_thing_the_lower() -> None:
    found = read(azure_page([azure_item(price=99), azure_item(price=98)]))
    assert [r.price_usd_per_hour for r in found.rows] == [Decimal(98)]
