"""Rows as JSON: whatever the domain can hold comes back equal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from decimal import Decimal
from enum import Enum
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caudal.domain.decision import Decision, Intent
from caudal.domain.errors import StorageFailed, UsageError
from caudal.domain.event import Event, Point
from caudal.domain.fleet import FleetSpec, Lease
from caudal.domain.gang import Gang, Report
from caudal.domain.workload import ServiceSpec, TrainSpec, Workload
from caudal.ports import Holder
from caudal.store.codec import decode, encode
from tests.support import rows

FLOATS = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOATS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(max_size=8),
    int: st.integers(),
    bool: st.booleans(),
    float: FLOATS,
    Decimal: st.decimals(allow_nan=False, allow_infinity=False),
    type(None): st.none(),
}


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Any value of a type that the domain uses, every field filled."""
    if hint in PLAIN:
        return PLAIN[hint]
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return st.sampled_from(inner)
    if origin in (Union, UnionType):
        return st.one_of(*map(values, inner))
    if origin is tuple and inner[-1] is Ellipsis:
        return st.lists(values(inner[0]), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values, inner))
    if origin is Mapping:
        return st.dictionaries(st.text(max_size=5), JSON, max_size=2)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return st.sampled_from(hint)
    assert isinstance(hint, type)
    assert is_dataclass(hint), hint
    hints = get_type_hints(hint)
    return st.builds(hint, **{f.name: values(hints[f.name]) for f in fields(hint)})


@pytest.mark.parametrize(
    "kind", [Workload, Lease, Gang, Intent, Decision, Event, Point, Report, FleetSpec, Holder]
)
def test_every_row_comes_back_equal(kind: type[Any]) -> None:
    @given(value=values(kind))
    @settings(max_examples=60, deadline=None)
    def check(value: Any) -> None:
        text = encode(value)
        back: Any = decode(kind, text)
        assert back == value
        assert encode(back) == text
        json.loads(text)

    check()


def test_actions_and_specs_keep_their_class() -> None:
    back = decode(Intent, encode(rows.intent()))
    assert type(back.action) is type(rows.intent().action)
    assert isinstance(decode(Workload, encode(rows.run())).spec, TrainSpec)
    assert isinstance(decode(Workload, encode(rows.service())).spec, ServiceSpec)


def test_decimals_are_text_and_keep_their_zeros() -> None:
    text = encode(rows.lease(price_usd_per_hour=Decimal("12.3400")))
    assert json.loads(text)["price_usd_per_hour"] == "12.3400"
    assert str(decode(Lease, text).price_usd_per_hour) == "12.3400"


def test_older_rows_get_defaults_and_newer_fields_are_left_out() -> None:
    row = json.loads(encode(rows.gang()))
    del row["end_reason"]
    row["from_the_future"] = 1
    assert decode(Gang, json.dumps(row)) == rows.gang()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": 1}', "null"])
def test_a_row_that_is_none_says_so(text: str) -> None:
    with pytest.raises(StorageFailed, match="Gang"):
        decode(Gang, text)


@pytest.mark.parametrize("value", [object(), "\ud800"])
def test_what_json_cannot_hold_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match="Report"):
        encode(Report("g", 1.0, {"x": value}))


def test_a_field_of_the_wrong_type_is_refused() -> None:
    with pytest.raises(UsageError, match="Gang"):
        encode(rows.gang(created_at="yesterday"))
