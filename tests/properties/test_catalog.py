"""Properties of the catalogue: its CSV keeps every row, filters filter, pieces do not matter, nothing odd stops it."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from caudal.catalog.choose import Wanted, choose, cost
from caudal.catalog.imports.aws import read_aws
from caudal.catalog.imports.azure import read_azure
from caudal.catalog.imports.base import Imported
from caudal.catalog.imports.gpuhunt import read_gpuhunt
from caudal.catalog.imports.scan import JsonScan
from caudal.catalog.imports.skypilot import read_skypilot
from caudal.catalog.rows import CatalogRow, from_csv, newest, to_csv
from caudal.domain.errors import UsageError
from caudal.domain.fleet import Market
from tests.support.price_lists import GPUHUNT, SKYPILOT, azure_item, azure_page, usual_aws

text = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\r\n\0"), max_size=12)
chips = st.sampled_from(["", "H100-80GB", "H100-NVL", "B200", "Trainium2"])
prices = st.none() | st.decimals(Decimal("0.000001"), Decimal(100_000), places=6, allow_nan=False)
rows = st.builds(
    CatalogRow, st.sampled_from(["aws", "azure", "gcp"]), text, text, st.sampled_from(Market), st.integers(0, 100), chips,
    st.none() | st.integers(1, 500).map(float), st.none() | st.integers(1, 1 << 50),
    st.none() | st.integers(1, 9999).map(float), prices, text, st.sampled_from(["", "2026-01-01", "2026-11-20"]),
    st.sampled_from([0, 12, 36]), st.sampled_from([None, 0.0, 0.5, 1.0]),
)  # fmt: skip


@given(st.lists(rows, max_size=8))
def test_the_csv_gives_back_every_row(given_rows: list[CatalogRow]) -> None:
    assert list(from_csv(to_csv(given_rows))) == given_rows


@given(st.lists(rows, max_size=12))
def test_newest_keeps_one_of_each_and_the_latest(given_rows: list[CatalogRow]) -> None:
    kept = newest(given_rows)
    assert {row.key for row in kept} == {row.key for row in given_rows}
    assert len({row.key for row in kept}) == len(kept)
    for row in given_rows:
        chosen = next(one for one in kept if one.key == row.key)
        if row.price_usd_per_hour is not None:
            assert chosen.price_usd_per_hour is not None and chosen.as_of >= row.as_of
    assert newest(kept) == kept


@given(
    st.lists(rows, max_size=12), st.integers(0, 50), st.none() | st.integers(1, 1000).map(Decimal), st.data()
)
def test_what_is_chosen_is_what_was_asked_for_and_all_of_it(
    given_rows: list[CatalogRow], min_chips: int, max_price: Decimal | None, data: st.DataObject
) -> None:
    order: Any = data.draw(st.sampled_from(["price", "price-per-chip"]))
    markets = tuple(data.draw(st.sets(st.sampled_from(Market), max_size=2)))
    wanted = Wanted(markets=markets, min_chips=min_chips, max_price=max_price, sort=order)
    found = choose(given_rows, wanted)
    costs = [cost(row, order) for row in found]
    known = [c for c in costs if c is not None]
    assert known == sorted(known) and costs == [*known, *[None] * (len(costs) - len(known))]

    def asked(row: CatalogRow) -> bool:
        c = cost(row, order)
        affordable = max_price is None or (c is not None and c <= max_price)
        return row.chips >= min_chips and (not markets or row.market in markets) and affordable

    assert sorted(map(repr, found)) == sorted(repr(row) for row in given_rows if asked(row))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.text(max_size=8)
    | st.decimals(-1000, 1000, places=3, allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(json_values, st.integers(1, 9), st.sampled_from([None, 1]))
def test_json_in_pieces_is_json(value: Any, size: int, indent: int | None) -> None:
    written = json.dumps(value, default=float, indent=indent)
    scan = JsonScan(written[at : at + size] for at in range(0, len(written), size))
    assert scan.value() == json.loads(written, parse_float=Decimal)
    assert scan.peek() == ""
    skipping = JsonScan(written[at : at + size] for at in range(0, len(written), size))
    skipping.skip()
    assert skipping.peek() == ""


GOOD = [usual_aws(), azure_page([azure_item(), azure_item(armRegionName="uksouth")]), SKYPILOT, GPUHUNT]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(range(4)), st.data())
def test_a_damaged_file_gives_rows_and_problems_or_a_clear_refusal(which: int, data: st.DataObject) -> None:
    """Whatever is cut out or put in: no other error, and no price that is not one."""
    whole = GOOD[which].encode()
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 400)))
    damaged = whole[:start] + data.draw(st.binary(max_size=20)) + whole[end:]
    try:
        found: Imported = READERS[which](damaged)
    except UsageError:
        return
    for row in found.rows:
        assert row.price_usd_per_hour is not None and 0 < row.price_usd_per_hour <= 1_000_000
    assert list(from_csv(to_csv(found.rows))) == found.rows


READERS = [
    lambda data: read_aws(iter([data])),
    lambda data: read_azure(iter([data]), "2026-11-28"),
    lambda data: read_skypilot(iter([data]), "aws", "2026-11-28"),
    lambda data: read_gpuhunt(iter([data]), "oci", "2026-11-28"),
]
