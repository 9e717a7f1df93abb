"""AWS's price list: good files, wrong rows, files that break off, files that are something else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from caudal.catalog.imports.aws import read_aws
from caudal.catalog.imports.base import Imported
from caudal.domain.errors import UsageError
from caudal.domain.fleet import Market
from tests.support.price_lists import aws_list, aws_product, aws_term, usual_aws


def pieces(text: str, size: int = 1 << 16, encoding: str = "utf-8") -> Iterator[bytes]:
    data = text.encode(encoding)
    return (data[at : at + size] for at in range(0, len(data), size))


def read(text: str, **options: Any) -> Imported:
    return read_aws(pieces(text), **options)


def test_by_the_hour_and_reserved_with_what_is_paid_up_front_spread_over_the_term() -> None:
    found = read(usual_aws())
    assert found.problems == [] and found.notes == []
    told = {(r.machine_type, r.market, r.term_months): r for r in found.rows}
    assert set(told) == {
        ("p5.48xlarge", Market.ON_DEMAND, 0),
        ("p5.48xlarge", Market.RESERVED, 36),
        ("trn1.32xlarge", Market.ON_DEMAND, 0),
    }
    hour = told["p5.48xlarge", Market.ON_DEMAND, 0]
    assert (hour.chips, hour.chip, hour.vcpus, hour.memory_bytes) == (8, "H100-80GB", 192, 2048 << 30)
    assert (hour.price_usd_per_hour, hour.region, hour.network_gbit_s) == (
        Decimal("55.04"),
        "us-east-1",
        3200,
    )
    assert (hour.as_of, hour.source) == ("2026-11-20", "AWS Price List (AmazonEC2)")
    years = told["p5.48xlarge", Market.RESERVED, 36]
    assert years.price_usd_per_hour == Decimal(20)  # $10 an hour, and $262,800 over 26,280 hours
    assert years.prepaid == 0.5
    trainium = told["trn1.32xlarge", Market.ON_DEMAND, 0]
    assert (trainium.chips, trainium.chip) == (16, "Trainium1")


def test_what_is_left_out_is_counted() -> None:
    skipped = read(usual_aws()).skipped
    assert skipped["another system, tenancy or market"] == 2
    assert skipped["not a machine"] == 1
    assert skipped["without chips (see --all)"] == 1
    assert skipped["reserved, and convertible"] == 1


def test_machines_without_chips_on_request() -> None:
    rows = {r.machine_type: r for r in read(usual_aws(), everything=True).rows}
    assert rows["m7i.large"].chips == 0 and rows["m7i.large"].price_usd_per_chip_hour is None
    assert rows["m7i.large"].network_gbit_s == 12.5


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
def test_the_size_of_the_pieces_makes_no_difference(size: int) -> None:
    assert read_aws(pieces(usual_aws(), size)).rows == read(usual_aws()).rows


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_other_encodings(encoding: str) -> None:
    assert read_aws(pieces(usual_aws(), 5, encoding)).rows == read(usual_aws()).rows


def test_a_new_gpu_type_is_named_by_its_family_and_an_unknown_one_not_at_all() -> None:
    products = [aws_product("A", "p5en.24xlarge", gpu="4"), aws_product("B", "p9.48xlarge", gpu="8")]
    found = read(aws_list(products, {s: aws_term(s, "J", "9") for s in "AB"}, {}))
    assert [(r.chips, r.chip) for r in found.rows] == [(4, "H200-141GB"), (8, "")]


WRONG: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (aws_product("A", "p5.48xlarge", vcpu="many"), aws_term("A", "J", "1"), "many"),
    ({"sku": "A"}, aws_term("A", "J", "1"), "no attributes"),
    (aws_product("A", "p5.48xlarge", gpu="8"), aws_term("A", "J", "-5"), "no price"),
    (aws_product("A", "p5.48xlarge", gpu="8"), aws_term("A", "J", "NaN"), "no price"),
    (aws_product("A", "p5.48xlarge", gpu="8"), aws_term("A", "J", "5504000"), "more than any machine"),
    (aws_product("A", "p5.48xlarge", gpu="8"), aws_term("A", "J", "1", "99"), "for no term"),
    (aws_product("A", "p5.48xlarge", gpu="8"), {"A.J": {"termAttributes": {}}}, "priceDimensions"),
    (aws_product("A", "p5.48xlarge", gpu="8"), {"A.J": None}, "NoneType"),
    (
        aws_product("A", "p5.48xlarge", gpu="8"),
        {"A.J": {"priceDimensions": {"x": {"unit": "Hrs", "pricePerUnit": {"CNY": "400"}}}}},
        "CNY",
    ),
    (
        aws_product("A", "p5.48xlarge", gpu="8"),
        {"A.J": {"priceDimensions": {"x": {"unit": "Moons", "pricePerUnit": {"USD": "4"}}}}},
        "Moons",
    ),
    (aws_product("A", "p5.48xlarge", regionCode=""), aws_term("A", "J", "1"), "regionCode"),
]


@pytest.mark.parametrize(("product", "term", "said"), WRONG)
def test_a_wrong_row_is_named_with_its_line_and_the_rest_goes_on(
    product: dict[str, Any], term: dict[str, Any], said: str
) -> None:
    products = [product, aws_product("Z", "g6.xlarge", gpu="1")]
    found = read(aws_list(products, {"A": term, "Z": aws_term("Z", "J", "0.8048")}, {}))
    assert [r.machine_type for r in found.rows] == ["g6.xlarge"]
    assert found.problem_count == len(found.problems) == 1
    assert said in found.problems[0].text
    assert found.problems[0].line > 7


def test_the_line_is_the_line() -> None:
    text = aws_list([{"sku": "A"}, aws_product("Z", "g6.xlarge")], {"Z": aws_term("Z", "J", "1")}, {})
    line = next(i for i, row in enumerate(text.splitlines(), 1) if '"sku" : "A"' in row) + 1
    assert read_aws(pieces(text, 11)).problems[0].line == line


def test_a_file_that_breaks_off_gives_what_came_before_and_says_so() -> None:
    text = usual_aws()
    cut = text[: text.index('"Reserved"')]
    found = read(cut)
    assert {r.machine_type for r in found.rows} == {"p5.48xlarge", "trn1.32xlarge"}
    assert "breaks off" in found.problems[0].text and found.notes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "not json at all",
        "{}",
        '{"offerCode": "AmazonS3", "products": {}, "terms": {}}',
        '{"terms": {"OnDemand": {}}, "products": {}}',
        '{"products": {}}',
        '{"products": ' + "[" * 100_000,
        '{"a": ' + "[" * 100_000,
        '{"a": NaN}',
        usual_aws()[:900],
    ],
)
def test_what_is_no_price_list_is_refused_with_a_remedy(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(text)
    assert caught.value.remedy


def test_a_value_without_an_end_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caudal.catalog.imports.scan.MOST_VALUE_CHARS", 1 << 12)
    read_so_far = 0

    def endless() -> Iterator[bytes]:
        nonlocal read_so_far
        yield b'{"disclaimer": "'
        while True:
            read_so_far += 1024
            yield b"x" * 1024

    with pytest.raises(UsageError, match="no price list"):
        read_aws(endless())
    assert read_so_far < 1 << 16


def test_problems_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    products = [{"sku": f"S{i}"} for i in range(500)] + [aws_product("Z", "g6.xlarge")]
    found = read(aws_list(products, {"Z": aws_term("Z", "J", "1")}, {}))
    assert found.problem_count == 500 and len(found.problems) == 200


def test_numbers_over_the_edge_of_a_piece() -> None:
    told = json.loads(usual_aws())
    told["version"] = 20261120.125
    text = json.dumps(told)
    for size in (1, 3, 17):
        assert len(read_aws(pieces(text, size)).rows) == 3
