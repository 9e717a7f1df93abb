"""Sites' learning rates when their deltas are averaged: what `rate_of` says, and where it goes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caudal.train.protocol.rules import rate_of


@pytest.mark.parametrize("sites", [1, 2, 3, 8])
def test_equal_sites_take_the_root_of_their_number(sites: int) -> None:
    assert rate_of([40] * sites) == pytest.approx(math.sqrt(sites))


def test_a_site_that_does_little_counts_for_little() -> None:
    assert rate_of([100, 0]) == pytest.approx(1.0)
    assert 1.0 < rate_of([100, 10]) < rate_of([100, 50]) < rate_of([100, 100]) < 1.4143
    assert rate_of([]) == 1.0


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=9))
def test_it_is_between_alone_and_all_equal(shares: list[int]) -> None:
    assert 1.0 - 1e-9 <= rate_of(shares) <= math.sqrt(len(shares)) + 1e-9
    assert rate_of(shares) == pytest.approx(rate_of([7 * share for share in shares]))
