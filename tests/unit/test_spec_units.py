"""Sizes and counts as people write them."""

from __future__ import annotations

import pytest

from caudal.spec.units import parse_count, parse_size, show_size


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1GiB", 1 << 30),
        ("1 GiB", 1 << 30),
        ("1.5KiB", 1536),
        ("1GB", 10**9),
        ("12", 12),
        ("1_024", 1024),
        ("12B", 12),
        ("0.3B", None),
        ("1gib", None),
        ("-1GiB", None),
        ("GiB", None),
        ("1e9", None),
        ("1GiB\n", None),
        ("9" * 1000, None),
    ],
)
def test_sizes(text: str, value: int | None) -> None:
    assert parse_size(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("1.54M", 1_540_000), ("3k", 3000), ("2G", 2 * 10**9), ("1.2345k", None), ("1KiB", None), ("1 k", 1000)],
)
def test_counts(text: str, value: int | None) -> None:
    assert parse_count(text) == value


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 1 << 20, 3 << 30, (1 << 30) + 1, 5 << 40])
def test_a_shown_size_is_read_back(size: int) -> None:
    assert parse_size(show_size(size)) == size
